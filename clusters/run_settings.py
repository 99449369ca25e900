"""The settings of a whole run: one section per owner, each defined beside the code that reads it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Annotated

from pydantic import Field

from onibi.actors.annotators.auto import without_auto
from onibi.actors.annotators.registry import ANNOTATORS
from onibi.actors.captioners.registry import CAPTIONERS
from onibi.actors.environments.factory import EnvironmentSettings
from onibi.actors.evaluation import EvaluationSettings
from onibi.actors.joined_inference import InferenceSettings
from onibi.actors.rollout import RolloutSettings
from onibi.actors.views.registry import VIEWS
from onibi.learners.registry import LEARNERS
from onibi.learners.reward_models.settings import RewardModelSettings
from onibi.platform.annotation.settings import AnnotationSettings
from onibi.platform.config import Settings, selected, selected_each
from onibi.platform.number_ranges import Count, NotNegative, Positive
from onibi.platform.replay.limiter import DrawnWord, LimiterSettings
from onibi.platform.replay.log.log_settings import LogSettings
from onibi.platform.replay.samplers.frame_stack import FrameStackSettings
from onibi.platform.rewards.hack_alarms import AlarmSettings
from onibi.platform.rewards.settings import RewardSettings
from onibi.platform.tracking import TrackingSettings

ActorCount = Annotated[int, Field(ge=1, le=4096)]


@dataclass(frozen=True, kw_only=True)
class BudgetSettings(Settings):
    """When a run ends: at whichever limit comes first. null stands for no limit; one of the two must be set."""

    max_env_steps: Count | None = None
    max_seconds: Positive | None = 300.0  # of training, start-up not counted; a resumed run goes on counting
    # Without a new row or update, until the run is given up as stuck, which it warns of after a minute; null: never.
    # More than a fragment of slow environments or a compilation takes. A serial run never gives up.
    patience_seconds: Positive | None = 1_800.0

    def __post_init__(self) -> None:
        if self.max_env_steps is None and self.max_seconds is None:
            raise ValueError("max_env_steps and max_seconds are both null; set one, or the run would never end")

    def is_used_up(self, env_steps: int, seconds: float) -> bool:
        """Whether a run that has taken so many env steps and seconds of training is at one of the limits."""
        return (self.max_env_steps is not None and env_steps >= self.max_env_steps) or (
            self.max_seconds is not None and seconds >= self.max_seconds
        )


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings(Settings):
    """When a checkpoint is written besides those at evaluations and at the end."""

    period_seconds: Positive = 60.0
    keep_last: Count = 3  # the one named best is kept besides


@dataclass(frozen=True, kw_only=True)
class ReplaySettings(Settings):
    """The hot ring, and the log of all rows on disk."""

    capacity_rows: Count = 200_000  # over all lanes; in the ring
    folder: str = "/dev/shm"  # a memory file system; on a disk the ring may be larger than memory, and is slower
    # That have lanes in the ring at once; null: actors.count. Others wait for lanes.
    max_actors: ActorCount | None = None
    lane_timeout_seconds: Positive = 60.0  # silence of an actor after which one that waits takes its lanes
    limiter: LimiterSettings = field(default_factory=LimiterSettings)
    log: LogSettings = field(default_factory=LogSettings)

    def __post_init__(self) -> None:
        if not self.folder:
            raise ValueError("folder is empty; allowed: a folder, best on a memory file system as /dev/shm")


@dataclass(frozen=True, kw_only=True)
class PlacementSettings(Settings):
    """What the roles ask Ray for. Fractions, so that a whole run fits on 2 cores."""

    rollout_cpus: NotNegative = 0.5  # of each rollout actor
    # Processes that make each update together, on a batch each; on their shard's node.
    learners: Annotated[int, Field(ge=1, le=DrawnWord.LEARNERS)] = 1
    # Replay shards: 1 feeds all learners, on one node; as many as learners, each beside one, may lie on as many nodes.
    shards: Count = 1
    learner_cpus: NotNegative = 0.5  # of each learner
    learner_gpus: NotNegative = 0.0  # likewise
    learner_threads: Count = 1  # torch threads of a learner
    # A process that computes the forward passes of all rollout actors; null: each computes its own. For large networks
    # on a GPU; a serial run does without.
    inference: InferenceSettings | None = None
    rollout_resources: dict[str, float] = field(default_factory=dict)  # custom Ray resources, to pin to nodes
    learner_resources: dict[str, float] = field(default_factory=dict)  # of each shard, whose memory learners share

    def __post_init__(self) -> None:
        for name in ("rollout_resources", "learner_resources"):
            for resource, amount in getattr(self, name).items():
                if resource in ("CPU", "GPU", "memory", "object_store_memory") or amount < 0:
                    raise ValueError(f"{name} asks for {amount} of {resource!r}; allowed: 0 or more of a custom one")


@dataclass(frozen=True, kw_only=True)
class ActorsSettings(Settings):
    """The rollout actors."""

    count: ActorCount = 2
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    fragments_in_flight: Count = 2  # of one actor; it waits when the shard has not taken the oldest
    # An actor whose environments do not return from one call for so long is replaced; null: it is waited for.
    hang_seconds: Positive | None = 600.0


@dataclass(frozen=True, kw_only=True)
class RunSettings(Settings):
    """Everything that defines a run; written resolved to its ``config.yaml``."""

    seed: Annotated[int, Field(ge=0)] = 1
    environment: EnvironmentSettings
    view: Settings = selected(VIEWS, "leaves")
    frame_stack: FrameStackSettings = field(default_factory=FrameStackSettings)
    captioner: Settings = selected(CAPTIONERS, "none")
    annotator: Settings = selected(ANNOTATORS, "lexicon")
    annotators: dict[str, Settings] = selected_each(ANNOTATORS)  # more of them, at the same time
    annotation: AnnotationSettings = field(default_factory=AnnotationSettings)
    rewards: RewardSettings = field(default_factory=RewardSettings)
    reward_model: RewardModelSettings = field(default_factory=RewardModelSettings)
    alarms: AlarmSettings = field(default_factory=AlarmSettings)  # on rewards that are hacked
    actors: ActorsSettings = field(default_factory=ActorsSettings)
    replay: ReplaySettings = field(default_factory=ReplaySettings)
    learner: Settings = selected(LEARNERS, "dqn")
    budget: BudgetSettings = field(default_factory=BudgetSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    placement: PlacementSettings = field(default_factory=PlacementSettings)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)

    def __post_init__(self) -> None:
        first: str = self.annotator.kind  # type: ignore[attr-defined]
        for name in self.annotators:
            if not re.fullmatch(r"[\w.-]+", name) or name == first:
                raise ValueError(
                    f"annotators has the name {name!r}; allowed: letters, digits, '.', '_' and '-', and not {first!r}, "
                    "as annotator itself is called by its kind"
                )


def judges_chosen(settings: RunSettings) -> RunSettings:
    """The settings with ``annotator.kind: auto`` replaced by what it stands for on this machine; that is logged."""
    if settings.captioner.kind == "none":  # type: ignore[attr-defined]
        return settings
    others = {name: without_auto(chosen) for name, chosen in settings.annotators.items()}
    return replace(settings, annotator=without_auto(settings.annotator), annotators=others)
