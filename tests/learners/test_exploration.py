from __future__ import annotations

import numpy as np
import pytest

from onibi.learners.exploration import ExplorationSettings, choose_actions, epsilon_ladder
from onibi.platform.policy import LaneRange

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
