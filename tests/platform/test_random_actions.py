from __future__ import annotations

import numpy as np
from scipy import stats

from onibi.platform.random_actions import random_actions
from onibi.platform.spec import ACTION_MASK, ArraySpec, ReplaySpec

DISCRETE = ReplaySpec(observation=(ArraySpec(name="observation", dtype="float32"),), actions=4)
BOX = ReplaySpec(
    observation=(ArraySpec(name="observation", dtype="float32"),),
    actions=0,
    action=ArraySpec(name="action", dtype="float32", shape=(3,)),
    action_low=(-2.0, -np.inf, 0.0),
    action_high=(2.0, np.inf, 0.5),
)


def test_discrete_actions_are_equally_likely_and_say_so():
    actions, log_probs = random_actions(DISCRETE, {"observation": np.zeros(20_000)}, np.random.default_rng(0))
    assert stats.chisquare(np.bincount(actions, minlength=4)).pvalue > 1e-3
    np.testing.assert_allclose(log_probs, -np.log(4), rtol=1e-6)
    assert log_probs.dtype == np.float32


def test_masked_actions_are_left_out_and_the_others_are_equally_likely():
    mask = np.tile(np.array([1, 0, 1, 1], np.uint8), (20_000, 1))
    mask[0] = 0  # allows none: all are
    actions, log_probs = random_actions(
        DISCRETE, {"observation": np.zeros(20_000), ACTION_MASK: mask}, np.random.default_rng(0)
    )
    counts = np.bincount(actions[1:], minlength=4)
    assert counts[1] == 0
    assert stats.chisquare(counts[[0, 2, 3]]).pvalue > 1e-3
    np.testing.assert_allclose(log_probs[1:], -np.log(3), rtol=1e-6)
    np.testing.assert_allclose(log_probs[0], -np.log(4), rtol=1e-6)


def test_box_actions_are_uniform_within_bounds_and_normal_without_and_bring_their_density():
    actions, log_probs = random_actions(BOX, {"observation": np.zeros(20_000)}, np.random.default_rng(0))
    assert actions.shape == (20_000, 3)
    assert actions.dtype == log_probs.dtype == np.float32
    wanted = (stats.uniform(-2, 4), stats.norm(), stats.uniform(0, 0.5))
    for dimension, distribution in enumerate(wanted):
        assert stats.kstest(actions[:, dimension], distribution.cdf).pvalue > 1e-3
    expected = -np.log(4) + stats.norm.logpdf(actions[:, 1].astype(np.float64)) - np.log(0.5)
    np.testing.assert_allclose(log_probs, expected, rtol=1e-4, atol=1e-4)
