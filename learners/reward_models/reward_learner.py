"""The reward model of a run: learns from labels or preferences as they come, scores every key once per version.

Differences from ONI's reward model (arXiv 2410.23022): smaller networks and other encoders; it goes on learning after
25,000 labels; some keys are held out to measure it; helpful and unhelpful labels count alike; several members.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onibi.learners.reward_models.ensemble import Ensemble, log_odds_to_chance
from onibi.learners.reward_models.held_out import area_under_curve, calibration_error, is_held_out, pair_accuracy
from onibi.learners.reward_models.registry import TEXT_ENCODERS
from onibi.learners.reward_models.settings import RewardModelSettings
from onibi.learners.reward_models.text_encoder import TextEncoder
from onibi.learners.reward_models.training_items import Items, MemberDraws, class_weights, items_of, split
from onibi.platform.annotation.captions import text_hash
from onibi.platform.annotation.labels import HELPFUL_SCORE
from onibi.platform.config import load_class
from onibi.platform.errors import CheckpointError
from onibi.platform.rewards.table_chain import ReferenceRows
from onibi.platform.rewards.training import LabelledKeys, MemberScores

ModelKind: TypeAlias = Literal["classification", "ranking"]

_PROGRESS, _LEARNED_LABELS = "progress", "learned_labels"


class RewardLearner:
    """Learns what labels say of texts.

    Args:
        settings: model, training and what is held out.
        kind: learns labels (classification) or preferences (ranking).
        seed: of parameters, bootstraps and draws. Equal data in equal steps gives equal scores.
    Raises: ConfigError where the encoder needs what is not installed.
    """

    def __init__(self, settings: RewardModelSettings, kind: ModelKind, seed: int) -> None:
        self.settings, self.kind = settings, kind
        self.encoder: TextEncoder = load_class(TEXT_ENCODERS, settings.encoder.kind)(settings.encoder)  # type: ignore[attr-defined]
        self.ensemble = Ensemble(settings, self.encoder, seed)
        self._seed = seed
        self._version = 0
        self._learned_items = 0  # labels or pairs that there were the last time
        self._learned_labels = np.zeros(0, np.float32)  # what each key's label was then; NaN: it had none
        self._new_items = 0  # of all rounds together, labels that changed included
        self._owed_steps = 0
        self._loss = float("nan")
        self._tokens: NDArray[Any] | None = None
        self._hashes = np.zeros(0, np.uint64)
        self._scores = np.zeros((settings.members, 0), np.float32)
        self._seconds = 0.0
        self._reference: ReferenceRows | None = None

    @property
    def owed_steps(self) -> int:
        """Gradient steps that labels already here are still owed."""
        return self._owed_steps

    def learn(self, data: LabelledKeys) -> MemberScores | None:
        """Make the gradient steps that new labels ask for, and score what has no score of the newest parameters.

        Args:
            data: all that is labelled at this moment; keys keep their index from call to call.
        Returns: the scores of all keys; None where nothing has changed since the last ones.
        Raises: NonFiniteError where learning diverges.
        """
        began = time.perf_counter()
        self._read(data)
        items = self._items(data)
        training, measuring = split(items, self._hashes, self.settings)
        self._owe(items)
        if len(training) and self._owed_steps > 0:
            steps = min(self._owed_steps, self.settings.steps_per_round)
            self._owed_steps -= steps
            self._train(training, steps)
        changed = self._score()
        self._seconds += time.perf_counter() - began
        if not changed:
            return None
        return self._published(training, measuring, data)

    def train(self, data: LabelledKeys, steps: int) -> int:
        """Make gradient steps, owed or not. Returns: how many; 0 where there is nothing to learn from.

        Raises: NonFiniteError where learning diverges.
        """
        self._read(data)
        training, _ = split(self._items(data), self._hashes, self.settings)
        if not len(training):
            return 0
        self._train(training, steps)
        return steps

    def training_items(self, data: LabelledKeys) -> int:
        """Labels or pairs among ``data`` that this model may learn from."""
        self._read(data)
        return len(split(self._items(data), self._hashes, self.settings)[0])

    def current_scores(self, data: LabelledKeys) -> MemberScores:
        """Scores of all keys as the model stands, with no step made: after a checkpoint was loaded."""
        self._read(data)
        self._score()
        training, measuring = split(self._items(data), self._hashes, self.settings)
        return self._published(training, measuring, data)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything by flat name, for a checkpoint; no random state, as draws follow from seed and step."""
        progress = [self._version, self._learned_items, self._owed_steps, self._new_items]
        return self.ensemble.state_dict() | {
            _PROGRESS: torch.tensor(progress, dtype=torch.int64),
            _LEARNED_LABELS: torch.from_numpy(self._learned_labels.copy()),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what ``state_dict`` gave. Raises: CheckpointError where it is of another model."""
        if _PROGRESS not in state:
            raise CheckpointError(f"the saved reward model lacks {_PROGRESS!r}; it has {sorted(state)[:5]} …")
        self.ensemble.load_state_dict(state)
        self._version, self._learned_items, self._owed_steps, *new = (int(each) for each in state[_PROGRESS])
        self._new_items = new[0] if new else self._learned_items  # checkpoints once had three numbers, and no labels
        self._learned_labels = state.get(_LEARNED_LABELS, torch.zeros(0)).numpy().copy()
        self._scores = self._scores[:, :0]

    def start_from(self, parameters: Mapping[str, Tensor], reference: ReferenceRows) -> None:
        """Start from a fitted model's network, and normalise over its rows as long as it stays frozen.

        Raises: CheckpointError where it is of another one.
        """
        self.ensemble.load_state_dict({name: each for name, each in parameters.items() if name.startswith("scorer.")})
        self._scores = self._scores[:, :0]
        self._reference = reference if self.settings.frozen else None

    def _items(self, data: LabelledKeys) -> Items:
        return items_of(data, self.kind, soft_labels=self.settings.soft_labels)

    def _read(self, data: LabelledKeys) -> None:
        """Tokens and hashes of keys that were not there before."""
        new = data.key_texts[len(self._hashes) :]
        if not new and self._tokens is not None:
            return
        tokens = self.encoder.tokens(new)
        self._tokens = tokens if self._tokens is None else np.concatenate([self._tokens, tokens])
        hashes = np.fromiter((text_hash(text) for text in new), np.uint64, len(new))
        self._hashes = np.concatenate([self._hashes, hashes])

    def _owe(self, items: Items) -> None:
        """Owe the steps of the label batches that new items begin, however few of them come at a time. A label that
        another vote has changed is a new one.

        Of the first batch each portion is owed the steps of a whole one: a run may never hear of more keys than that,
        and must learn those that it has heard of.
        """
        size, before = self.settings.label_batch, self._new_items
        self._new_items += max(0, len(items) - self._learned_items)  # fewer than before bring nothing new
        self._learned_items = len(items)
        if self.kind == "classification":
            labels = np.full(len(self._hashes), np.nan, np.float32)
            labels[items.first] = items.target
            known = min(len(labels), len(self._learned_labels))
            was, is_now = self._learned_labels[:known], labels[:known]
            self._new_items += int(np.count_nonzero((was != is_now) & ~np.isnan(was) & ~np.isnan(is_now)))
            self._learned_labels = labels
        if self.settings.frozen or self._new_items == before:
            return
        begun = -(-before // size) if before >= size else 0
        self._owed_steps += self.settings.steps_per_label_batch * (-(-self._new_items // size) - begun)

    def _train(self, items: Items, steps: int) -> None:
        settings, tokens = self.settings, self._tokens
        assert tokens is not None, "read before"
        draws = MemberDraws(items, self._hashes, settings.members, self._seed)
        weight = class_weights(items, balance=settings.class_balance)
        losses = []
        for _ in range(steps):
            drawn = draws.draw(self.ensemble.steps, settings.batch_size)
            first, target = tokens[items.first[drawn]], items.target[drawn]
            if self.kind == "ranking":
                losses.append(self.ensemble.learn_pairs(first, tokens[items.second[drawn]], target))
            else:
                losses.append(self.ensemble.learn_labels(first, target, weight[drawn]))
        self._loss = float(np.mean(losses))
        self._scores = self._scores[:, :0]

    def _score(self) -> bool:
        """Score the texts that have none. Returns: whether there were any."""
        assert self._tokens is not None, "read before"
        known = self._scores.shape[1]
        if known == len(self._tokens) and known:
            return False
        fresh = self.ensemble.scores(self._tokens[known:])
        self._scores = np.concatenate([self._scores, fresh], axis=1)
        return True

    def _published(self, training: Items, measuring: Items, data: LabelledKeys) -> MemberScores:
        self._version += 1
        metrics = {
            "reward_model/training_items": float(len(training)),
            "reward_model/held_out_items": float(len(measuring)),
            "reward_model/steps": float(self.ensemble.steps),
            "reward_model/owed_steps": float(self._owed_steps),
            "reward_model/skipped_steps": float(self.ensemble.skipped_steps),
            "reward_model/seconds": self._seconds,
            **self._measures(measuring, data),
        }
        if np.isfinite(self._loss):
            metrics["reward_model/loss"] = self._loss
        return MemberScores(
            version=self._version,
            members=self._scores.copy(),
            metrics=metrics,
            compared=self._compared(data),
            pairs=len(data.pair_first),
            is_fitted=self.settings.fitted is not None,
            reference=self._reference,
        )

    def _compared(self, data: LabelledKeys) -> NDArray[np.bool_] | None:
        if self.kind != "ranking":
            return None
        compared = np.zeros(len(data.key_texts), bool)
        compared[data.pair_first] = compared[data.pair_second] = True
        return compared

    def _measures(self, items: Items, data: LabelledKeys) -> dict[str, float]:
        """Figures over items that no training has seen; left out where there are none."""
        target = items.target.astype(np.float64)
        weight = np.ones(len(items))
        found: dict[str, float | None] = {}
        if self.kind == "ranking":
            margin = self._scores[:, items.first] - self._scores[:, items.second]
            chance = log_odds_to_chance(margin).mean(axis=0)
            away = is_held_out(self._hashes, self.settings.held_out_share)
            both = away[items.first] & away[items.second]
            # Of a pair with one key that was trained on, that one's score may decide: told apart.
            found["half_held_out_pair_accuracy"] = pair_accuracy(chance[~both], target[~both])
            chance, target, weight = chance[both], target[both], weight[both]
            found["held_out_pair_accuracy"] = pair_accuracy(chance, target)
            found["held_out_auc"] = self._label_auc(data)
        else:
            chance = log_odds_to_chance(self._scores[:, items.first]).mean(axis=0)
            weight = class_weights(items, balance=self.settings.class_balance).astype(np.float64)
            found["held_out_auc"] = area_under_curve(chance, target >= HELPFUL_SCORE)
        found["calibration_error"] = calibration_error(chance, target, weight)
        return {f"reward_model/{name}": value for name, value in found.items() if value is not None}

    def _label_auc(self, data: LabelledKeys) -> float | None:
        """Of a ranking model, where single keys are labelled as well: AUC over held-out keys, members standardised."""
        if not self._scores.shape[1]:
            return None  # no key was met yet
        _, measuring = split(items_of(data, "classification", soft_labels=False), self._hashes, self.settings)
        spread = np.maximum(self._scores.std(axis=1, keepdims=True), 1e-6)
        score = ((self._scores - self._scores.mean(axis=1, keepdims=True)) / spread).mean(axis=0).astype(np.float64)
        return area_under_curve(score[measuring.first], measuring.target >= HELPFUL_SCORE)
