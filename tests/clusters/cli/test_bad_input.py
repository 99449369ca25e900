"""What a user can get wrong: one clear message each, the right exit code, and nothing left half made."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml

from onibi.clusters.run_plan import plan_run
from onibi.clusters.run_settings import RunSettings
from onibi.platform.config import read_settings
from onibi.platform.errors import NoCaptionsError

CORRIDOR = "onibi.actors.environments.corridor:make"


def set_in(settings, path, value):
    *sections, key = path.split(".")
    for name in sections:
        settings = settings.setdefault(name, {})
    settings[key] = value


@pytest.fixture
def onibi(workshop, monkeypatch, capfd):
    """The command line in this process (imports are paid once): (exit code, stderr)."""
    from typer.testing import CliRunner

    from onibi.clusters.cli.main import app

    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments):
        result = CliRunner().invoke(app, [*arguments, "--runs-folder", str(workshop.runs)])
        assert result.stdout == "", result.stdout
        return result.exit_code, result.stderr

    return call


CASES = {
    "unknown key": ({"learner.learnin_rate": 1e-3}, 2, ["learner.learnin_rate", "learning_rate"]),
    "wrong value": ({"seed": "one"}, 2, ["seed"]),
    "two faults at once": ({"seed": "one", "actors.count": 0}, 2, ["seed", "actors", "count is 0"]),
    "unknown environment": ({"environment.id": "CartPole-v9x"}, 2, ["environment.id", "CartPole-v9x", "CartPole-v1"]),
    "environment that cannot be imported": ({"environment.id": "no_such_pkg.envs:make"}, 2, ["no_such_pkg"]),
    "wrong environment arguments": ({"environment.kwargs": {"doors": 3}}, 2, ["doors=3", "environment.kwargs"]),
    "captioner without its observation": ({"captioner": {"kind": "nethack"}}, 2, ["captioner.kind", "message", "info"]),
    "reward for captions without captions": ({"captioner": {"kind": "none"}}, 2, ["rewards.intrinsic", "captioner"]),
    "judge without captions": (
        {"rewards.intrinsic": None, "evaluation.judge": "intrinsic_return"},
        2,
        ["evaluation.judge", "episode_return"],
    ),
    "view without its observation": ({"view": {"kind": "nethack"}}, 2, ["view.kind=nethack", "blstats", "leaves"]),
    "continuous actions": (
        {"environment": {"id": "Pendulum-v1"}, "captioner": {"kind": "none"}, "rewards.intrinsic": None},
        2,
        ["Pendulum-v1", "Discrete"],
    ),
    "observation without fixed width": ({"environment": {"id": "{module}:Talker"}}, 2, ["words", "no fixed width"]),
    "broken regex": ({"annotator.lexicon": "{folder}/broken.yaml"}, 2, ["broken.yaml", "rule 2", "(unclosed"]),
    "no such lexicon": ({"annotator.lexicon": "nethak"}, 2, ["nethak", "nethack"]),
    "limiter that could lock": (
        {"replay.limiter.tolerance_rows": 1.0},
        2,
        ["replay.limiter.tolerance_rows", "2 x max"],
    ),
    "minimum beyond the ring": ({"replay.limiter.minimum_rows": 1_900}, 2, ["minimum_rows", "capacity_rows"]),
    "support without bounds": (
        {"learner.support": {}, "rewards.extrinsic": {"clip": None}},
        2,
        ["learner.support", "clip the reward"],
    ),
    "seed below 0": ({"seed": -1}, 2, ["seed is -1", "at least 0"]),
    "no checkpoint kept": ({"checkpoint.keep_last": 0}, 2, ["checkpoint", "keep_last is 0"]),
    "no time between checkpoints": ({"checkpoint.period_seconds": 0.0}, 2, ["period_seconds is 0.0"]),
    "ring without rows": ({"replay.capacity_rows": 0}, 2, ["capacity_rows is 0"]),
    "ring without a folder": ({"replay.folder": ""}, 2, ["folder is empty"]),
    "less than no CPU": ({"placement.rollout_cpus": -1.0}, 2, ["placement", "rollout_cpus is -1.0"]),
    "no threads": ({"placement.learner_threads": 0}, 2, ["learner_threads is 0"]),
    "CPUs as a resource of their own": ({"placement.learner_resources": {"CPU": 1.0}}, 2, ["'CPU'", "custom"]),
    "no budget": ({"budget.max_env_steps": None}, 2, ["budget", "null"]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_setting_is_one_message_and_starts_nothing(case, workshop, onibi, tmp_path, monkeypatch):
    changes, code, words = CASES[case]
    (tmp_path / "talker_envs.py").write_text(
        "import gymnasium as gym\n"
        "class Talker(gym.Env):\n"
        "    observation_space = gym.spaces.Dict({'words': gym.spaces.Sequence(gym.spaces.Discrete(9))})\n"
        "    action_space = gym.spaces.Discrete(2)\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    rules = [{"match": each, "label": "helpful", "why": "a test"} for each in ("^You", "(unclosed")]
    lexicon = {"goal": "Hear something new.", "unmatched": "unhelpful", "rules": rules}
    (tmp_path / "broken.yaml").write_text(yaml.safe_dump(lexicon), encoding="utf-8")
    settings = workshop.settings()
    for path, value in changes.items():
        text = yaml.safe_dump(value).replace("{module}", "talker_envs").replace("{folder}", str(tmp_path))
        set_in(settings, path, yaml.safe_load(text))
    config = tmp_path / "wrong.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    found, said = onibi("train", str(config), "--serial")
    assert (found, said.count("onibi: ")) == (code, 1), said
    assert said.startswith("onibi: ")
    assert "Traceback" not in said
    for word in words:
        assert word in said
    assert not workshop.runs.exists(), "no run folder for a run that never was"
    assert list(workshop.rings.iterdir()) == []


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("cartpole-dqm", ["'cartpole-dqm'", "cartpole-dqn"]),
        ("{folder}/missing.yaml", ["missing.yaml"]),
        ("{folder}/torn.yaml", ["torn.yaml:3", "not YAML"]),
        ("{folder}/list.yaml", ["list.yaml", "mapping"]),
        ("{folder}/bytes.yaml", ["bytes.yaml"]),
        ("{folder}/folder.yaml", ["folder.yaml"]),
    ],
)
def test_a_config_that_cannot_be_read_is_one_message(what, words, onibi, tmp_path, workshop):
    (tmp_path / "torn.yaml").write_text("seed: 1\nenvironment: {id: [\n", encoding="utf-8")
    (tmp_path / "list.yaml").write_text("- seed\n", encoding="utf-8")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00seed")
    (tmp_path / "folder.yaml").mkdir()
    found, said = onibi("train", what.format(folder=tmp_path))
    assert (found, said.count("onibi: ")) == (2, 1), said
    for word in words:
        assert word in said
    assert not workshop.runs.exists()


def test_a_checkpoint_that_is_not_there_is_a_wrong_name(onibi, workshop):
    result = workshop.train()
    found, said = onibi("evaluate", "run", "--checkpoint", "5")
    assert found == 2
    assert f"run has no checkpoint of that many env steps; there are {result.env_steps}." in said


def test_an_unknown_run_to_resume_is_one_message(onibi):
    found, said = onibi("resume", "nowhere")
    assert found == 2
    assert said.startswith("onibi: run 'nowhere': not found")


def test_captions_that_never_come_end_the_run_with_what_the_infos_hold(onibi, workshop, tmp_path):
    settings = workshop.settings(captioner={"kind": "info", "give_up_calls": 20})
    settings["environment"] = {"id": "CartPole-v1"}
    config = tmp_path / "silent.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    found, said = onibi("train", str(config), "--serial")
    assert found == 1
    message = [line for line in said.splitlines() if line.startswith("onibi: ")]
    assert len(message) == 1
    assert "no info['caption'] in the first 20 vector steps" in message[0]
    assert "captioner.kind=none" in message[0]
    assert list(workshop.rings.iterdir()) == []


def test_only_the_first_players_of_a_run_must_hear_something_soon(workshop):
    """A trained one may have learnt to be silent, in an evaluation or in place of one that died."""
    settings = workshop.settings(captioner={"kind": "info", "give_up_calls": 20, "info_key": "nothing"})
    plan = plan_run(read_settings(RunSettings, settings))
    for patient in (
        plan.make_evaluation(None, 2, 0),
        plan.make_rollout(0, 2, 0),
        replace(plan, session=1).make_rollout(0, 1, 0),
    ):
        for _ in range(5):
            patient.collect(lambda _version: None)
        patient.close()
    first = plan.make_rollout(0, 1, 0)
    first.collect(lambda _version: None)
    first.collect(lambda _version: None)
    with pytest.raises(NoCaptionsError, match="in the first 20 vector steps"):
        first.collect(lambda _version: None)
    first.close()


@pytest.mark.slow
def test_captions_that_never_come_end_a_run_under_ray_though_rows_have_come(workshop):
    with pytest.raises(NoCaptionsError, match="in the first 40 vector steps"):
        workshop.train(
            serial=False, captioner={"kind": "info", "give_up_calls": 40, "info_key": "nothing"}, actors__count=1
        )


def test_a_gpu_that_is_not_there_is_one_message_and_leaves_no_run(onibi, workshop, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    config = tmp_path / "gpu.yaml"
    config.write_text(yaml.safe_dump({**workshop.settings(), "placement": {"learner_gpus": 1.0}}), encoding="utf-8")
    found, said = onibi("train", str(config), "--serial")
    assert (found, said.count("onibi: ")) == (2, 1), said
    assert "placement.learner_gpus is 1.0" in said
    assert "Traceback" not in said
    assert [*workshop.runs.iterdir(), *workshop.rings.iterdir()] == []


@pytest.fixture
def small_memory(tmp_path):
    """A memory file system of 1 MiB."""
    folder = tmp_path / "memory"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "onibi-test", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip("a file system can be mounted by root alone")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_too_little_shared_memory_is_told_with_the_sums_and_leaves_no_run(onibi, workshop, tmp_path, small_memory):
    settings = workshop.settings(replay__capacity_rows=100_000)
    settings["replay"]["folder"] = str(small_memory)
    config = tmp_path / "large.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    found, said = onibi("train", str(config), "--serial")
    assert found == 1
    message = [line for line in said.splitlines() if line.startswith("onibi: ")]
    assert len(message) == 1
    assert "MiB" in message[0]
    assert "replay.capacity_rows" in message[0]
    assert "Traceback" not in said
    assert list(small_memory.iterdir()) == []
    assert not list(workshop.runs.glob("*")), "no run folder for a run that never was"


def test_a_disk_that_fills_up_leaves_whole_checkpoints_only_and_one_message(workshop, small_memory, tmp_path):
    """The runs folder lies on 1 MiB; a learner's checkpoint is smaller, and several are kept."""
    from onibi.platform.checkpoint import list_checkpoints, load_checkpoint

    settings = workshop.settings(budget__max_env_steps=1_500)
    settings["checkpoint"] = {"period_seconds": 0.05, "keep_last": 50}
    config = tmp_path / "full.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    finished = subprocess.run(
        [sys.executable, "-m", "onibi", "train", str(config), "--serial", "--runs-folder", str(small_memory)],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=200,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
    )
    assert "Traceback" not in finished.stderr, finished.stderr[-3_000:]
    assert finished.returncode == 0, "a full disk does not end a run"
    assert "No space left" in finished.stderr or "free" in finished.stderr
    checkpoints = small_memory / "full" / "checkpoints"
    for entry in list_checkpoints(checkpoints):
        assert entry.created_at is not None
        assert load_checkpoint(checkpoints, entry.step).step == entry.step
    assert not list(checkpoints.glob(".*")), "nothing half written"
    assert list(workshop.rings.iterdir()) == []
