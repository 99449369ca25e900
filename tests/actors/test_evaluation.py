"""Evaluations: a fixed number of episodes in every lane, paid by one frozen table."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from onibi.actors import evaluation
from onibi.actors.evaluation import FrozenRewards, MixedWithRandom, PlayedEpisode, play
from onibi.platform.annotation.captions import CaptionTable
from onibi.platform.fragment import CaptionText, KeyText
from onibi.platform.policy import NO_WEIGHTS, PolicyStep, Weights, WeightsVersion
from onibi.platform.rewards.table import LABELLED, UNLABELLED, RewardTable
from onibi.platform.spec import ACTION_MASK, ArraySpec, ReplaySpec

ENVS = 3
MODES = list(AutoresetMode)


def alone(scripted, lane: int, episodes: int):
    """(return, length) of the first episodes of a lane, played alone."""
    env_class, _, choose = scripted
    env = env_class(lane)
    played = []
    for _ in range(episodes):
        observation, _ = env.reset()
        total, length, over, rains = 0.0, 0, False, 0
        while not over:
            observation, reward, terminated, truncated, info = env.step(int(choose(observation)))
            total, length, over = total + reward, length + 1, terminated or truncated
            rains += info.get("caption") == "It rains."
        played.append((total, length, rains))
    return played


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
@pytest.mark.parametrize(("episodes", "shares"), [(12, (4, 4, 4)), (13, (5, 4, 4)), (1, (1, 0, 0))])
def test_what_each_lane_plays_is_settled_before_however_short_its_episodes(
    episodes, shares, mode, scripted, make_scripted_env, make_rollout
):
    rollout = make_rollout(make_scripted_env(mode, ENVS), fragment_steps=7)
    played = play(rollout, ENVS, episodes, None)
    wanted = [each[:2] for lane in range(ENVS) for each in alone(scripted, lane, shares[lane])]
    assert [(each.episode_return, each.length) for each in played] == wanted
    assert {each.intrinsic_return for each in played} == {0.0}


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_captions_are_paid_by_the_frozen_table_also_where_training_never_met_the_text(
    power, scripted, make_scripted_env, make_rollout
):
    captions = CaptionTable(1, "info-1-numbers-normalise")
    captions.intern([CaptionText("It rains.", (KeyText("It rains."),))])
    captions.intern([CaptionText("You find 77 coins.", (KeyText("You find # coins."),))])  # same key, other text
    table = RewardTable(
        3, captions.caption_keys, np.array([0.5, 1.0], np.float32), np.array([LABELLED, LABELLED], np.uint8)
    )
    before = (len(captions), table.caption_keys.tobytes())
    rollout = make_rollout(make_scripted_env(AutoresetMode.NEXT_STEP, 1), fragment_steps=5)
    played = play(rollout, 1, 7, FrozenRewards(captions, table, power))

    env_class, _, choose = scripted
    env, wanted = env_class(0), []
    for _ in range(7):
        observation, info = env.reset()
        heard = {info["caption"]: 1} if info else {}
        paid, over = 0.0, False
        while not over:
            observation, _, terminated, truncated, info = env.step(int(choose(observation)))
            over = terminated or truncated
            key = "find" if "find" in info.get("caption", "") else info.get("caption", "")
            heard[key] = heard.get(key, 0) + 1
            paid += {"It rains.": 0.5, "find": 1.0}.get(key, 0.0) / heard[key] ** power
        wanted.append(paid)
    assert [each.intrinsic_return for each in played] == pytest.approx(wanted)
    assert max(wanted) > 1.0
    assert (len(captions), table.caption_keys.tobytes()) == before, "the frozen table stays frozen"


def test_two_evaluations_with_one_frozen_table_pay_alike(make_scripted_env, make_rollout):
    captions = CaptionTable(1, "info-1-numbers-normalise")
    captions.intern([CaptionText("It rains.", (KeyText("It rains."),))])
    table = RewardTable(1, captions.caption_keys, np.array([0.5], np.float32), np.array([LABELLED], np.uint8))
    rewards = FrozenRewards(captions, table, 1.0)
    first, second = (
        play(make_rollout(make_scripted_env(AutoresetMode.SAME_STEP, ENVS)), ENVS, 9, rewards) for _ in range(2)
    )
    assert first == second
    assert sum(each.intrinsic_return for each in first) > 0


def test_an_unlabelled_key_pays_nothing(make_scripted_env, make_rollout):
    captions = CaptionTable(1, "info-1-numbers-normalise")
    captions.intern([CaptionText("It rains.", (KeyText("It rains."),))])
    table = RewardTable(1, captions.caption_keys, np.zeros(1, np.float32), np.array([UNLABELLED], np.uint8))
    played = play(
        make_rollout(make_scripted_env(AutoresetMode.NEXT_STEP, 1)), 1, 5, FrozenRewards(captions, table, 1.0)
    )
    assert [each.intrinsic_return for each in played] == [0.0] * 5


def test_an_evaluation_that_is_stopped_gives_what_was_played(make_scripted_env, make_rollout):
    asked = []

    def should_stop():
        asked.append(1)
        return len(asked) > 2

    rollout = make_rollout(make_scripted_env(AutoresetMode.NEXT_STEP, ENVS), fragment_steps=10)
    played = play(rollout, ENVS, 1_000, None, should_stop)
    assert 3 <= len(played) <= 30


def test_an_evaluation_that_takes_long_says_once_why_it_may_never_end(
    make_scripted_env, make_rollout, monkeypatch, caplog
):
    monkeypatch.setattr(evaluation, "LONG_SECONDS", 0.0)
    rollout = make_rollout(make_scripted_env(AutoresetMode.NEXT_STEP, ENVS), fragment_steps=10)
    play(rollout, ENVS, 30, None)
    (told,) = caplog.messages
    assert "environment.max_episode_steps sets a limit" in told


def test_judges_read_their_own_figure():
    episode = PlayedEpisode(3.0, 7, 0.5, {"success": 1.0})
    assert [episode.judged_by(name) for name in ("episode_return", "intrinsic_return", "success")] == [3.0, 0.5, 1.0]
    assert PlayedEpisode(3.0, 7, 0.5, {}).judged_by("success") == 0.0


FOUR = ReplaySpec(observation=(ArraySpec(name="observation", dtype="float32"),), actions=4)
PLANE = dataclasses.replace(
    FOUR,
    actions=0,
    action=ArraySpec(name="action", dtype="float32", shape=(2,)),
    action_low=(-1.0, -1.0),
    action_high=(1.0, 1.0),
)


class Constant:
    version = NO_WEIGHTS

    def initial_state(self, envs):
        return np.zeros(envs)

    def act(self, observation, state, rng):
        return PolicyStep(action=np.full(len(state), 2), state=state + 1, extra={"logit": state})

    def load(self, weights):
        self.version = weights.version


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_a_share_epsilon_of_the_actions_is_uniformly_random(epsilon):
    envs, calls = 50, 400
    mixed = MixedWithRandom(Constant(), epsilon, FOUR)
    rng, state = np.random.default_rng(1), mixed.initial_state(envs)
    counts = np.zeros(4)
    for call in range(calls):
        acted = mixed.act({"observation": np.zeros(envs)}, state, rng)
        state = acted.state
        assert state[0] == call + 1
        assert acted.extra["logit"][0] == call
        counts += np.bincount(acted.action, minlength=4)
    share = counts / (envs * calls)
    expected = np.full(4, epsilon / 4) + np.array([0, 0, 1 - epsilon, 0])
    deviation = np.sqrt(expected * (1 - expected) / (envs * calls))
    assert (np.abs(share - expected) <= 5 * deviation).all(), (share, expected)


def test_the_random_share_keeps_to_the_mask_and_to_the_bounds_of_continuous_actions():
    rng, mask = np.random.default_rng(0), np.tile(np.uint8([1, 0, 1, 0]), (500, 1))
    leaves = {"observation": np.zeros(500), ACTION_MASK: mask}
    acted = MixedWithRandom(Constant(), 0.5, FOUR).act(leaves, np.zeros(500), rng)
    assert set(acted.action.tolist()) == {0, 2}

    class Still(Constant):
        def act(self, observation, state, rng):
            return PolicyStep(action=np.full((len(state), 2), 7.0, np.float32), state=state)

    acted = MixedWithRandom(Still(), 0.5, PLANE).act(leaves, np.zeros(500), rng)
    random = (acted.action != 7.0).any(axis=1)
    assert 200 < random.sum() < 300
    assert (np.abs(acted.action[random]) <= 1).all()


def test_weights_reach_the_policy_behind_the_mixture():
    mixed = MixedWithRandom(Constant(), 0.5, FOUR)
    mixed.load(Weights(WeightsVersion(9), {}))
    assert mixed.version == 9
