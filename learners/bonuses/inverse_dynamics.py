"""The encoder of E3B: features from which the action between two observations can be told (Pathak et al. 2017).

    φ, φ′ = encoder(o), encoder(o′)        loss = −log p(a | φ, φ′);  for continuous actions |a − f(φ, φ′)|²

So the features hold what the agent can change, and not what changes by itself. The encoder goes to the actors with the
weights; they compute the bonus (``actors/bonuses/e3b.py``).

Differences from E3B's paper (Henaff et al. 2022): taught by each new row once; the encoder is a flat one over all
leaves with a running normalisation, so that actors need no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from onibi.learners.bonuses.bonus_module import ModulePlace, State
from onibi.learners.bonuses.trained_module import TrainedModule
from onibi.learners.networks.build import as_arrays
from onibi.learners.networks.mlp import MlpEncoder, MlpSettings
from onibi.platform.replay.transition_intake import Transitions
from onibi.platform.rewards.bonus_settings import E3bSettings
from onibi.platform.spec import ROLE_STEP, ArraySpec


class FlatFeatures(nn.Module):
    """φ: all leaves side by side, normalised, through layers of ``hidden`` to ``features`` numbers."""

    def __init__(self, settings: E3bSettings, leaves: tuple[ArraySpec, ...]) -> None:
        super().__init__()
        self.encoder = MlpEncoder(
            MlpSettings(hidden=settings.hidden, layer_norm=False, normalize_observation=True), leaves
        )
        self.out = nn.Linear(self.encoder.features, settings.features)

    def forward(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Each leaf [B, ...] → [B, d] float32."""
        features: Tensor = self.out(self.encoder(observation))
        return features


class InverseModel(nn.Module):
    """φ and what tells the action of φ and φ′.

    Args:
        settings: widths.
        leaves: what φ reads.
        outputs: A logits of discrete actions, or D numbers of a continuous one.
        seed: of the parameters.
    """

    def __init__(self, settings: E3bSettings, leaves: tuple[ArraySpec, ...], outputs: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.features = FlatFeatures(settings, leaves)
            width = settings.hidden[-1]
            self.head = nn.Sequential(nn.Linear(2 * settings.features, width), nn.ReLU(), nn.Linear(width, outputs))

    def forward(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Tensor:
        """Each leaf [B, ...] → [B, outputs] float32."""
        told: Tensor = self.head(torch.cat([self.features(before), self.features(after)], dim=1))
        return told


class InverseDynamics:
    """The learner's side of an ``e3b`` bonus.

    Args:
        settings: of the encoder.
        place: the ring, leaves, seed and device.
    """

    def __init__(self, settings: E3bSettings, place: ModulePlace) -> None:
        action = place.spec.action
        self._discrete = action is None
        outputs = place.spec.actions if action is None else action.shape[0]
        self._model = InverseModel(settings, place.leaves, outputs, place.seed % (1 << 62))
        self._training = TrainedModule(
            self._model,
            place,
            learning_rate=settings.learning_rate,
            train_rows=settings.train_rows,
            loss=self._loss,
            columns=("action",),
            follow=True,
        )
        self._accuracy = float("nan")

    def learn(self) -> None:
        """See ``BonusModule``."""
        self._training.learn()

    def metrics(self) -> dict[str, float]:
        """See ``BonusModule``; ``accuracy`` is the share of actions that were told right."""
        figures = self._training.metrics()
        return figures if np.isnan(self._accuracy) else {**figures, "accuracy": self._accuracy}

    def weights(self) -> dict[str, NDArray[Any]]:
        """See ``BonusModule``: φ."""
        return as_arrays(self._model.features)

    def state(self) -> dict[str, NDArray[Any]]:
        """See ``BonusModule``."""
        return self._training.state()

    def restore(self, state: State) -> None:
        """See ``BonusModule``."""
        self._training.restore(state)

    def _loss(self, rows: Transitions) -> Tensor | None:
        steps = rows.role == ROLE_STEP
        if not steps.any():
            return None
        before = self._training.tensors({name: each[steps] for name, each in rows.observation.items()})
        after = self._training.tensors({name: each[steps] for name, each in rows.next_observation.items()})
        action = self._training.tensors({"action": rows.columns["action"][steps]})["action"]
        self._model.features.encoder.learn_statistics(before)
        told = self._model(before, after)
        if not self._discrete:
            return functional.mse_loss(told, action)
        self._accuracy = float((told.argmax(dim=1) == action).float().mean())
        return functional.cross_entropy(told, action)
