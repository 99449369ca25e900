"""Reward models that are fitted to a finished table of labels or preferences, kept in a folder, and started from.

    model = fit_offline(data, settings, "ranking", seed=1)
    model.save(Path("model"))
    learner = open_reward_learner(replace(settings, fitted="model", frozen=True), "ranking", seed=1)

A folder holds ``model.safetensors`` (network, and the scores and counts of the rows it was fitted on) and
``model.json`` (settings, kind, figures): nothing that is run when it is read.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import torch
from numpy.typing import NDArray

from onibi.learners.reward_models.reward_learner import ModelKind, RewardLearner
from onibi.learners.reward_models.settings import RewardModelSettings
from onibi.platform.config import read_settings, to_mapping
from onibi.platform.durable import write_durably
from onibi.platform.errors import ConfigError
from onibi.platform.rewards.table_chain import ReferenceRows
from onibi.platform.rewards.training import LabelledKeys

log = logging.getLogger(__name__)

_TENSORS, _DESCRIPTION = "model.safetensors", "model.json"
_FORMAT = 1
_FEW_ITEMS = 100  # a tenth of them measures the model
_KINDS = ("classification", "ranking")


@dataclass(frozen=True)
class FittedModel:
    """A reward model as it was left by ``fit_offline``."""

    settings: RewardModelSettings
    kind: ModelKind
    parameters: Mapping[str, NDArray[Any]]
    """``scorer.name``, every one [N, …]."""
    reference: ReferenceRows
    """Scores and counts of the askable keys that it was fitted on."""
    metrics: Mapping[str, float]
    """``reward_model/…`` at the end."""
    about: Mapping[str, str]
    """Goal, prompt version, judge and what else the caller wants to be remembered."""

    def save(self, folder: Path) -> None:
        """Write the model into a folder, made where it is not there. Raises: OSError where it cannot be written."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            **self.parameters,
            "reference.members": self.reference.members,
            "reference.rows": self.reference.rows.astype(np.int64),
        }
        contiguous = {name: np.ascontiguousarray(each) for name, each in tensors.items()}
        write_durably(folder / _TENSORS, safetensors.numpy.save(contiguous))
        description = {
            "format": _FORMAT,
            "kind": self.kind,
            "settings": to_mapping(self.settings),
            "metrics": dict(self.metrics),
            "about": dict(self.about),
        }
        # The description comes last: without it a folder holds no model.
        write_durably(folder / _DESCRIPTION, json.dumps(description, indent=2).encode())

    def learner(self, seed: int, settings: RewardModelSettings | None = None) -> RewardLearner:
        """A learner with this model's network.

        Args:
            seed: of draws in further training.
            settings: of further training; encoder, members and layers are the model's own. None: all its own.
        """
        mine = self.settings
        if settings is not None:
            mine = dataclasses.replace(settings, encoder=mine.encoder, members=mine.members, hidden=mine.hidden)
        learner = RewardLearner(mine, self.kind, seed)
        parameters = {name: torch.from_numpy(np.array(each)) for name, each in self.parameters.items()}
        learner.start_from(parameters, self.reference)
        return learner


