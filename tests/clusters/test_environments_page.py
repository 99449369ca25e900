"""The environment and the run file of docs/environments.md, used as they stand there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
import yaml

from onibi.clusters import train
from onibi.platform.errors import ConfigError
from onibi.platform.replay.log.log_reader import ReplayLog

PAGE = Path(__file__).resolve().parents[2] / "docs" / "environments.md"
TEXT = PAGE.read_text(encoding="utf-8")
((MODULE,), (RUN_FILE, ATARI_FILE)) = (
    re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL) for language in ("python", "yaml")
)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Trains by the page's run file, shortened, in a folder with the page's module."""
    for text, name in ((MODULE, "mywarehouse.py"), (RUN_FILE, "mine.yaml")):
        assert text.startswith(f"# {name}")
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "rings").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(*changes, steps=2_500):
        short = (f"replay.folder={tmp_path / 'rings'}", f"budget.max_env_steps={steps}", "evaluation.episodes=8")
        overrides = [*short, "evaluation.period_env_steps=null", "tracking.enabled=false", *changes]
        return train("mine.yaml", overrides=overrides, serial=True, runs_folder=tmp_path / "runs", display=False)

    yield run
    sys.modules.pop("mywarehouse", None)


def test_the_example_trains_with_captions_success_and_masks(mine, tmp_path):
    result = mine()
    assert result.updates > 100
    assert {row.key for row in result.captions} == {"You grab the parcel.", "You bring the parcel to the gate."}
    assert result.paid.sum() > 0
    assert result.evaluations[-1]["success_rate"] == result.evaluations[-1]["judged"]
    log = ReplayLog(result.folder / "replay")
    rows = log.dataset().to_table(columns=["role", "action", "observation.action_mask"])
    steps = rows.filter(pc.equal(rows["role"], 0))
    taken, masks = steps["action"].to_pylist(), steps["observation.action_mask"].to_pylist()
    assert {mask[action] for action, mask in zip(taken, masks, strict=True)} == {1}
    assert set(log.texts()["text"].to_pylist()) == {"Parcels!", "Walk on."}
    extra = [dict(each) for each in log.episodes()["extra"].to_pylist()]
    assert {each["success"] for each in extra} == {0.0, 1.0}, "some episodes end at the limit, some at the gate"


def test_leaves_that_are_not_wanted_are_left_out_as_the_page_says(mine):
    result = mine(
        "view={kind: leaves, keys: [place, loaded, action_mask]}", "captioner={kind: text, leaf: sign}", steps=300
    )
    names = {column.name for column in ReplayLog(result.folder / "replay").spec.observation}
    assert names == {f"observation.{name}" for name in ("place", "loaded", "action_mask", "caption_counts")}
    assert {row.key for row in result.captions} == {"Parcels!", "Walk on."}


def test_a_range_of_values_must_follow_from_somewhere(mine):
    unbounded = (
        "rewards.extrinsic={clip: null, episode_low: null, episode_high: null}",
        "rewards.intrinsic=null",
        "captioner.kind=none",
    )
    with pytest.raises(ConfigError, match=r"learner\.support: the bounds of the return"):
        mine(*unbounded, steps=300)
    assert mine(*unbounded, "learner.support={low: 0, high: 1}", steps=300).env_steps >= 300


def test_the_fragment_for_continuous_actions_is_one_that_a_run_file_may_hold(mine, tmp_path):
    assert "extends: pendulum-appo" in TEXT
    document = {"extends": "pendulum-appo", "rewards": {"extrinsic": {"scale": 1.0}}}
    document["environment"] = {"id": "MountainCarContinuous-v0"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    assert mine(steps=1_500).env_steps >= 1_500


@pytest.mark.slow
def test_the_fragment_for_atari_trains_and_is_evaluated_in_points(mine, tmp_path):
    pytest.importorskip("ale_py")
    (tmp_path / "mine.yaml").write_text(ATARI_FILE, encoding="utf-8")
    result = mine(
        "environment.kwargs={img_height: 24, img_width: 24}",
        "environment.max_episode_steps=40",
        "learner.batch_size=8",
        "learner.network.hidden=[32]",
        "replay.limiter.minimum_rows=64",
        "replay.capacity_rows=2000",
        "replay.log.enabled=true",
        steps=250,
    )
    assert result.updates > 50
    (evaluation,) = result.evaluations
    assert (len(evaluation["returns"]), evaluation["length_mean"]) == (8, 40)
    log = ReplayLog(result.folder / "replay")
    (frame,) = log.spec.observation
    assert (frame.shape, frame.dtype) == ((1, 24, 24), "uint8"), "each frame is stored once"


def test_random_play_hardly_ever_solves_the_example():
    settings = yaml.safe_load(RUN_FILE)["environment"]
    names: dict[str, Any] = {}
    exec(MODULE, names)
    rng, won = np.random.default_rng(0), 0
    for _ in range(400):
        game = names["Warehouse"](**settings["kwargs"])
        observation, _ = game.reset()
        for _ in range(settings["max_episode_steps"]):
            observation, _, home, _, _ = game.step(int(rng.choice(np.flatnonzero(observation["action_mask"]))))
            if home:
                won += 1
                break
    assert 0 < won < 40, "else its learning curve shows nothing"
