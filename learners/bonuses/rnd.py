"""Random network distillation (Burda et al. 2018, arXiv 1810.12894), and NovelD (Zhang et al. 2021, NeurIPS) on it.

    error(o) = mean over features of (predictor(o) − target(o))²        RND(o) = error(o) / σ
    rnd:     RND(o′)
    noveld:  max(RND(o′) − α RND(o), 0) · 1[first visit of o′ in the episode]

Differences from the papers: the predictor is taught by each new row of replay once, not by the batches that a policy
learns from, so what is drawn often does not become familiar by that; σ is the deviation of the errors of all rows so
far, not of a return of them; what is paid for an old row is its novelty now; one value function reads the mixed reward;
NovelD's first visits are told by the bytes of the leaves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from onibi.learners.bonuses.bonus_module import ModulePlace, State
from onibi.learners.bonuses.trained_module import TrainedModule
from onibi.learners.networks.build import AutoNetworkSettings, Encoder, build_encoder, encoder_settings
from onibi.learners.networks.mlp import MlpSettings
from onibi.learners.networks.normalizer import RunningNormalizer
from onibi.platform.config import Settings
from onibi.platform.replay.row_view import RowView
from onibi.platform.replay.transition_intake import Transitions
from onibi.platform.rewards.bonus_settings import DistillationSettings, NovelDSettings, visit_column
from onibi.platform.rewards.table import RewardTable
from onibi.platform.spec import ArraySpec

_FLAT = MlpSettings(hidden=(128,), layer_norm=False, normalize_observation=True)


class FeatureNetwork(nn.Module):
    """An encoder that follows from the leaves, and layers behind it.

    Args:
        leaves: what it reads.
        widths: of the layers behind the encoder, the last one linear.
        seed: of its parameters.
    """

    def __init__(self, leaves: tuple[ArraySpec, ...], widths: tuple[int, ...], seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = build_encoder(_encoder(leaves), leaves)
            width = cast("int", self.encoder.features)
            self.layers = nn.ModuleList()
            for each in widths:
                self.layers.append(nn.Linear(width, each))
                width = each
            for module in self.modules():
                if isinstance(module, (nn.Linear, nn.Conv2d)):
                    nn.init.orthogonal_(module.weight, gain=2**0.5)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)

    def forward(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Each leaf [B, ...] → [B, widths[-1]] float32."""
        features: Tensor = self.encoder(observation)
        for layer in self.layers[:-1]:
            features = torch.relu(layer(features))
        out: Tensor = self.layers[-1](features)
        return out

    def learn_statistics(self, observation: Mapping[str, Tensor]) -> None:
        """Merge a batch into the encoder's running statistics, where it keeps any."""
        cast("Encoder", self.encoder).learn_statistics(observation)


