"""Settings of the section ``annotation``: how captions reach annotators, and what becomes of their labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from onibi.platform.config import Settings


@dataclass(frozen=True, kw_only=True)
class QueueSettings(Settings):
    """Which of the waiting keys is asked first; among equals the one that was met last."""

    # most_frequent: met in the most rows. most_uncertain: on which the reward model's members differ most or, with one
    # member, whose score is nearest to its threshold; keys that it has not scored come first.
    order: Literal["newest", "most_frequent", "most_uncertain"] = "newest"


@dataclass(frozen=True, kw_only=True)
class PairSettings(Settings):
    """Which pairs of keys are asked, where the reward is learnt from preferences."""

    recent_captions: int = 1_000  # pairs are drawn uniformly from the distinct captions that were met last
    # Judged pairs after which only those are asked of which a key is in fewer than key_pairs judged ones: what is
    # new goes on being learnt, and the number of pairs is bounded by that of keys. ONI stops there.
    free_pairs: int = 25_000
    key_pairs: int = 10
    max_pairs: int | None = None  # judged pairs after which no more are asked; null: no end

    def __post_init__(self) -> None:
        if self.recent_captions < 2:
            raise ValueError(f"recent_captions is {self.recent_captions}; allowed: 2 or more")
        for name, least in (("free_pairs", 0), ("key_pairs", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: {least} or more")
        if self.max_pairs is not None and self.max_pairs < 1:
            raise ValueError(f"max_pairs is {self.max_pairs}; allowed: 1 or more, or null")


@dataclass(frozen=True, kw_only=True)
class AnnotationDeskSettings(Settings):
    """How keys wait for their labels."""

    queue_keys: int = 10_000  # most keys waiting; the oldest is dropped and comes back when it is met again
    lease_seconds: float = 120.0  # a taken key waits again after this time without a reply
    max_attempts: int = 3  # invalid replies after which a key is parked
    reuse: Literal["same_prompt", "any_prompt"] = "same_prompt"  # which labels of other runs and prompts count

    def __post_init__(self) -> None:
        if self.queue_keys < 1 or self.max_attempts < 1 or not self.lease_seconds > 0:
            raise ValueError(
                f"queue_keys {self.queue_keys} and max_attempts {self.max_attempts} must be 1 or more, "
                f"lease_seconds {self.lease_seconds} above 0"
            )


@dataclass(frozen=True, kw_only=True)
class AnnotationSettings(Settings):
    """How captions reach the annotators."""

    batch_keys: int = 64  # most keys or pairs asked at once
    workers: int = 1  # processes of each annotator, which share its queue; 0: captions are counted, nobody is asked
    votes: int = 1  # independent labels of a key by each annotator; their mean score counts
    delay_steps: int = 0  # env steps before which no label pays; labels are collected meanwhile
    # By how much annotator processes are nicer (nice(1)) than Ray's others: a judge that computes steps back behind
    # rollouts and learner. Ray's have 15 by its own default, and 19 is the most.
    niceness: int = 4
    hang_seconds: float = 600.0  # an annotator process that gives no label for so long while it judges is replaced
    queue: QueueSettings = field(default_factory=QueueSettings)
    pairs: PairSettings = field(default_factory=PairSettings)
    # Labels on disk, shared by runs: auto (RUNS_FOLDER/annotations for annotators that cost something), none, a folder.
    table: str = "auto"
    desk: AnnotationDeskSettings = field(default_factory=AnnotationDeskSettings)
    # RUN/reward_tables/learner-000000.arrows: nobody is asked, captions are paid as they were there. Serial runs only.
    replay_tables: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("batch_keys", 1), ("workers", 0), ("votes", 1), ("delay_steps", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: {least} or more")
        if not 0 <= self.niceness <= 19:
            raise ValueError(f"niceness is {self.niceness}; allowed: 0 (as rollouts and learner) to 19")
        if not self.hang_seconds > 0:
            raise ValueError(f"hang_seconds is {self.hang_seconds}; allowed: above 0")
        if not self.table:
            raise ValueError("table is empty; allowed: auto, none, or a folder")


def idle_settings(settings: AnnotationSettings, reward_kind: str | None) -> list[str]:
    """What is set and does nothing in a run, each in a sentence.

    Args:
        settings: of the run.
        reward_kind: of rewards.intrinsic; None where captions are not paid.
    """
    idle, asks_pairs = [], reward_kind == "ranking"
    if asks_pairs:
        why = "as rewards.intrinsic.kind is ranking, which asks pairs, each once, drawn at random"
        idle += [f"annotation.votes does nothing, {why}"] if settings.votes > 1 else []
        idle += [f"annotation.queue.order does nothing, {why}"] if settings.queue != QueueSettings() else []
    elif settings.pairs != PairSettings():
        idle.append("annotation.pairs does nothing, as pairs are asked where rewards.intrinsic.kind is ranking alone")
    if settings.queue.order == "most_uncertain" and reward_kind not in ("classification", "ranking"):
        idle.append(
            "annotation.queue.order most_uncertain does nothing, as no reward model learns: keys are asked newest "
            "first; set rewards.intrinsic.kind to classification, or the order to newest or most_frequent"
        )
    return idle
