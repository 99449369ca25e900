"""What a refused resume leaves behind, and observations that are no Dict."""

from __future__ import annotations

import signal

import pytest
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner

from onibi.clusters import serial_run
from onibi.clusters.cli.main import app
from onibi.clusters.run_state import state_of
from onibi.clusters.serial_run import SerialRun
from onibi.platform.checkpoint import load_checkpoint
from onibi.platform.errors import CheckpointError, ConfigError, OnibiError, RunInUseError
from onibi.platform.replay.ring.layout import read_header
from onibi.platform.run_folder import RunFolder, find_run


def test_a_resume_refused_for_its_settings_leaves_the_run_as_it_was(workshop):
    workshop.train()
    config = workshop.runs / "run" / "config.yaml"
    before = config.read_bytes()
    with pytest.raises(CheckpointError, match="does not fit these settings"):
        workshop.resume(overrides=["learner.network={kind: mlp, hidden: [7]}", "budget.max_env_steps=700"])
    assert config.read_bytes() == before
    result = workshop.resume(overrides=["budget.max_env_steps=700"])
    assert result.env_steps >= 700
    assert config.read_bytes() != before


@pytest.mark.parametrize(
    ("trained", "asked", "told"),
    [
        (
            {"learner": {"kind": "impala", "rows": 8, "batch_lanes": 4}, "replay__limiter": {}},
            "learner.kind=appo",
            "learner.kind impala",
        ),
        (
            {"rewards__intrinsic__kind": "classification"},
            "rewards.intrinsic.kind=ranking",
            "rewards.intrinsic.kind classification",
        ),
    ],
)
def test_a_run_does_not_go_on_with_what_another_kind_has_learnt(workshop, trained, asked, told):
    """Their tensors have the same shapes: values of one were taken for those of the other, or refused for a name."""
    workshop.train(**trained, budget__max_env_steps=150)
    with pytest.raises(ConfigError, match=rf"{told}.*start a new run"):
        workshop.resume(overrides=[asked, "budget.max_env_steps=300"])
    assert workshop.record()["status"] == "finished"
    assert workshop.resume(overrides=["budget.max_env_steps=300"]).env_steps >= 300


def test_a_finished_run_that_cannot_go_on_under_new_settings_has_finished_all_the_same(workshop, monkeypatch):
    """It was called failed, here and in MLflow, and resumed as it was it would have been evaluated a second time."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    workshop.train(tracking__enabled=True)
    with pytest.raises(CheckpointError, match="the checkpoint's values are read off"):
        workshop.resume(overrides=["budget.max_env_steps=900", "learner.support.low=-5"])
    assert workshop.record()["status"] == "finished"
    from mlflow.tracking import MlflowClient

    store = MlflowClient(workshop.record()["tracking_uri"])
    assert store.get_run(workshop.record()["tracking_run_id"]).info.status == "FINISHED"
    with pytest.raises(ConfigError, match="run is finished: it has 6"):
        workshop.resume()


@pytest.mark.parametrize("name", ["history.jsonl", "evaluations.jsonl"])
def test_a_run_whose_history_cannot_be_written_is_told_so_and_stays_as_it_was(workshop, name):
    workshop.train()
    (workshop.runs / "run" / name).unlink(missing_ok=True)
    (workshop.runs / "run" / name).mkdir()
    with pytest.raises(OnibiError, match=rf"{name} cannot be written: Is a directory.*move what is in its place"):
        workshop.resume(overrides=["budget.max_env_steps=700"])
    assert workshop.record()["status"] == "finished"


def test_a_resume_of_a_run_in_use_changes_nothing_of_it(workshop):
    workshop.train()
    config = workshop.runs / "run" / "config.yaml"
    before = config.read_bytes()
    with find_run(workshop.runs, "run").lock(), pytest.raises(RunInUseError, match="in use by process"):
        workshop.resume(overrides=["learner.discount=0.5"])
    assert config.read_bytes() == before


def test_a_finished_run_is_not_resumed_within_its_budget(workshop):
    result = workshop.train()
    config = workshop.runs / "run" / "config.yaml"
    before = config.read_bytes()
    with pytest.raises(ConfigError, match=rf"it has {result.env_steps} env steps, budget\.max_env_steps is 10\."):
        workshop.resume(overrides=["budget.max_env_steps=10"])
    with pytest.raises(ConfigError, match=r"has trained for \d+ s, budget\.max_seconds is 0\.001"):
        workshop.resume(overrides=["budget.max_env_steps=null", "budget.max_seconds=0.001"])
    assert config.read_bytes() == before
    assert find_run(workshop.runs, "run").record().status == "finished"


def test_an_interrupted_run_is_not_resumed_below_what_it_has_made(workshop):
    workshop.train()
    (run := RunFolder(workshop.runs / "run")).update(status="interrupted")
    run.write_config({**run.read_config(), "budget": {"max_env_steps": 5_000}})
    with pytest.raises(
        ConfigError, match=r"run has made 6\d\d env steps .*budget.max_env_steps 300 .*leave nothing to train"
    ):
        workshop.resume(overrides=["budget.max_env_steps=300"])
    assert run.record().status == "interrupted"
    assert workshop.resume(overrides=["budget.max_env_steps=800"]).status == "finished"


def test_a_run_killed_before_its_first_checkpoint_is_told_to_start_anew_and_ended_in_mlflow(workshop):
    process = workshop.start(tracking__enabled=True, budget__max_env_steps=1_000_000)
    folder = workshop.wait_for(lambda: find_run(workshop.runs, "run") if workshop.history() else None, 100.0, process)
    workshop.wait_for(lambda: folder.record().tracking_run_id, 100.0, process)
    process.kill()
    process.wait()
    assert workshop.checkpoints() == []
    record = folder.record()
    client = MlflowClient(record.tracking_uri)
    assert client.get_run(record.tracking_run_id).info.status == "RUNNING"
    listed = CliRunner().invoke(app, ["runs", "--runs-folder", str(workshop.runs)]).stdout
    assert "killed before its first checkpoint" in listed
    assert "resume it" not in listed
    for _ in range(2):
        with pytest.raises(
            ConfigError, match=r"run ended before its first checkpoint.*Start it anew: onibi train .*config"
        ):
            workshop.resume()
    assert client.get_run(record.tracking_run_id).info.status == "KILLED"
    assert folder.record().status == "failed"


SLOW = """
import time
from pathlib import Path
from onibi.actors.environments import corridor