class Distillation(nn.Module):
    """Target, predictor, and the running moments of the error."""

    def __init__(self, settings: DistillationSettings, leaves: tuple[ArraySpec, ...], seed: int) -> None:
        super().__init__()
        self.target = FeatureNetwork(leaves, (settings.features,), seed).requires_grad_(requires_grad=False)
        self.predictor = FeatureNetwork(leaves, (settings.predictor_hidden, settings.features), seed + 1)
        self.moments = RunningNormalizer(1)

    def forward(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Each leaf [B, ...] → error [B] float32."""
        with torch.no_grad():
            wanted = self.target(observation)
        difference: Tensor = self.predictor(observation) - wanted
        return difference.square().mean(dim=1)

    @property
    def scale(self) -> Tensor:
        """[] what errors are multiplied with: 1/σ; 0 before there are two rows, or while all errors are the same."""
        variance = self.moments.variance[0]
        known = (self.moments.count > 1) & (variance > 0)
        return torch.where(known, variance.clamp(min=1e-30).rsqrt(), torch.zeros_like(variance))


class RandomDistillation:
    """RND(o) of observations, its predictor taught by each new row once.

    Args:
        settings: of the networks.
        place: the ring, leaves, seed and device.
    """

    def __init__(self, settings: DistillationSettings, place: ModulePlace) -> None:
        self._network = Distillation(settings, place.leaves, place.seed % (1 << 62))
        self._leaves = tuple(leaf.name for leaf in place.leaves)
        self._training = TrainedModule(
            self._network,
            place,
            learning_rate=settings.learning_rate,
            train_rows=settings.train_rows,
            loss=self._loss,
        )

    def novelty(self, leaves: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Each leaf [*R, ...], with R of two axes, → RND [*R] float32 now."""
        shape = next(iter(leaves.values())).shape[:2]
        flat = {name: each.reshape(-1, *each.shape[2:]) for name, each in leaves.items()}
        with torch.no_grad():
            told = self._network(self._training.tensors(flat)) * self._network.scale
        novelty: NDArray[np.float32] = told.cpu().numpy().reshape(shape)
        return novelty

    def metrics(self) -> dict[str, float]:
        """The error's running mean and deviation, and those of the training."""
        moments = self._network.moments
        return {
            "error_mean": float(moments.mean[0]),
            "error_deviation": float(moments.variance[0].sqrt()) if moments.count > 0 else 0.0,
            **self._training.metrics(),
        }

    def learn(self) -> None:
        """See ``BonusModule``."""
        self._training.learn()

    def weights(self) -> dict[str, NDArray[Any]]:
        """See ``BonusModule``: actors need nothing."""
        return {}

    def state(self) -> dict[str, NDArray[Any]]:
        """See ``BonusModule``."""
        return self._training.state()

    def restore(self, state: State) -> None:
        """See ``BonusModule``."""
        self._training.restore(state)

    def _loss(self, rows: Transitions) -> Tensor:
        observation = self._training.tensors(rows.observation)
        self._network.predictor.learn_statistics(observation)
        self._network.target.learn_statistics(observation)
        error: Tensor = self._network(observation)
        self._network.moments.learn(error.detach()[:, None])
        return error.mean()


class RndModule(RandomDistillation):
    """RND(o′)."""

    def pay(self, view: RowView, table: RewardTable | None) -> NDArray[np.float32]:  # noqa: ARG002 - of the contract
        """See ``BonusModule``."""
        return self.novelty({name: view.after(name) for name in self._leaves})


class NovelDModule(RandomDistillation):
    """max(RND(o′) − α RND(o), 0) where the actor saw o′ for the first time in its episode.

    Args:
        settings, place: as above.
    """

    def __init__(self, settings: NovelDSettings, place: ModulePlace) -> None:
        super().__init__(settings, place)
        self._scale, self._column = settings.scale, visit_column(place.name)

    def pay(self, view: RowView, table: RewardTable | None) -> NDArray[np.float32]:  # noqa: ARG002 - of the contract
        """See ``BonusModule``."""
        before = self.novelty({name: view.before(name) for name in self._leaves})
        after = self.novelty({name: view.after(name) for name in self._leaves})
        return noveld(before, after, view.column(self._column), self._scale)


def noveld(
    before: NDArray[np.float32], after: NDArray[np.float32], first_visit: NDArray[np.uint8], scale: float
) -> NDArray[np.float32]:
    """max(RND(o′) − α RND(o), 0) · 1[first visit of o′ in the episode].

    Args:
        before: [...] RND(o).
        after: [...] RND(o′).
        first_visit: [...] 0 or 1.
        scale: α.
    Returns: [...] float32.
    """
    gained = np.maximum(after - np.float32(scale) * before, np.float32(0))
    return np.where(first_visit != 0, gained, np.float32(0))


def _encoder(leaves: tuple[ArraySpec, ...]) -> Settings:
    chosen = encoder_settings(AutoNetworkSettings(), leaves)
    return _FLAT if isinstance(chosen, MlpSettings) else chosen
