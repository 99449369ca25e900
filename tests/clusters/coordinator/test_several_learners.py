"""Runs under Ray with two learners: one set of parameters, counters of both, a killed one, a resume."""

from __future__ import annotations

import re
import signal

import psutil
import pytest

from onibi.clusters.run_state import state_of
from onibi.platform.checkpoint import load_checkpoint
from onibi.platform.errors import ConfigError

TWO = {"placement__learners": 2, "placement__learner_cpus": 0.25}
SLABS = {
    "learner": {"kind": "appo", "rows": 4, "batch_lanes": 2, "value_loss": "mse", "normalize_reward": True},
    "replay__limiter": {"samples_per_insert": 1},
}


def checkpoint_of(workshop):
    return load_checkpoint(workshop.runs / "run" / "checkpoints")


def learnt(workshop):
    return bool(workshop.checkpoints()) and state_of(checkpoint_of(workshop)).updates > 0


def learners_of(process):
    """Processes of the run's learners."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if " ".join(child.cmdline()).startswith("ray::LearnerActor"):
                found.append(child)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow  # short forms: test_learner_team.py, tests/platform/replay/test_slab_feeds_together.py
def test_two_learners_draw_their_own_lanes_within_the_limiter_and_each_has_its_sampler_in_the_checkpoint(workshop):
    result = workshop.train(serial=False, learner__metrics_period_updates=5, **TWO)
    checkpoint = checkpoint_of(workshop)
    state = state_of(checkpoint)
    assert result.status == "finished"
    assert state.updates > 20
    # An update is a batch of 16 rows for each of the two; the samples per insert are those of both together.
    assert state.drawn_rows == 2 * 16 * state.updates
    assert state.drawn_rows <= 4 * (state.env_steps - 100) + 2 * 2 * 16 * 8
    lanes = [checkpoint.state[name]["draws"] for name in ("feed", "feed-1")]
    assert ["[0, 2]" in lanes[0], "[1, 3]" in lanes[1]] == [True, True]
    generators = [checkpoint.state[name]["sampler"]["generator"] for name in ("feed", "feed-1")]
    assert generators[0] != generators[1]
    names = {name for row in workshop.history() for name in row}
    assert {"learner/data_age_mean_updates", "learner/publish_delay_mean_seconds"} <= names
    last = workshop.history()[-1]
    assert last["actors/env_steps"] == result.env_steps
    assert {"actors/episode_return", "learner/loss"} <= set(last), "the last interval is told whole"
    delays = [
        row["learner/publish_delay_max_seconds"]
        for row in workshop.history()
        if "learner/publish_delay_max_seconds" in row
    ]
    assert all(0 < delay < 60 for delay in delays)
    assert list(workshop.rings.iterdir()) == []  # not even the file by which they met


@pytest.mark.slow  # tests/platform/replay/test_slab_feeds_together.py and test_worker_group.py are its short form
def test_two_learners_that_draw_each_row_once_share_the_lanes_and_go_on_together_in_a_resumed_run(workshop):
    result = workshop.train(serial=False, learner__metrics_period_updates=5, **{**SLABS, **TWO})
    checkpoint = checkpoint_of(workshop)
    state = state_of(checkpoint)
    assert result.status == "finished"
    # An update is 2 lanes x 4 rows of each; final rows among them are not counted, and no row is counted twice.
    assert 0.5 * 16 * state.updates < state.drawn_rows <= 16 * state.updates
    assert state.updates > 15
    assert state.drawn_rows <= state.env_steps
    assert workshop.resume(overrides=["budget.max_env_steps=1200"]).status == "finished"
    later = state_of(checkpoint_of(workshop))
    assert later.updates > state.updates + 15
    assert later.drawn_rows <= later.env_steps
    figures = [row for row in workshop.history() if "replay/left_out_rows" in row]
    assert figures[-1]["replay/left_out_rows"] == 0
    assert figures[-1]["replay/lost_rows"] == 0
    assert list(workshop.rings.iterdir()) == []


@pytest.mark.slow
def test_two_learners_with_batches_drawn_ahead_are_resumed_each_with_its_own_sampler(workshop):
    ahead = {"learner__acceleration": {"prefetch_batches": 2}}
    workshop.train(serial=False, **TWO, **ahead)
    state = state_of(checkpoint_of(workshop))
    assert 0 <= state.drawn_rows - 2 * 16 * state.updates <= 2 * 2 * 16  # those that wait count as drawn
    assert workshop.resume(overrides=["budget.max_env_steps=1200"]).status == "finished"
    later = state_of(checkpoint_of(workshop))
    assert later.updates > state.updates
    assert later.drawn_rows - state.drawn_rows >= 2 * 16 * (later.updates - state.updates)
    # How many wait at the moment of a row, none where the limiter holds the learners back.
    assert {row.get("replay/batches_ahead", 0.0) for row in workshop.history()} <= {0.0, 1.0, 2.0}
    assert any("replay/batches_ahead" in row for row in workshop.history())


@pytest.mark.slow
def test_when_one_of_two_learners_is_killed_both_go_on_from_the_last_checkpoint(workshop):
    process = workshop.start(
        serial=False,
        budget__max_env_steps=10**7,
        checkpoint__period_seconds=1.5,
        replay__capacity_rows=400_000,
        **TWO,
    )
    try:
        workshop.wait_for(
            lambda: workshop.checkpoints() and state_of(checkpoint_of(workshop)).updates > 0, 200, process
        )
        before = learners_of(process)
        assert len(before) == 2
        updates = state_of(checkpoint_of(workshop)).updates
        before[1].kill()
        workshop.wait_for(
            lambda: (
                {child.pid for child in learners_of(process)}.isdisjoint({child.pid for child in before})
                and len(learners_of(process)) == 2
            ),
            200,
            process,
        )
        workshop.wait_for(lambda: state_of(checkpoint_of(workshop)).updates > updates + 50, 200, process)
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
    finally:
        process.kill()
    assert re.search(r"learner( 1)?:? .*replaced", workshop.log_of())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"actors__rollout__envs_per_actor": 1}, r"placement.learners is 2, actors.rollout.envs_per_actor 1"),
        ({"learner__acceleration": {"compile": "graphs"}, "placement__learner_gpus": 1.0}, r"compile is graphs"),
        ({"placement__learner_gpus": 0.5}, r"learners is 2, placement.learner_gpus 0.5: each learner needs a GPU of"),
        (
            {**SLABS, "actors__rollout__envs_per_actor": 3},
            r"envs_per_actor 3: learners that draw each row once need equal shares.*a multiple of 2",
        ),
    ],
)
def test_settings_that_two_learners_cannot_share_are_refused_before_anything_starts(workshop, changes, said):
    with pytest.raises(ConfigError, match=said):
        workshop.train(serial=False, **{**TWO, **changes})
    assert not workshop.runs.exists() or not list(workshop.runs.glob("run*"))


def test_a_serial_run_refuses_several_learners(workshop):
    with pytest.raises(ConfigError, match=r"placement.learners is 2: a serial run has one"):
        workshop.train(serial=True, **TWO)
