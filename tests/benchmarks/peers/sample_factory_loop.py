"""Sample Factory 2.1.1 on a Gymnasium environment, in one of its modes (runs in its own virtual environment).

``options``: ``mode`` is ``asynchronous`` (workers and a policy worker beside the learner), ``batched`` (the same, each
worker stepping whole vectors) or ``serial`` (all in one process, batched as well). ``workers`` processes with ``envs``
environments each; ``native`` gives a worker one vector environment of so many instead of single ones, or ``vectors`` 2
of half as many, between which it takes turns. ``recipe`` has settings in place of those here.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from peers.learner_cell import Measured, Order, Points, read_order, write_answer
from sample_factory.algo.runners.runner import AlgoObserver
from sample_factory.algo.utils.context import global_model_factory
from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
from sample_factory.envs.env_utils import register_env
from sample_factory.train import make_runner

_NATIVE = "native:"


class NativeCartPole(gym.Env):
    """Gymnasium's vector CartPole as one environment of E agents: what Sample Factory's batched sampler steps at once.

    A lane that ended is begun anew in the same step, as Sample Factory expects.
    """

    def __init__(self, envs: int) -> None:
        self._vector = CartPoleVectorEnv(num_envs=envs, max_episode_steps=500)
        self.observation_space = self._vector.single_observation_space
        self.action_space = self._vector.single_action_space
        self.num_agents, self.is_multiagent = envs, True
        self.render_mode = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Observations [E, 4]."""
        return self._vector.reset(seed=seed)[0], [{}] * self.num_agents

    def step(self, action: Any):
        """One step of all."""
        vector = self._vector
        observation, reward, terminated, truncated, _ = vector.step(np.asarray(action, np.int64))
        ended = terminated | truncated
        if ended.any() and hasattr(vector, "prev_done"):  # later Gymnasiums reset in the next step instead
            vector.state[:, ended] = vector.np_random.uniform(vector.low, vector.high, (4, int(ended.sum())))
            vector.steps[ended] = 0
            vector.prev_done[:] = False
            observation = vector.state.T.astype(np.float32)
        return observation, np.asarray(reward, np.float32), terminated, truncated, {}


def make_env(name: str, cfg: Any = None, env_config: Any = None, render_mode: str | None = None) -> gym.Env:
    """By the registered name; must be importable, as worker processes call it."""
    if name.startswith("NetHack"):
        from peers.sample_factory_nethack import NetHackGames

        task, _, games = name.partition(_NATIVE)
        return NetHackGames(task, int(games) if games else None)
    if name.startswith(_NATIVE):
        return NativeCartPole(int(name.removeprefix(_NATIVE)))
    return gym.make(name, render_mode=render_mode)


class _Watch(AlgoObserver):
    """Notes the runner's env steps; when the ordered time is over, answers and ends the process.

    Its own end (``train_for_seconds``) waits for every worker, which can take longer than the run.
    """

    def __init__(self, order: Order, settings: dict[str, Any]) -> None:
        self._settings, self._points = settings, Points(order)
        # CartPole pays 1 a step: the length is the return, whatever rewards are scaled by.
        self._figure = "len" if order.environment.startswith("CartPole") else "reward"

    def on_training_step(self, runner: Any, training_iteration_since_resume: int) -> None:
        points = self._points
        found = runner.policy_avg_stats.get(self._figure, [[]])[0]
        learnt = float(np.mean(found)) if len(found) else None
        points.add(runner.total_env_steps_since_resume, learnt)
        if not points.over():
            return
        reached = points.reached_seconds
        write_answer(
            Measured(points=points.all, episode_return=learnt, settings=self._settings, reached_seconds=reached)
        )
        os._exit(0)  # what it started stands in the same process group, which the benchmark ends


def train(order: Order) -> None:
    """Train until the ordered time is over."""
    options = order.options
    native, batched, serial = options["native"], options["mode"] != "asynchronous", options["mode"] == "serial"
    nethack = order.environment.startswith("NetHack")
    vectors = options.get("vectors", 1)
    name = order.environment
    if native:
        name = f"{name if nethack else ''}{_NATIVE}{options['envs'] // vectors}"
    register_env(name, make_env)
    if nethack:
        from peers.sample_factory_nethack import make_encoder

        global_model_factory().register_encoder_factory(make_encoder)
    per_worker = vectors if native else options["envs"]
    splits = 2 if per_worker > 1 and not serial else 1  # its double buffering
    # A training iteration takes whole vectors: so many gradient steps of `batch` rows each, one epoch.
    at_once = options["envs"] // splits * order.rollout if batched else order.batch
    settings = {
        "algo": "APPO",
        "env": name,
        "experiment": "cell",
        "device": "cpu",
        "seed": order.seed,
        "serial_mode": serial,
        "async_rl": not serial,
        "batched_sampling": batched,
        "num_workers": 1 if serial else options["workers"],
        "num_envs_per_worker": per_worker,
        "worker_num_splits": splits,
        "policy_workers_per_policy": 1,
        "rollout": order.rollout,
        "recurrence": 1,
        "use_rnn": False,
        "batch_size": order.batch,
        "num_batches_per_epoch": max(1, at_once // order.batch),
        "num_epochs": 1,
        "nonlinearity": order.activation,
        "normalize_input": False,
        "normalize_returns": False,
        "gamma": order.discount,
        "learning_rate": order.learning_rate,
        "save_every_sec": 1_000_000,
        "save_best_every_sec": 1_000_000,
        "log_to_file": False,
        **options.get("recipe", {}),
    }
    with tempfile.TemporaryDirectory() as folder:
        arguments = [f"--{key}={value}" for key, value in settings.items()] + [f"--train_dir={folder}"]
        arguments += ["--encoder_mlp_layers", *map(str, order.hidden)]
        parser, _ = parse_sf_args(arguments)
        _, runner = make_runner(parse_full_cfg(parser, arguments))
        runner.register_observer(_Watch(order, settings))
        if runner.init() != 0:
            raise RuntimeError("Sample Factory refused the settings")
        runner.run()


if __name__ == "__main__":
    train(read_order())
