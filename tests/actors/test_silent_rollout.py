"""Rollouts without captions, and the columns of final rows: where the fast path differs from the plain one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from onibi.actors.captioners.info import InfoCaptioner, InfoCaptionerSettings
from onibi.actors.captioners.none import NoCaptioner, NoCaptionerSettings
from onibi.actors.rollout import Rollout, RolloutIdentity, RolloutSettings
from onibi.actors.views.leaves import LeavesSettings, LeavesView
from onibi.platform.policy import NO_WEIGHTS, PolicyStep
from onibi.platform.spec import ROLE_FINAL, ArraySpec, ReplaySpec

MODES = list(AutoresetMode)
KEPT_IN_FINAL_ROWS = {"observation", "role", "episode_id", "step"}


class TellingPolicy:
    """Its extra column and actions are never 0, so that a 0 was put by the rollout."""

    version = NO_WEIGHTS

    def initial_state(self, envs):
        return None

    def act(self, observation, state, rng):
        envs = len(observation["observation"])
        return PolicyStep(1 + rng.integers(2, size=envs), None, {"told": np.full(envs, 7.0, np.float32)})

    def load(self, weights):
        raise AssertionError("nothing is published here")


@pytest.fixture
def silent_rollout(scripted):
    """Makes a rollout over scripted environments without words, paid even where they are only reset."""

    class Wordless(scripted[0]):
        def reset(self, **options):
            return super().reset(**options)[0], {}

        def step(self, action):
            return (*super().step(action)[:4], {})

    def make(mode: AutoresetMode, captioner, envs: int = 5) -> Rollout:
        env = SyncVectorEnv(
            [lambda lane=lane: Wordless(lane, mode is not AutoresetMode.SAME_STEP) for lane in range(envs)],
            copy=False,
            autoreset_mode=mode,
        )
        step = env.step

        def paying(actions):
            observation, reward, *rest = step(actions)
            return (observation, np.full_like(reward, 3.0), *rest)

        env.step = paying
        spec = ReplaySpec(
            observation=(ArraySpec(name="observation", dtype="float32", shape=(4,)),),
            actions=3,
            keys_per_caption=1,
            extra=(ArraySpec(name="told", dtype="float32"),),
        )
        return Rollout(
            env,
            LeavesView(LeavesSettings(), env.single_observation_space),
            captioner,
            TellingPolicy(),
            spec,
            RolloutSettings(envs_per_actor=envs, fragment_steps=9, fragment_seconds=0.0),
            RolloutIdentity(actor=1, incarnation=1, next_sequence=0, seed=3),
            "wordless",
        )

    return make


def taken(rollout: Rollout, fragments: int):
    """Copies of the committed rows of some fragments."""
    found = []
    for _ in range(fragments):
        fragment = rollout.collect(lambda version: None)
        columns = {name: column.copy() for name, column in fragment.columns.items()}
        found.append(dataclasses.replace(fragment, columns=columns))
    rollout.close()
    return found


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_a_captioner_that_never_speaks_costs_nothing_and_changes_nothing(mode, silent_rollout):
    class Mute(NoCaptioner):
        def captions(self, raw, infos):
            raise AssertionError("asked for captions, though it never has any")

    deaf = taken(silent_rollout(mode, Mute(NoCaptionerSettings())), 6)
    hearing = taken(silent_rollout(mode, InfoCaptioner(InfoCaptionerSettings())), 6)
    for one, other in zip(deaf, hearing, strict=True):
        assert one.rows_per_lane.tolist() == other.rows_per_lane.tolist()
        assert one.episodes == other.episodes
        assert one.env_steps == other.env_steps
        assert one.columns.keys() == other.columns.keys()
        for lane, rows in enumerate(one.rows_per_lane):
            for name, column in one.columns.items():
                assert np.array_equal(column[lane, : rows + 1], other.columns[name][lane, : rows + 1]), name
    assert sum(len(fragment.episodes) for fragment in deaf) > 10


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_final_rows_hold_nothing_of_a_step(mode, silent_rollout):
    """Also where the lane's row was written like the others' and the fragment begins with it."""
    finals = 0
    for fragment in taken(silent_rollout(mode, NoCaptioner(NoCaptionerSettings())), 8):
        for lane, rows in enumerate(fragment.rows_per_lane):
            final = fragment.columns["role"][lane, :rows] == ROLE_FINAL
            finals += int(final.sum())
            for name, column in fragment.columns.items():
                there = column[lane, :rows]
                if name not in KEPT_IN_FINAL_ROWS:
                    assert not there[final].any(), name
                if name in ("action", "reward", "told"):
                    assert there[~final].all(), name
            for name, column in fragment.columns.items():
                assert name in KEPT_IN_FINAL_ROWS or not column[lane, rows].any(), "the head is no step either"
    assert finals > 10


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_returns_leave_out_what_a_reset_step_pays(mode, silent_rollout):
    episodes = [
        episode
        for fragment in taken(silent_rollout(mode, NoCaptioner(NoCaptionerSettings())), 8)
        for episode in fragment.episodes
    ]
    assert len(episodes) > 10
    assert all(episode.episode_return == 3.0 * episode.length for episode in episodes)
