"""CartPole with the velocities hidden is CartPole but for what is seen."""

from __future__ import annotations

import gymnasium as gym
import numpy as np

from onibi.actors.environments.factory import EnvironmentSettings, make_vector_env
from onibi.actors.environments.hidden_cartpole import make


def test_place_and_angle_are_those_of_cartpole_and_nothing_else_differs():
    hidden, whole = make(), gym.make("CartPole-v1")
    seen, full = hidden.reset(seed=3)[0], whole.reset(seed=3)[0]
    rng, ends = np.random.default_rng(0), 0
    for _ in range(300):
        assert hidden.observation_space.contains(seen)
        assert seen.dtype == np.float32
        assert seen.tolist() == full[[0, 2]].tolist()
        action = rng.integers(2)
        (seen, *rest, _), (full, *others, _) = hidden.step(action), whole.step(action)
        assert rest == others
        if rest[1] or rest[2]:
            ends += 1
            seen, full = hidden.reset()[0], whole.reset()[0]
    assert ends > 5


def test_it_is_found_by_its_import_path_and_ends_after_500_steps_or_as_told():
    path = "onibi.actors.environments.hidden_cartpole:make"
    assert make().spec.max_episode_steps == 500
    env = make_vector_env(EnvironmentSettings(id=path, max_episode_steps=3), 2)
    observation, _ = env.reset(seed=0)
    assert observation.shape == (2, 2)
    ends = [env.step(np.array([0, 1]))[3].tolist() for _ in range(3)]
    assert ends == [[False, False], [False, False], [True, True]]
    env.close()
