"""NetHack for Sample Factory as Onibi sees it: its view of the game, and its encoder for the network."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import nle  # noqa: F401 - registers the tasks
import numpy as np
import torch
from peers.learner_cell import EPISODE_STEPS
from sample_factory.model.encoder import Encoder

from onibi.actors.views.nethack import NetHackView, NetHackViewSettings
from onibi.learners.networks.nethack import NethackEncoder, NethackSettings
from onibi.platform.spec import ArraySpec

_RAW = ("blstats", "chars", "colors", "inv_oclasses", "message")


class NetHackGames(gym.Env):
    """One game, or ``games`` of them as one environment of so many agents, which Sample Factory's batched sampler steps
    at once: the view of all is then made in a few NumPy calls, as Onibi's actors make it.

    A game that ended is begun anew in the same step, as Sample Factory expects.
    """

    def __init__(self, task: str, games: int | None) -> None:
        self._alone = games is None
        options = {"max_episode_steps": EPISODE_STEPS, "observation_keys": _RAW}
        self._games = [gym.make(task, disable_env_checker=True, **options) for _ in range(games or 1)]
        self._view = NetHackView(NetHackViewSettings(), self._games[0].observation_space)
        self.observation_space = gym.spaces.Dict({spec.name: _space(spec) for spec in self._view.specs})
        self.action_space = self._games[0].action_space
        self.render_mode = None
        if not self._alone:
            self.num_agents, self.is_multiagent = len(self._games), True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Columns of the view, [E, ...] of several games."""
        observation = self._seen([game.reset()[0] for game in self._games])
        return observation, {} if self._alone else [{} for _ in self._games]

    def step(self, action: Any):
        """One step of all."""
        actions = [int(action)] if self._alone else np.asarray(action, np.int64).reshape(-1).tolist()
        raw, rewards, ends, limits = [], [], [], []
        for game, its in zip(self._games, actions, strict=True):
            observation, reward, terminated, truncated, _ = game.step(its)
            if (terminated or truncated) and not self._alone:
                observation = game.reset()[0]
            raw.append(observation)
            rewards.append(reward)
            ends.append(terminated)
            limits.append(truncated)
        seen = self._seen(raw)
        if self._alone:
            return seen, float(rewards[0]), bool(ends[0]), bool(limits[0]), {}
        return seen, np.array(rewards, np.float32), np.array(ends), np.array(limits), {}

    def _seen(self, raw: list[Any]) -> dict[str, Any]:
        columns = self._view({key: np.stack([each[key] for each in raw]) for key in _RAW})
        return {name: column[0] for name, column in columns.items()} if self._alone else columns


class OnibiEncoder(Encoder):
    """Onibi's encoder, with its default settings but for the widths and layer norm."""

    def __init__(self, cfg: Any, space: gym.spaces.Dict) -> None:
        super().__init__(cfg)
        self._dtypes = {name: torch.from_numpy(np.zeros(0, box.dtype)).dtype for name, box in space.items()}
        specs = tuple(ArraySpec(name=name, dtype=box.dtype.name, shape=box.shape) for name, box in space.items())
        settings = NethackSettings(hidden=tuple(cfg.encoder_mlp_layers), layer_norm=False)
        self.encoder = NethackEncoder(settings, specs)

    def forward(self, observation: dict[str, torch.Tensor]) -> torch.Tensor:
        """[B, features]."""
        return self.encoder(observation)

    def get_out_size(self) -> int:
        """Features."""
        return self.encoder.features

    def type_for_input_tensor(self, input_tensor_name: str) -> torch.dtype:
        """As it is stored."""
        return self._dtypes[input_tensor_name]


def make_encoder(cfg: Any, space: gym.Space) -> Encoder:
    """Must be importable, as worker processes call it."""
    return OnibiEncoder(cfg, space)


def _space(spec: ArraySpec) -> gym.spaces.Box:
    dtype = np.dtype(spec.dtype)
    low, high = (-np.inf, np.inf) if dtype.kind == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return gym.spaces.Box(low, high, spec.shape, dtype)
