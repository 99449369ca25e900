"""Whole runs whose caption rewards are learnt: serial and under Ray, interrupted and resumed."""

from __future__ import annotations

import numpy as np
import pytest

from onibi.clusters import evaluate
from onibi.platform.checkpoint import load_checkpoint
from onibi.platform.errors import ConfigError

LEXICON = """
goal: Walk on.
unmatched: unhelpful
rules:
  - {match: '^You enter|^You reach', label: helpful, why: it goes on}
"""


@pytest.fixture
def lexicon(tmp_path):
    path = tmp_path / "walk.yaml"
    path.write_text(LEXICON, encoding="utf-8")
    return {"kind": "lexicon", "lexicon": str(path)}


def learnt(kind, lexicon, **changes):
    few = {"minimum_keys": 3, **({"minimum_pairs": 4} if kind == "ranking" else {})}
    model = {
        "period_env_steps": 100,
        "period_seconds": 0.0,
        "label_batch": 2,
        "held_out_share": 0.0,
        "members": 2 if kind == "ranking" else 1,
    }
    model |= {"learning_rate": 0.01, "steps_per_label_batch": 16, "hidden": [16]}
    return {
        "annotator": lexicon,
        "rewards__intrinsic": {"kind": kind, "coefficient": 0.1, "episode_high": 3.0, **few},
        "reward_model": model,
        "environment__kwargs": {"rooms": 5, "room_length": 2},
        **changes,
    }


def model_of(workshop, name="run"):
    return load_checkpoint(workshop.runs / name / "checkpoints", "last").tensors["reward_model"]


@pytest.mark.parametrize("kind", [pytest.param("classification", marks=pytest.mark.slow), "ranking"])
def test_a_serial_run_pays_what_its_model_has_learnt_and_repeats_bit_for_bit(workshop, lexicon, kind):
    first, _ = (workshop.train(name, **learnt(kind, lexicon)) for name in "ab")
    assert first.figures["reward_model/steps"] > 30
    assert first.figures["reward_table/paid_keys"] > 0
    assert first.paid.sum() > 0
    if kind == "classification":  # every key was labelled, and nothing is held out
        assert first.figures["reward_table/paid_keys"] == first.figures["annotation/keys_helpful"]
    (player,) = evaluate("a", runs_folder=workshop.runs, episodes=8).players
    assert player.intrinsic_return.mean > 0.05, "an evaluation is paid by what the model has learnt"
    models = [model_of(workshop, name) for name in "ab"]
    assert models[0].keys() == models[1].keys()
    assert all(np.array_equal(models[0][name], models[1][name]) for name in models[0])
    tables = [load_checkpoint(workshop.runs / name / "checkpoints", "last").tensors["learner"] for name in "ab"]
    assert all(np.array_equal(tables[0][name], tables[1][name]) for name in tables[0])


def test_settings_of_a_model_that_nothing_learns_are_told_of(workshop, lexicon, caplog):
    paid = {"kind": "retrieval", "coefficient": 0.1}
    workshop.train(annotator=lexicon, rewards__intrinsic=paid)
    assert "reward_model has settings" not in caplog.text
    workshop.train("idle", annotator=lexicon, rewards__intrinsic=paid, reward_model={"members": 3})
    assert "reward_model has settings that do nothing: rewards.intrinsic is retrieval" in caplog.text


def test_a_resumed_serial_run_goes_on_with_its_model(workshop, lexicon):
    steps = workshop.train(**learnt("classification", lexicon)).figures["reward_model/steps"]
    before = model_of(workshop)
    resumed = workshop.resume(overrides=["budget.max_env_steps=700", "reward_model.period_env_steps=1000000"])
    assert resumed.figures["reward_model/steps"] == steps  # no new label, so nothing is learnt twice …
    assert resumed.figures["reward_table/paid_keys"] > 0  # … and the table pays as it did
    assert all(np.array_equal(before[name], each) for name, each in model_of(workshop).items() if "scorer" in name)


def test_the_control_without_a_judge_has_no_model(workshop, lexicon):
    changes = learnt("ranking", lexicon)
    changes["rewards__intrinsic"]["control"] = "all_ones"
    result = workshop.train(**changes)
    assert "reward_model/steps" not in result.figures
    assert result.figures["reward_table/valued_row_share"] == 1.0


def test_a_fitted_model_that_is_not_there_stops_the_start(workshop, lexicon, tmp_path):
    changes = learnt("ranking", lexicon)
    changes["reward_model"] |= {"fitted": str(tmp_path / "nothing"), "frozen": True}
    with pytest.raises(ConfigError, match="holds no reward model"):
        workshop.train(**changes)


@pytest.mark.slow
@pytest.mark.timeout(900)  # two sessions of Ray, on a machine that may be busy
def test_a_run_under_ray_learns_its_rewards_beside_training_and_keeps_the_model(workshop, lexicon):
    first = workshop.train(serial=False, **learnt("classification", lexicon, budget__max_env_steps=4_000))
    assert first.figures["reward_model/steps"] > 0
    assert first.figures["reward_table/paid_keys"] > 0
    before = model_of(workshop)
    resumed = workshop.resume(overrides=["budget.max_env_steps=6000"])
    assert resumed.figures["reward_model/steps"] >= before["counters"][0]
    assert resumed.figures["reward_table/paid_keys"] > 0
