"""Draw, mix, update, publish: what a learner process does over and over. Runs without Ray (serial mode, tests)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onibi.learners.batch_file import save_batch
from onibi.learners.learner import Learner, Update
from onibi.learners.publish_delay import PublishDelay
from onibi.platform.errors import NonFiniteError, OnibiError, TrainingError
from onibi.platform.policy import Weights, WeightsVersion, updates_of, weights_version
from onibi.platform.replay.samplers.draws import Batch
from onibi.platform.replay.samplers.sequences import Sequences
from onibi.platform.replay.samplers.windows import Windows
from onibi.platform.rewards.mixer import NO_SOURCES, MixedRewards, RewardMixer
from onibi.platform.rewards.settings import INTRINSIC
from onibi.platform.rewards.table import RewardTable
from onibi.platform.user_code import raised_in_own_code

if TYPE_CHECKING:
    from onibi.learners.bonuses.reward_sources import RewardSources
    from onibi.learners.device_copies import DeviceCopies


class BatchSource(Protocol):
    """A sampler of a replay store with the limiter's word for how much may be drawn: a feed."""

    def may_draw(self) -> bool:
        """Whether the limiter allows one more batch now."""

    def draw(self) -> Batch:
        """The next batch; counted as drawn."""

    def update_priorities(self, batch: Batch, priorities: ArrayLike, reward_version: int = 0) -> int:
        """New priorities [B] of a drawn batch, made with the reward table of that version; how many were applied."""


@dataclass(frozen=True)
class LearnerReport:
    """Means of the metrics since the last report, and the learner's counters."""

    updates: int
    metrics: dict[str, float]


