from __future__ import annotations

import numpy as np
import pytest

from onibi.learners.exploration import (
    ExplorationSettings,
    Explorer,
    annealed_epsilon,
    choose_actions,
    epsilon_ladder,
    random_among,
)
from onibi.platform.policy import LaneRange, weights_version

SETTINGS = ExplorationSettings(base=0.4, alpha=2.0, floor=0.0)


def test_sixteen_lanes_reach_from_0_4_to_0_064():
    ladder = epsilon_ladder(SETTINGS, LaneRange(0, 16, 16))
    assert ladder[0] == pytest.approx(0.4)
    assert ladder[-1] == pytest.approx(0.4**3)
    assert (np.diff(ladder) < 0).all()


def test_actors_hold_parts_of_one_ladder():
    parts = [epsilon_ladder(SETTINGS, LaneRange(first, 4, 12)) for first in (0, 4, 8)]
    np.testing.assert_array_equal(np.concatenate(parts), epsilon_ladder(SETTINGS, LaneRange(0, 12, 12)))


def test_no_lane_goes_below_the_floor():
    ladder = epsilon_ladder(ExplorationSettings(base=0.4, alpha=7.0, floor=0.05), LaneRange(0, 8, 8))
    assert ladder.min() == 0.05
    assert ladder.max() == pytest.approx(0.4)


def test_a_single_lane_takes_the_middle_of_the_ladder():
    assert epsilon_ladder(SETTINGS, LaneRange(0, 1, 1)).tolist() == pytest.approx([0.16])  # 0.4^(1 + 2·½)


@pytest.mark.parametrize("lanes", [LaneRange(-1, 2, 4), LaneRange(3, 2, 4), LaneRange(0, 0, 4)])
def test_lanes_outside_the_run_are_refused(lanes):
    with pytest.raises(ValueError, match="do not lie within"):
        epsilon_ladder(SETTINGS, lanes)


def test_each_lane_explores_as_often_as_its_epsilon_says():
    rng = np.random.default_rng(0)
    epsilon, draws, actions = np.array([0.0, 0.1, 0.5, 1.0]), 20_000, 4
    values = np.tile(np.eye(actions, dtype=np.float32)[2], (4, 1))  # action 2 is the best in every lane
    off = np.zeros(4)
    for _ in range(draws):
        off += choose_actions(values, epsilon, 0.0, rng) != 2
    expected = epsilon * (actions - 1) / actions
    assert np.abs(off / draws - expected).max() < 4 * np.sqrt(0.25 / draws)
    assert off[0] == 0


def test_softmax_actions_come_as_often_as_the_exponentials_say():
    values = np.tile(np.array([0.0, 0.2, 0.4], np.float32), (200_000, 1))
    chosen = choose_actions(values, np.zeros(1), 0.2, np.random.default_rng(0))
    shares = np.bincount(chosen, minlength=3) / len(chosen)
    expected = np.exp([0.0, 1.0, 2.0]) / np.exp([0.0, 1.0, 2.0]).sum()  # Q/τ = 0, 1, 2
    assert np.abs(shares - expected).max() < 4 * np.sqrt(0.25 / len(chosen))


@pytest.mark.parametrize("temperature", [0.0, 0.3])
def test_the_random_numbers_used_do_not_hang_on_epsilon(temperature):
    first, second = np.random.default_rng(5), np.random.default_rng(5)
    choose_actions(np.zeros((3, 4), np.float32), np.zeros(1), temperature, first)
    choose_actions(np.ones((3, 4), np.float32), np.ones(1), temperature, second)
    assert first.bit_generator.state == second.bit_generator.state


# --- annealing ---


def test_every_lane_falls_from_1_to_its_place_on_the_ladder():
    ladder = np.array([0.4, 0.0])
    assert annealed_epsilon(ladder, 0, 100).tolist() == [1.0, 1.0]
    assert annealed_epsilon(ladder, 25, 100).tolist() == pytest.approx([0.85, 0.75])  # ε + (1 − ε)·¾
    assert annealed_epsilon(ladder, 100, 100).tolist() == [0.4, 0.0]
    assert annealed_epsilon(ladder, 999, 100).tolist() == [0.4, 0.0]
    assert annealed_epsilon(ladder, 0, None).tolist() == [0.4, 0.0]


def test_an_explorer_anneals_by_the_updates_in_the_weights_version_and_a_greedy_one_never_explores():
    settings = ExplorationSettings(base=0.1, alpha=0.0, anneal_updates=200)
    explorer, greedy = (Explorer(settings, lanes, noisy=False) for lanes in (LaneRange(0, 3, 3), None))
    for each in (explorer, greedy):
        each.follow(weights_version(7, 100))  # the seventh incarnation counts on from the updates restored
    assert explorer.epsilon.tolist() == pytest.approx([0.55] * 3)  # 0.1 + 0.9·½
    assert greedy.epsilon.tolist() == [0.0]


# --- masks ---


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_masked_actions_are_never_chosen_and_allowed_ones_by_their_odds(temperature):
    rng, rows = np.random.default_rng(0), 60_000
    values = np.tile(np.array([9.0, 0.0, 1.0, 9.0], np.float32), (rows, 1))
    allowed = np.tile(np.array([0, 1, 1, 0], np.uint8), (rows, 1))
    chosen = np.bincount(choose_actions(values, np.full(rows, 0.4), temperature, rng, allowed), minlength=4) / rows
    best = 1 / (1 + np.exp(-1.0 / temperature)) if temperature else 1.0
    assert chosen[[0, 3]].tolist() == [0.0, 0.0]
    assert chosen[2] == pytest.approx(0.6 * best + 0.2, abs=0.01)


def test_random_actions_are_uniform_among_those_allowed_and_a_row_that_allows_none_allows_all():
    allowed = np.repeat(np.array([[1, 0, 1], [0, 0, 0], [0, 0, 1]], np.uint8), 30_000, axis=0)
    chosen = random_among(allowed, np.random.default_rng(0)).reshape(3, -1)
    shares = np.stack([np.bincount(row, minlength=3) / 30_000 for row in chosen])
    np.testing.assert_allclose(shares, [[0.5, 0.0, 0.5], [1 / 3, 1 / 3, 1 / 3], [0.0, 0.0, 1.0]], atol=0.012)
