from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from onibi.actors.action_fitting import ActionFitting, action_fitting
from onibi.platform.errors import SpecError

SPACE = gym.spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 10.0], np.float32))
OPEN = gym.spaces.Box(np.array([-1.0, -np.inf], np.float32), np.array([1.0, np.inf], np.float32))
ACTIONS = np.array([[-1.0, 1.0], [0.0, 0.0], [0.5, -3.0]], np.float32)


def test_rescaling_stretches_plus_minus_one_to_the_bounds():
    fit = ActionFitting(SPACE, "rescale", "env")
    assert fit(ACTIONS).tolist() == [[-2.0, 10.0], [0.0, 5.0], [1.0, 0.0]]
    assert fit.policy_bounds == ((-1.0, -1.0), (1.0, 1.0))


def test_clipping_keeps_the_environments_own_units():
    fit = ActionFitting(SPACE, "clip", "env")
    assert fit(ACTIONS).tolist() == [[-1.0, 1.0], [0.0, 0.0], [0.5, 0.0]]
    assert fit.policy_bounds == ((-2.0, 0.0), (2.0, 10.0))


def test_squashing_reaches_the_bounds_nowhere():
    fit = ActionFitting(SPACE, "squash", "env")
    np.testing.assert_allclose(fit(ACTIONS)[:, 0], 2 * np.tanh(ACTIONS[:, 0]), rtol=1e-6)
    assert fit.policy_bounds == ((-np.inf, -np.inf), (np.inf, np.inf))


@pytest.mark.parametrize("fit", ["rescale", "clip", "squash"])
def test_whatever_a_policy_gives_the_space_contains_it(fit):
    odd = gym.spaces.Box(np.float32([[-0.1, 0.3]]), np.float32([[0.7, 0.30001]]), dtype=np.float32)
    actions = np.random.default_rng(0).normal(size=(2_000, 2), scale=9).astype(np.float32)
    fitted = ActionFitting(odd, fit, "env")(actions)
    assert fitted.shape == (2_000, 1, 2)
    assert all(odd.contains(action) for action in fitted)


def test_a_dimension_without_bounds_is_clipped_or_refused():
    assert ActionFitting(OPEN, "clip", "env")(np.float32([[5.0, 99.0]])).tolist() == [[1.0, 99.0]]
    for fit in ("rescale", "squash"):
        with pytest.raises(SpecError, match="action_fit to clip"):
            ActionFitting(OPEN, fit, "env")


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [
        (np.float32, np.finfo(np.float32).max),
        (np.float64, np.finfo(np.float64).max),
        (np.float64, float(np.finfo(np.float32).max)),
        (np.float16, np.finfo(np.float16).max),
    ],
)
def test_a_bound_at_the_largest_number_is_none(dtype, bound):
    space = gym.spaces.Box(-bound, bound, (1,), dtype)
    for fit in ("rescale", "squash"):
        with pytest.raises(SpecError, match="action_fit to clip"):
            ActionFitting(space, fit, "env")
    clip = ActionFitting(space, "clip", "env")
    assert clip.policy_bounds == ((-np.inf,), (np.inf,))
    assert clip(np.float32([[9.0]])).tolist() == [[9.0]]


def test_what_no_policy_acts_in_is_refused():
    assert action_fitting(gym.spaces.Discrete(3), "rescale", "env") is None
    for space in (gym.spaces.Discrete(3, start=1), gym.spaces.MultiDiscrete([2, 2])):
        with pytest.raises(SpecError, match="env: its action space"):
            action_fitting(space, "rescale", "env")
    with pytest.raises(SpecError, match="uint8"):
        action_fitting(gym.spaces.Box(0, 255, (2,), np.uint8), "rescale", "env")