class LearnerLoop:
    """One learner with its feed.

    Args:
        learner: updated in place.
        source: where batches come from.
        mixer: turns batches and the newest table into rewards.
        incarnation: of this learner process in its run; orders its weights after those of the ones before it.
        publish: called with a copy of the weights whenever ``publish_period_updates`` more updates are made, and at the
            start where there are any updates; must not wait. None publishes nothing (all but one of several workers).
        faults: folder for a batch that could not be learned from; None: the system's for temporary files.
        sources: what the mixer needs beside batch and table, and what learns with it (bonuses); None: nothing.
        replaces: whether it stands in for a learner that died: then it publishes at the start in any case. An actor
            that was started again waits for weights, and those of the dead one died with it.
    """

    def __init__(
        self,
        learner: Learner,
        source: BatchSource,
        mixer: RewardMixer,
        incarnation: int,
        publish: Callable[[Weights], None] | None,
        publish_period_updates: int,
        faults: Path | None = None,
        sources: RewardSources | None = None,
        replaces: bool = False,
    ) -> None:
        self._learner, self._source, self._mixer = learner, source, mixer
        self._incarnation, self._publish, self._period = incarnation, publish, publish_period_updates
        self._faults, self._sources, self._delay = faults, sources, PublishDelay()
        # A learner may do without: its arrays are then copied to its device when it comes to them.
        self._copies: DeviceCopies | None = getattr(learner, "copies", None)
        self._table: RewardTable | None = None
        self._pays_captions = INTRINSIC in mixer.components
        self.ask_for: Callable[[int], None] | None = None
        """Called with a drawn caption that is newer than the table, before it is paid; may call ``set_table``. None
        where no table can be on its way.
        """
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self.spent_seconds = {"draw": 0.0, "mix": 0.0, "update": 0.0, "publish": 0.0, "bonuses": 0.0}
        if learner.updates or replaces:
            self._publish_now()  # an untrained network publishes nothing: without weights policies act at random

    @property
    def updates(self) -> int:
        """Updates made, restored ones included."""
        return self._learner.updates

    @property
    def table_version(self) -> int:
        """Version of the reward table in use, −1 before the first."""
        return -1 if self._table is None else self._table.version

    def set_table(self, table: RewardTable) -> None:
        """Pay captions by a newer table from the next batch on; all rows in replay are re-labelled by that."""
        if table.version > self.table_version:
            self._table = table

    def ready(self) -> bool:
        """Whether an update may be made now."""
        return self._source.may_draw()

    def update(self) -> None:
        """One batch: draw, pay, learn, hand its priorities back, publish when due.

        Raises: TrainingError as the learner's ``update``.
        """
        began = time.perf_counter()
        batch = self._source.draw()
        drawn = time.perf_counter()
        self._ask_for_newer(batch)
        sources = NO_SOURCES if self._sources is None else self._sources.gather(batch, self._table)
        mixed = self._mixer.mix(batch, self._table, sources)
        paid = time.perf_counter()
        before = self.updates
        updated = self._learn(batch, mixed)
        if updated.priorities is not None:
            self._source.update_priorities(batch, updated.priorities, self.table_version)
        learnt = time.perf_counter()
        if updated.metrics:
            # Looked at as often as the learner looks: every update would cost more than it tells.
            self._note({f"learner/{name}": value for name, value in updated.metrics.items()})
            self._note(batch_metrics(batch, mixed, before))
        # An update may take several gradient steps, and so step over a multiple of the period.
        if self.updates // self._period > before // self._period:
            self._publish_now()
        published = time.perf_counter()
        if self._sources is not None:
            self._sources.learn()
        spent = (drawn - began, paid - drawn, learnt - paid, published - learnt, time.perf_counter() - published)
        for part, seconds in zip(self.spent_seconds, spent, strict=True):
            self.spent_seconds[part] += seconds

    def report(self) -> LearnerReport:
        """Metrics since the last call."""
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        means["learner/table_version"] = float(self.table_version)
        if self._sources is not None:
            means |= self._sources.metrics()
        return LearnerReport(self.updates, means | self._delay.take())

    def weights_arrived(self, version: WeightsVersion) -> None:
        """Actors can have the published weights of this version; to be called in any thread, for the metrics."""
        self._delay.arrived(int(updates_of(np.asarray(version))), self.updates, time.monotonic())

    def weights(self) -> Weights:
        """A copy of the weights as they are, with what actors need for bonuses."""
        weights = self._learner.weights(weights_version(self._incarnation, self.updates))
        return weights if self._sources is None else replace(weights, bonuses=self._sources.weights())

    def _ask_for_newer(self, batch: Batch) -> None:
        """Rows that are drawn once, as soon as they are there, would else never be paid for a new caption."""
        if self.ask_for is None or self._table is None or not self._pays_captions:
            return
        newest = int(batch.caption_id.max(initial=0))
        if newest >= len(self._table.caption_keys):
            self.ask_for(newest)

    def _learn(self, batch: Batch, mixed: MixedRewards) -> Update:
        if self._copies is not None:
            self._copies.send_missing(batch)
        try:
            if getattr(self._learner, "reads_terms", False):  # it values each term of the reward by itself
                updated = self._learner.update(batch, mixed.total, mixed.terms)  # type: ignore[call-arg]
            else:
                updated = self._learner.update(batch, mixed.total)
        except NonFiniteError as error:
            try:
                path = save_batch(self._faults, batch, mixed.total, self.updates)
            except OSError as full:  # a full disk must not hide what is wrong
                raise NonFiniteError(f"{error} The last of these batches could not be kept: {full}") from error
            raise NonFiniteError(f"{error} The last of these batches is kept in {path}") from error
        except OnibiError:
            raise
        except Exception as error:
            where = raised_in_own_code(error)
            if not where:
                raise  # a fault of Onibi
            raise TrainingError(f"learning raised {type(error).__name__}: {error}{where}") from error
        if self._copies is not None:
            self._copies.learned()
        return updated

    def _publish_now(self) -> None:
        if self._publish is None:
            return
        updates = self.updates
        self._delay.sent(updates, time.monotonic())
        self._publish(self.weights())

    def _note(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1


def learning_rows(batch: Batch) -> NDArray[np.bool_] | None:
    """Which rows of a batch are learned from: [T, B] of sequences, [B, T] of a slab; None for windows: every start."""
    if isinstance(batch, Windows):
        return None
    return batch.learning_mask if isinstance(batch, Sequences) else batch.used


def batch_metrics(batch: Batch, mixed: MixedRewards, updates: int) -> dict[str, float]:
    """What a batch was like, over the rows that are learned from.

    Args:
        batch: as drawn.
        mixed: its rewards.
        updates: made before it was learned from; rows of the newest weights have the age 0.
    """
    rows = learning_rows(batch)
    metrics = {
        "learner/labelled_share": mixed.labelled_share,
        "learner/reward_clipped_share": mixed.clipped_share,
        **{f"learner/{name}": value for name, value in mixed.metrics.items()},
    }
    versions = batch.policy_version if rows is None else batch.policy_version[rows]
    if not len(versions):  # a slab of final rows
        return metrics
    age = updates - updates_of(versions)
    metrics["learner/data_age_mean_updates"] = float(age.mean())
    metrics["learner/data_age_max_updates"] = float(age.max())
    for name, part in mixed.components.items():
        metrics[f"learner/reward_{name}"] = float((part if rows is None else part[rows]).mean())
    return metrics
