"""CleanRL's own dqn.py on a MinAtar game, with Onibi's network for its QNetwork; runs in CleanRL's environment.

    python -m peers.cleanrl_run ORDER.json ANSWER.json

The script is run as it lies in the package; its class QNetwork alone is left out and ours put in its place, for the
comparison asks for the same network.
"""

from __future__ import annotations

import ast
import json
import os
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import nn

_ID = "OnibiMinAtar-v0"
_UPDATE_STEPS = 4  # env steps for each gradient step: 8 samples an insert, batches of 32


def network_class(mapping: dict[str, Any]) -> type[nn.Module]:
    """A QNetwork as CleanRL's script makes one, which is Onibi's by these settings."""
    from onibi.learners.networks.build import build_q_network
    from onibi.learners.networks.cnn import CnnSettings
    from onibi.learners.support import SupportSettings
    from onibi.learners.value_losses import build_value_head
    from onibi.platform.config import read_settings
    from onibi.platform.spec import ArraySpec, ReplaySpec

    class QNetwork(nn.Module):
        def __init__(self, envs: Any) -> None:
            super().__init__()
            shape = envs.single_observation_space.shape
            leaf = ArraySpec(name="observation", dtype="uint8", shape=shape, low=0.0, high=1.0)
            spec = ReplaySpec(observation=(leaf,), actions=int(envs.single_action_space.n))
            head = build_value_head("huber", SupportSettings(), None, None, None)
            settings = read_settings(CnnSettings, mapping)
            seed = int(torch.randint(2**31, ()))
            self.network = build_q_network(settings, spec, head, dueling=False, seed=seed)

        def forward(self, observation: torch.Tensor) -> torch.Tensor:
            features = self.network.encoder({"observation": observation.to(torch.uint8)})
            return self.network.head(features).squeeze(-1)

    return QNetwork


def train(order: dict[str, Any]) -> nn.Module:
    """Run the script. Returns: its network at the end."""
    found = find_spec("cleanrl")
    assert found is not None and found.submodule_search_locations
    path = Path(next(iter(found.submodule_search_locations))) / "dqn.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kept = [node for node in tree.body if not (isinstance(node, ast.ClassDef) and node.name == "QNetwork")]
    assert len(kept) == len(tree.body) - 1, "the script has another network class now"
    tree.body = kept
    sys.argv = [
        "dqn.py",
        *("--env-id", _ID, "--seed", str(order["seed"]), "--total-timesteps", str(order["frames"])),
        *("--buffer-size", str(order["capacity_rows"]), "--learning-starts", str(order["minimum_rows"])),
        *(
            "--learning-rate",
            str(order["learning_rate"]),
            "--batch-size",
            "32",
            "--train-frequency",
            str(_UPDATE_STEPS),
        ),
        *(
            "--target-network-frequency",
            str(order["target_updates"] * _UPDATE_STEPS),
            "--gamma",
            str(order["discount"]),
        ),
        *(
            "--start-e",
            "1.0",
            "--end-e",
            "0.1",
            "--exploration-fraction",
            str(order["exploring_steps"] / order["frames"]),
        ),
        *("--cuda", "false"),
    ]
    names = {"__name__": "__main__", "__file__": str(path), "QNetwork": network_class(order["network"])}
    exec(compile(tree, str(path), "exec"), names)
    network: nn.Module = names["q_network"]
    return network


def returns_of(network: nn.Module, episodes: int) -> list[float]:
    """Returns of greedy episodes on games that training has not seen."""
    env, found = gym.make(_ID), []
    for episode in range(episodes):
        observation, _ = env.reset(seed=10_000 + episode)
        total, over = 0.0, False
        while not over:
            with torch.no_grad():
                action = int(network(torch.as_tensor(np.asarray(observation))[None]).argmax())
            observation, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
        found.append(total)
    return found


def main() -> None:
    """Train, play, answer."""
    order = json.loads(Path(sys.argv[1]).read_text())
    answer = Path(sys.argv[2]).absolute()
    from onibi.actors.environments.minatar import make

    torch.set_num_threads(1)
    gym.register(
        _ID,
        entry_point=lambda: make(**order["environment"]),
        max_episode_steps=order["max_episode_steps"],
    )
    with tempfile.TemporaryDirectory() as folder:  # the script writes into the folder that it is called in
        os.chdir(folder)
        began = time.monotonic()
        network = train(order)
        seconds = time.monotonic() - began
        returns = returns_of(network, order["episodes"])
        answer.write_text(json.dumps({"return": float(np.mean(returns)), "episodes": len(returns), "seconds": seconds}))


if __name__ == "__main__":
    main()
