"""Settings of the reward model; no torch here, as they travel to processes that never learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from onibi.learners.reward_models.registry import TEXT_ENCODERS
from onibi.platform.config import Settings, selected
from onibi.platform.number_ranges import Count, NotNegative, Positive

Share = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, kw_only=True)
class RewardModelSettings(Settings):
    """The text model behind ``rewards.intrinsic.kind`` classification and ranking."""

    encoder: Settings = selected(TEXT_ENCODERS, "bag_of_words")
    members: Annotated[int, Field(ge=1, le=64)] = 1  # N, each with a bootstrap and first parameters of its own
    hidden: tuple[Count, ...] = (64,)  # layers between encoder and score
    learning_rate: Positive = 1e-3  # Adam's
    weight_decay: NotNegative = 0.01  # decoupled from the gradient
    gradient_norm: Positive = 4.0  # of one member; longer gradients are shortened to it
    batch_size: Count = 128  # labels or pairs of a gradient step
    steps_per_label_batch: Count = 32  # gradient steps for every label_batch labels or pairs that are new
    label_batch: Count = 64
    steps_per_round: Count = 512  # most gradient steps before scores are given out; what is owed beyond comes next
    training_items: Count | None = None  # newest labels or pairs that are learned from; null: all of them, for ever
    class_balance: bool = True  # of classification: helpful and unhelpful labels count alike as a whole
    soft_labels: bool = False  # learn the judge's score instead of 1[score ≥ ½]
    held_out_share: Share = 0.1  # of keys, by hash: their labels measure the model and never train it
    period_env_steps: Count = 2_000  # between two rounds of a serial run
    period_seconds: NotNegative = 1.0  # between two rounds under Ray, at least
    fitted: str | None = None  # folder of a model from `onibi annotate`; it brings its own encoder, members and layers
    frozen: bool = False  # a fitted model stays as it is, its μ, σ and quantile too, as Motif's

    def __post_init__(self) -> None:
        if self.frozen and self.fitted is None:
            raise ValueError(
                "frozen is true, but there is no fitted model; set fitted to its folder, or frozen to false"
            )
