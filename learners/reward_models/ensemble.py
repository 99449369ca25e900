"""An ensemble of text scorers: parameters, gradient steps and scores of all members at once."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from onibi.learners.fused_adam import FusedAdam
from onibi.learners.reward_models.member_layers import MemberEncoder
from onibi.learners.reward_models.objectives import bradley_terry, label_cross_entropy
from onibi.learners.reward_models.settings import RewardModelSettings
from onibi.learners.reward_models.text_encoder import TextEncoder
from onibi.learners.reward_models.text_networks import MemberHead
from onibi.platform.errors import CheckpointError, NonFiniteError

log = logging.getLogger(__name__)

_SCORED_AT_ONCE = 2_048  # texts
_SKIPS_IN_A_ROW = 10
_ADAM_STATE = ("exp_avg", "exp_avg_sq", "step")


class Scorer(nn.Module):
    """Encoder and head of all members: tokens [N, B, W] → scores [N, B]."""

    def __init__(self, encoder: MemberEncoder, head: MemberHead) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, B, W] → [N, B]."""
        scores: Tensor = self.head(self.encoder(tokens))
        return scores


class Ensemble:
    """N text scorers that share nothing but the call.

    Args:
        settings: sizes and Adam's numbers.
        encoder: gives the network over tokens.
        seed: of the first parameters; member m of any ensemble of this seed starts alike.
    """

    def __init__(self, settings: RewardModelSettings, encoder: TextEncoder, seed: int) -> None:
        self.members = settings.members
        self._settings = settings
        generators = [_generator(seed, member) for member in range(settings.members)]
        network = encoder.network(generators)
        self.scorer = Scorer(network, MemberHead(generators, network.features, settings.hidden))
        self._named = dict(self.scorer.named_parameters())
        self._optimizer = FusedAdam(
            list(self._named.values()), learning_rate=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.steps = 0
        """Gradient steps so far, skipped ones included."""
        self.skipped_steps = 0
        self._skips_in_a_row = 0

    def learn_labels(
        self, tokens: NDArray[Any], label: NDArray[np.float32], weight: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """One gradient step on labels of each member's own.

        Args:
            tokens: [N, B, W].
            label: [N, B], 0 to 1.
            weight: [N, B].
        Returns: the members' losses [N].
        Raises: NonFiniteError where the tenth step in a row is not finite.
        """
        log_odds = self.scorer(torch.from_numpy(tokens))
        terms = label_cross_entropy(log_odds, torch.from_numpy(label), torch.from_numpy(weight))
        return self._step(terms.mean(dim=1))

    def learn_pairs(
        self, first: NDArray[Any], second: NDArray[Any], preference: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """One gradient step on preferences of each member's own.

        Args:
            first, second: [N, B, W] tokens.
            preference: [N, B], 1 where the first is preferred, 0, or ½ for a tie.
        Returns: the members' losses [N].
        Raises: NonFiniteError where the tenth step in a row is not finite.
        """
        scores = self.scorer(torch.from_numpy(np.concatenate([first, second], axis=1)))
        of_first, of_second = scores.chunk(2, dim=1)
        terms = bradley_terry(of_first, of_second, torch.from_numpy(preference))
        return self._step(terms.mean(dim=1))

    def scores(self, tokens: NDArray[Any]) -> NDArray[np.float32]:
        """Raw scores of texts by each member: tokens [texts, W] → [N, texts]."""
        parts = [np.zeros((self.members, 0), np.float32)]
        with torch.no_grad():
            for start in range(0, len(tokens), _SCORED_AT_ONCE):
                part = torch.from_numpy(tokens[start : start + _SCORED_AT_ONCE])
                parts.append(self.scorer(part.expand(self.members, *part.shape)).numpy())
        return np.concatenate(parts, axis=1)

    def state_dict(self) -> dict[str, Tensor]:
        """Parameters, Adam's moments and counters by flat name, copied."""
        state = self.parameters()
        for name, parameter in self._named.items():
            for key in _ADAM_STATE:
                value = self._optimizer.state[parameter].get(key)
                if value is not None:
                    state[f"adam.{name}.{key}"] = value.detach().clone()
        counters = [self.steps, self.skipped_steps, self._skips_in_a_row]
        return state | {"counters": torch.tensor(counters, dtype=torch.int64)}

    def parameters(self) -> dict[str, Tensor]:
        """The network alone, ``scorer.name``, copied."""
        return {f"scorer.{name}": each.detach().clone().contiguous() for name, each in self._named.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take what ``state_dict`` or ``parameters`` gave; without Adam's moments these start anew.

        Raises: CheckpointError where it is of another network.
        """
        wanted = {f"scorer.{name}": tuple(each.shape) for name, each in self._named.items()}
        found = {name: tuple(each.shape) for name, each in state.items() if name.startswith("scorer.")}
        if wanted != found:
            raise CheckpointError(
                f"the saved reward model does not fit these settings: it has {found}, reward_model asks for {wanted}. "
                "Use the reward_model settings that it was saved under, or start a new run."
            )
        with torch.no_grad():
            for name, parameter in self._named.items():
                parameter.copy_(state[f"scorer.{name}"])
                kept = {key: state.get(f"adam.{name}.{key}") for key in _ADAM_STATE}
                self._optimizer.state[parameter].clear()
                for key, value in kept.items():
                    if value is not None:
                        self._optimizer.state[parameter][key] = value.clone()
        if "counters" in state:
            self.steps, self.skipped_steps, self._skips_in_a_row = (int(each) for each in state["counters"])

    def _step(self, losses: Tensor) -> NDArray[np.float32]:
        """Members share nothing, so the gradient of the sum is each one's own; norms are shortened one by one."""
        for parameter in self._named.values():
            parameter.grad = None
        losses.sum().backward()  # type: ignore[no-untyped-call]
        gradients = [each.grad for each in self._named.values() if each.grad is not None]
        norm = _member_norms(gradients)
        self.steps += 1
        if not bool((norm.isfinite() & losses.isfinite()).all()):
            self._skip()
            return losses.detach().numpy()
        shorten = (self._settings.gradient_norm / norm.clamp(min=1e-12)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(shorten.view(-1, *[1] * (gradient.dim() - 1)))
        self._optimizer.step()
        self._skips_in_a_row = 0
        return losses.detach().numpy()

    def _skip(self) -> None:
        self.skipped_steps += 1
        self._skips_in_a_row += 1
        log.warning("reward model: step %d is not finite and is left out", self.steps)
        if self._skips_in_a_row >= _SKIPS_IN_A_ROW:
            raise NonFiniteError(
                f"reward model, step {self.steps}: loss or gradient was not finite {self._skips_in_a_row} times in a "
                "row. Lower reward_model.learning_rate; then resume from the last checkpoint."
            )


def _member_norms(gradients: Sequence[Tensor]) -> Tensor:
    """[N], each member's norm over all its parameters."""
    norms = torch.stack([torch.linalg.vector_norm(each.flatten(1), dim=1) for each in gradients])
    total: Tensor = torch.linalg.vector_norm(norms, dim=0)
    return total


def _generator(seed: int, member: int) -> Generator:
    state = np.random.SeedSequence([seed, member]).generate_state(1, np.uint64)[0]
    return Generator().manual_seed(int(state) >> 1)


def log_odds_to_chance(log_odds: NDArray[np.float32]) -> NDArray[np.float64]:
    """σ(x) in float64."""
    return 1.0 / (1.0 + np.exp(-np.clip(log_odds.astype(np.float64), -700.0, 700.0)))