def fit_offline(
    data: LabelledKeys,
    settings: RewardModelSettings,
    kind: ModelKind,
    *,
    seed: int,
    passes: int = 30,
    about: Mapping[str, str] | None = None,
) -> FittedModel:
    """Train a reward model on everything there is.

    Args:
        data: all keys, labels and preferences; ``sightings`` are the rows over which its scores are normalised.
        settings: model and training; ``steps_per_label_batch`` and what goes with it play no part.
        kind: learn labels or preferences.
        seed: equal data and settings give equal models.
        passes: mean number of times that each label or pair is drawn.
        about: kept with the model.
    Returns: the model, with its held-out figures.
    Raises: ConfigError where there is nothing to learn from, NonFiniteError where learning diverges.
    """
    settings = dataclasses.replace(settings, fitted=None, frozen=False)
    learner = RewardLearner(settings, kind, seed)
    items = learner.training_items(data)
    if not items:
        what = "pairs" if kind == "ranking" else "labels"
        raise ConfigError(
            f"reward model: there are no {what} to learn from ({len(data.label_key)} labels, {len(data.pair_first)} "
            f"pairs, of which {settings.held_out_share:.0%} of the keys are held out). Annotate first."
        )
    if items < _FEW_ITEMS:
        log.warning(
            "reward model: fitted to %d %s, which is few: its scores of other texts, and its held-out figures where "
            "there are any, say little. Judge more captions first.",
            items,
            "pairs" if kind == "ranking" else "labels",
        )
    total = max(1, -(-passes * items // settings.batch_size))
    made = 0
    while made < total:
        made += learner.train(data, min(settings.steps_per_round, total - made))
    scores = learner.current_scores(data)
    seen = data.askable & (data.sightings > 0)
    seen = seen if seen.any() else data.askable
    reference = ReferenceRows(scores.members[:, seen], np.maximum(data.sightings[seen], 1))
    parameters = {name: each.numpy() for name, each in learner.ensemble.parameters().items()}
    return FittedModel(settings, kind, parameters, reference, dict(scores.metrics), dict(about or {}))


def read_fitted(folder: Path) -> FittedModel:
    """The model that ``FittedModel.save`` wrote.

    Raises: ConfigError where the folder holds none, or it is damaged or of a newer format.
    """
    try:
        description = json.loads((folder / _DESCRIPTION).read_bytes())
        tensors = safetensors.numpy.load((folder / _TENSORS).read_bytes())
    except FileNotFoundError as error:
        raise ConfigError(
            f"{folder}: holds no reward model ({error.filename} is missing); `onibi annotate` writes such folders."
        ) from error
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise ConfigError(f"{folder}: the reward model cannot be read ({error}); fit it again.") from error
    if not isinstance(description, dict):
        raise ConfigError(
            f"{folder}: {_DESCRIPTION} holds {type(description).__name__}, no mapping; fit the model again."
        )
    if description.get("format") != _FORMAT or description.get("kind") not in _KINDS:
        raise ConfigError(
            f"{folder}: format {description.get('format')!r} and kind {description.get('kind')!r}; this version reads "
            f"format {_FORMAT} of the kinds {', '.join(_KINDS)}. Fit the model again."
        )
    missing = sorted({"reference.members", "reference.rows"} - set(tensors))
    missing += sorted({"settings", "metrics", "about"} - set(description))
    if missing:
        raise ConfigError(f"{folder}: the reward model lacks {missing}; fit it again.")
    reference = ReferenceRows(tensors.pop("reference.members"), tensors.pop("reference.rows"))
    if reference.members.shape[1:] != reference.rows.shape or not reference.rows.sum() > 0:
        raise ConfigError(
            f"{folder}: scores of shape {reference.members.shape} and counts of shape {reference.rows.shape} are not "
            "of the same rows; fit the model again."
        )
    settings = read_settings(RewardModelSettings, description["settings"], source=str(folder / _DESCRIPTION))
    return FittedModel(settings, description["kind"], tensors, reference, description["metrics"], description["about"])


def open_reward_learner(settings: RewardModelSettings, kind: ModelKind, seed: int) -> RewardLearner:
    """The reward learner of a run: new, or started from a fitted model.

    Raises: ConfigError where the fitted model is missing, or was fitted for the other kind of reward.
    """
    if settings.fitted is None:
        return RewardLearner(settings, kind, seed)
    fitted = read_fitted(Path(settings.fitted))
    if fitted.kind != kind:
        raise ConfigError(
            f"reward_model.fitted: the model in {settings.fitted} is one of {fitted.kind}, rewards.intrinsic.kind is "
            f"{kind}. Set the kind to {fitted.kind}, or fit another model."
        )
    return fitted.learner(seed, settings)
