"""RLlib 2.60 (new API stack): APPO, IMPALA, PPO and DQN on an environment (runs in its own virtual environment).

``options``: ``workers`` env runners (0: sampling in the driver) with ``envs`` environments each; ``native`` lets a
runner step Gymnasium's vector environment; ``learners`` 0 learns in the driver's process, 1 in one of its own;
``compiled`` puts the learner's update through torch.compile; ``training_intensity`` (dqn) is drawn rows per sampled
row; ``recipe`` has settings of training in place of those here.
"""

from __future__ import annotations

import math
import time
from typing import Any

import gymnasium as gym
import ray
from peers.learner_cell import Measured, Order, Points, read_order, write_answer
from ray.rllib.algorithms.appo import APPOConfig
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.algorithms.impala import IMPALAConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

_CONFIGS = {"appo": APPOConfig, "impala": IMPALAConfig, "ppo": PPOConfig, "dqn": DQNConfig}


def train(order: Order) -> Measured:
    """Train for the ordered time."""
    options = order.options
    training: dict[str, Any] = {
        "lr": order.learning_rate,
        "gamma": order.discount,
        "train_batch_size_per_learner": order.batch,
    }
    model = {"fcnet_hiddens": list(order.hidden), "fcnet_activation": order.activation}
    if order.algorithm == "dqn":
        training |= {
            "training_intensity": options["training_intensity"],
            "num_steps_sampled_before_learning_starts": 2_000,
            "replay_buffer_config": {"type": "EpisodeReplayBuffer", "capacity": 100_000},
            "dueling": False,
            "double_q": True,
            "n_step": 1,
        }
        model |= {"head_fcnet_hiddens": []}
    else:
        model |= {"vf_share_layers": True}
        if order.algorithm == "appo":
            # Each batch is learnt from once, as by the others.
            training |= {"circular_buffer_num_batches": 1, "circular_buffer_iterations_per_batch": 1}
    training |= options.get("recipe", {})
    runners = {
        "num_env_runners": options["workers"],
        "num_envs_per_env_runner": options["envs"],
        "gym_env_vectorize_mode": gym.VectorizeMode.VECTOR_ENTRY_POINT if options["native"] else "sync",
    }
    if order.algorithm in ("appo", "impala"):
        runners["rollout_fragment_length"] = order.rollout
    config = (
        _CONFIGS[order.algorithm]()
        .environment(order.environment)
        .framework("torch", torch_compile_learner=options["compiled"])
        .env_runners(**runners)
        .learners(num_learners=options["learners"])
        .training(**training)
        .rl_module(model_config=DefaultModelConfig(**model))
        .reporting(min_time_s_per_iteration=0.5, min_sample_timesteps_per_iteration=0)
        .debugging(seed=order.seed, log_level="ERROR")
    )
    ray.init(
        num_cpus=8,  # logical: its processes are to share the cores
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=512 << 20,
    )
    algorithm = config.build_algo()
    points, episode_return, trained = Points(order), None, 0.0
    began = time.monotonic()
    while not points.over() and time.monotonic() - began < 120 + order.seconds:
        found = algorithm.train()
        sampled = found.get("env_runners", {})
        episode_return = sampled.get("episode_return_mean", episode_return)
        points.add(sampled.get("num_env_steps_sampled_lifetime"), episode_return)
        trained = found.get("learners", {}).get("__all_modules__", {}).get("num_env_steps_trained_lifetime", trained)
    settings = {
        **runners,
        **training,
        **model,
        "num_learners": options["learners"],
        "compiled": options["compiled"],
        "trained rows": float(trained),
    }
    algorithm.stop()
    ray.shutdown()
    return Measured(
        points=points.all,
        episode_return=None if episode_return is None or math.isnan(episode_return) else float(episode_return),
        settings={key: str(value) for key, value in settings.items()},
        reached_seconds=points.reached_seconds,
    )


if __name__ == "__main__":
    write_answer(train(read_order()))
