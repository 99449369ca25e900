"""The environment that stands for slow ones."""

from __future__ import annotations

import time

from gymnasium.utils.env_checker import check_env

from onibi.actors.environments.sleeping import make


def test_it_is_an_environment_that_takes_its_time():
    env = make(step_seconds=0.02, episode_steps=5)
    check_env(env, skip_render_check=True)
    env.reset(seed=1)
    began = time.monotonic()
    ends = [env.step(step % 2)[2:4] for step in range(5)]
    assert time.monotonic() - began >= 5 * 0.02
    assert ends == [(False, False)] * 4 + [(False, True)]
