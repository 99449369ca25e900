from __future__ import annotations

import numpy as np
import pytest

from onibi.learners.reward_normalizer import RewardNormalizer


def stream(lanes, rows, seed):
    """Rewards, used and begins [lanes, rows] of episodes with final rows."""
    rng = np.random.default_rng(seed)
    final = rng.random((lanes, rows)) < 0.15
    final[:, 0] = False
    begins = np.zeros_like(final)
    begins[:, 0], begins[:, 1:] = True, final[:, :-1]
    reward = np.where(final, 0.0, rng.normal(loc=2.0, size=final.shape)).astype(np.float32)
    return reward, ~final, begins


def plain_returns(reward, used, begins, discount):
    found = []
    for lane in range(len(reward)):
        current = 0.0
        for row in range(reward.shape[1]):
            current = (0.0 if begins[lane, row] else discount * current) + float(reward[lane, row])
            if used[lane, row]:
                found.append(current)
    return found


def test_two_steps_by_hand():
    normalizer = RewardNormalizer(0.5)
    reward = np.array([[1.0, 3.0]], np.float32)
    normalizer.learn(reward, np.ones((1, 2), bool), np.array([[True, False]]), np.array([0]))
    scaled = normalizer.scale(reward)
    # G = 1, 3.5; deviation 1.25
    np.testing.assert_allclose(scaled, reward / 1.25, rtol=1e-5)
    assert reward.tolist() == [[1.0, 3.0]]


@pytest.mark.parametrize("cut", [1, 7, 16])
def test_returns_go_on_from_slab_to_slab_whatever_lanes_a_slab_brings(cut):
    reward, used, begins = stream(6, 48, 0)
    normalizer = RewardNormalizer(0.9)
    rng = np.random.default_rng(1)
    position = np.zeros(6, int)
    while (position < 48).any():
        lanes = np.sort(rng.permutation(np.flatnonzero(position < 48))[:3])
        for lane in lanes:  # lanes may stand at different rows
            part = np.s_[lane : lane + 1, position[lane] : position[lane] + cut]
            normalizer.learn(reward[part], used[part], begins[part], np.array([lane]))
        position[lanes] += cut
    expected = np.std(plain_returns(reward, used, begins, 0.9))
    assert normalizer.deviation == pytest.approx(expected, rel=1e-6)


def test_many_lanes_at_once_are_what_they_are_one_by_one():
    reward, used, begins = stream(5, 40, 3)
    together, apart = RewardNormalizer(0.97), RewardNormalizer(0.97)
    together.learn(reward, used, begins, np.arange(5))
    for lane in range(5):
        apart.learn(reward[[lane]], used[[lane]], begins[[lane]], np.array([lane]))
    assert together.deviation == pytest.approx(apart.deviation, rel=1e-9)
    assert together.deviation == pytest.approx(np.std(plain_returns(reward, used, begins, 0.97)), rel=1e-6)


def test_two_pieces_of_a_lane_in_one_slab_follow_each_other():
    reward, used, begins = stream(2, 20, 7)
    apart, together = RewardNormalizer(0.9), RewardNormalizer(0.9)
    apart.learn(reward, used, begins, np.arange(2))
    # lane 0 in one piece of 10 rows and another, lane 1 likewise
    halves = [np.concatenate([each[lane, :].reshape(2, 10) for lane in (0, 1)]) for each in (reward, used, begins)]
    together.learn(*halves, np.array([0, 0, 1, 1]))
    assert together.deviation == pytest.approx(apart.deviation, rel=1e-9)
    np.testing.assert_allclose(together.lane_returns, apart.lane_returns)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_reward_that_is_not_finite_is_left_out_and_its_lane_begins_anew(bad):
    reward, used, begins = stream(3, 30, 5)
    hurt, clean = RewardNormalizer(0.9), RewardNormalizer(0.9)
    with_bad = reward.copy()
    with_bad[1, 10], used[1, 10], begins[1, 11] = bad, True, True
    hurt.learn(with_bad, used, begins, np.arange(3))
    left_out = used.copy()
    left_out[1, 10] = False
    clean.learn(reward, left_out, begins, np.arange(3))
    assert hurt.deviation == pytest.approx(clean.deviation, rel=1e-12)
    assert hurt.count == clean.count
    begins[1, 11] = False  # without an episode's end behind it the lane still begins anew
    hurt.learn(with_bad, used, begins, np.arange(3))
    assert np.isfinite(hurt.lane_returns.numpy()).all()
    assert np.isfinite(hurt.deviation)


def test_an_outlier_is_clipped_to_ten_deviations():
    normalizer = RewardNormalizer(0.0)
    reward = np.zeros((1, 1000), np.float32)
    reward[0, -1] = 1000.0
    normalizer.learn(reward, np.ones((1, 1000), bool), np.ones((1, 1000), bool), np.array([0]))
    assert normalizer.scale(reward)[0, -1] == 10.0


def test_a_restored_one_goes_on_as_the_first_would():
    reward, used, begins = stream(4, 30, 5)
    first = RewardNormalizer(0.9)
    first.learn(reward[:, :20], used[:, :20], begins[:, :20], np.arange(4))
    second = RewardNormalizer(0.9)
    second.load_state_dict(first.state_dict())
    second.lane_returns = first.lane_returns
    rest = (reward[:, 20:], used[:, 20:], begins[:, 20:], np.arange(4))
    first.learn(*rest)
    second.learn(*rest)
    assert first.deviation == second.deviation
    np.testing.assert_array_equal(first.scale(rest[0]), second.scale(rest[0]))
