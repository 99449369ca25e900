"""What a reward model learns from, and what it gives back: the seam between the annotation desk and reward models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onibi.platform.errors import CaptionError
from onibi.platform.rewards.table_chain import ReferenceRows


@dataclass(frozen=True)
class LabelledKeys:
    """Keys, labels and preferences of a run at one moment; arrays index ``key_texts``."""

    version: int
    """Rises with every new label, pair or key."""
    key_texts: list[str]
    """All keys, by index."""
    askable: NDArray[np.bool_]
    """[keys], whether an annotator may be asked about the key."""
    sightings: NDArray[np.int64]
    """[keys], rows in which each key was met."""
    label_key: NDArray[np.int32]
    """[n], keys that have a valid label, rising."""
    label_score: NDArray[np.float32]
    """[n], mean score of their valid labels, 0 to 1."""
    pair_first: NDArray[np.int32]
    """[m], first key of each judged pair."""
    pair_second: NDArray[np.int32]
    """[m], its second key."""
    pair_preference: NDArray[np.float32]
    """[m], 1 where the first helps more, 0 where the second does, 0.5 for a tie."""
    label_seconds: NDArray[np.float64] | None = None
    """[n], seconds since 1970 of each key's newest label; None: keys were labelled in the order of ``label_key``."""

    def __post_init__(self) -> None:
        keys = (len(self.key_texts),)
        shapes = {
            "askable": (self.askable.shape, keys),
            "sightings": (self.sightings.shape, keys),
            "label_score": (self.label_score.shape, self.label_key.shape),
            "pair_second": (self.pair_second.shape, self.pair_first.shape),
            "pair_preference": (self.pair_preference.shape, self.pair_first.shape),
        }
        if self.label_seconds is not None:
            shapes["label_seconds"] = (self.label_seconds.shape, self.label_key.shape)
        wrong = [f"{name} {found}, expected {want}" for name, (found, want) in shapes.items() if found != want]
        if wrong:
            raise CaptionError(f"labelled keys {self.version}: " + "; ".join(wrong))


@dataclass(frozen=True)
class MemberScores:
    """Raw scores of a reward model, of each member of its ensemble; keys that are newer count as unscored."""

    version: int
    """Rises with every training."""
    members: NDArray[np.float32]
    """[N, keys], by key index."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """"reward_model/…": held-out AUC, pair accuracy, calibration error, loss, labels used."""
    compared: NDArray[np.bool_] | None = None
    """[keys], whether a judged pair names the key; None where labels are learnt."""
    pairs: int = 0
    """Judged pairs that there were."""
    is_fitted: bool = False
    """Whether the model was fitted beforehand: its table need not wait for labels of this run."""
    reference: ReferenceRows | None = None
    """Rows of a frozen model, over which its scores are normalised instead of the run's."""

    def __post_init__(self) -> None:
        if self.members.ndim != 2 or self.members.shape[0] < 1:
            raise CaptionError(
                f"member scores {self.version}: members has shape {self.members.shape}, expected [N ≥ 1, keys]"
            )