class Slow(corridor.CaptionCorridor):
    def step(self, action):
        Path("stepping").touch()
        time.sleep(1.0)
        return super().step(action)

def make(**settings):
    return Slow(**settings)
"""


def test_a_second_ctrl_c_ends_a_run_at_once_and_it_is_called_interrupted(workshop):
    (workshop.runs.parent / "slow.py").write_text(SLOW)
    process = workshop.start(environment__id="slow:make")
    workshop.wait_for((workshop.runs.parent / "stepping").exists, 100.0, process)
    process.send_signal(signal.SIGINT)
    workshop.wait_for(lambda: "again to end at once" in workshop.log_of(), 60.0, process)
    process.send_signal(signal.SIGINT)  # it is in the midst of eight seconds of steps
    assert process.wait(60) == 130
    assert workshop.record()["status"] == "interrupted"
    assert workshop.checkpoints() == []
    assert list(workshop.rings.iterdir()) == []


def test_a_taken_name_is_told(workshop, caplog):
    with caplog.at_level("INFO", logger="onibi"):
        workshop.train("wh", budget__max_env_steps=150)
        assert not any("is there already" in record.getMessage() for record in caplog.records)
        workshop.train("wh", budget__max_env_steps=150)
    assert "a run named wh is there already: this one is wh-2" in [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("space", ["tuple", "text beside"])
def test_observations_that_are_tuples_or_hold_texts_beside_train(workshop, tmp_path, monkeypatch, space):
    (tmp_path / "odd_spaces.py").write_text(
        "import gymnasium as gym\n"
        "import numpy as np\n"
        "BOX = gym.spaces.Box(-1, 1, (3,), np.float32)\n"
        "SPACES = {\n"
        "    'tuple': gym.spaces.Tuple((BOX, gym.spaces.Discrete(3))),\n"
        "    'text beside': gym.spaces.Dict({'a': gym.spaces.Text(9), 'b': BOX}),\n"
        "}\n"
        "class Odd(gym.Env):\n"
        "    action_space = gym.spaces.Discrete(2)\n"
        "    def __init__(self, space): self.observation_space = SPACES[space]\n"
        "    def reset(self, *, seed=None, options=None):\n"
        "        self.steps = 0\n"
        "        return self.observation_space.sample(), {'caption': 'You begin.'}\n"
        "    def step(self, action):\n"
        "        self.steps += 1\n"
        "        return self.observation_space.sample(), 1.0, self.steps == 9, False, {'caption': 'You go on.'}\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    changes = {"view": {"kind": "leaves", "keys": ["b"]}} if space == "text beside" else {}
    result = workshop.train(environment={"id": "odd_spaces:Odd", "kwargs": {"space": space}}, **changes)
    assert result.updates > 20


def test_a_limiter_that_could_not_work_is_refused_before_the_ring_of_a_killed_run_is_touched(workshop, monkeypatch):
    workshop.train()
    touched = []
    monkeypatch.setattr(serial_run, "open_shard", lambda *arguments: touched.append(arguments))
    with pytest.raises(ConfigError, match=r"minimum_rows"):
        workshop.resume(overrides=["replay.capacity_rows=150", "budget.max_env_steps=900"])
    assert touched == []


class Killed(BaseException):
    """Ends a session as kill -9 would, but for the memory."""


@pytest.mark.parametrize(
    ("change", "lanes", "slots"),
    [
        ("replay.capacity_rows=4000", 4, 1_000),
        ("actors.count=1", 2, 1_000),
        ("actors.rollout.envs_per_actor=4", 8, 250),
        ("learner.n_steps=40", 4, 500),
        ("replay.capacity_rows=2000", 4, 500),
    ],
)
def test_after_a_kill_the_ring_is_made_again_where_settings_ask_for_one(workshop, monkeypatch, change, lanes, slots):
    collect = SerialRun._collect

    def killed_later(session, rollout, meter):
        collect(session, rollout, meter)
        if session._loop.updates > 20:
            session._save()
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(SerialRun, "_collect", killed_later)
        patched.setattr(SerialRun, "_close", lambda session: session._opened.close())
        with pytest.raises(Killed):
            workshop.train()
    (ring,) = workshop.rings.glob("*.ring")
    made, layouts = read_header(ring).created_unix_ns, []
    steps = state_of(load_checkpoint(workshop.runs / "run" / "checkpoints")).env_steps

    def noted(session, *arguments):
        collect(session, *arguments)
        layouts.append((read_header(ring).layout, read_header(ring).created_unix_ns))

    monkeypatch.setattr(SerialRun, "_collect", noted)
    result = workshop.resume(overrides=[change, "budget.max_env_steps=700"])
    layout, began = layouts[-1]
    assert result.status == "finished"
    assert 700 <= result.env_steps < 700 + 64
    assert steps < 600
    assert (layout.lanes, layout.slots) == (lanes, slots)
    assert (began == made) == (change == "replay.capacity_rows=2000"), "the same settings go on with the same ring"
