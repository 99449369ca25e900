"""The learner's processes as the coordinator sees them: one, or several that make every update together."""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray

from onibi.clusters.coordinator.role_calls import PROCESS_DIED, start_actor
from onibi.clusters.coordinator.roles import build_learner
from onibi.clusters.coordinator.store_node import StoreRoom
from onibi.clusters.run_plan import RunPlan
from onibi.clusters.run_settings import PlacementSettings
from onibi.learners.learner_actor import LearnerActor, LearnerNews, LearnerSnapshot
from onibi.platform.checkpoint import Checkpoint
from onibi.platform.errors import LearnerLostError

log = logging.getLogger(__name__)

_ROLE = "learner"
_SLICE_SECONDS = 0.25  # of training between two answers
_STOP_SECONDS, _LAST_SNAPSHOT_SECONDS = 10.0, 300.0
_SLICES_ASKED = 2  # one is trained while the next one waits: the coordinator's own work is no pause of the learner


class LearnerTeam:
    """Starts the processes, lets them train in slices, and asks them for snapshots.

    The first one speaks for all: it publishes, and its parameters are everybody's. A slice is asked of all at once, and
    one more when all have answered one: so none waits for another that was not asked to train.

    Args:
        hub: handle of the hub.
    """

    def __init__(self, hub: Any) -> None:
        self._hub = hub
        self._prepared = False  # whether the processes have nothing to learn with yet
        self.handles: dict[str, Any] = {}
        """By role: ``learner`` is the first one, ``learner 1`` the next."""
        self.news: LearnerNews | None = None
        """What the first one told last."""
        self._metrics: dict[str, float] = {}
        self._answers: Counter[str] = Counter()
        self._asked = 0  # slices, of each
        self._snapshots: list[Any] = []  # asked for: the first one's, then what others alone know
        self._drawn: dict[str, int] = {}  # rows, of those beside the first that have rings of their own
        self._shards = 1

    @staticmethod
    def includes(role: str) -> bool:
        """Whether a role of the run is one of these."""
        return role.split()[0] == _ROLE

    def prepare(self, placement: PlacementSettings, room: StoreRoom) -> None:
        """Start the processes in the room that they share with their shard, after ending those that there are. They
        load torch meanwhile, for a second or more, and wait for ``start``.
        """
        self.end()
        for number in range(placement.learners):
            self.handles[_ROLE if number == 0 else f"{_ROLE} {number}"] = start_actor(
                LearnerActor,
                room.learner_options(number),
                self._hub,
                placement.learner_threads,
            )
        self._prepared = True

    def start(
        self, plan: RunPlan, rings: Sequence[str], room: StoreRoom, incarnation: int, checkpoint: Checkpoint | None
    ) -> dict[Any, str]:
        """Start all anew from a checkpoint; in the processes that were prepared where that is their first time.

        Args:
            plan: what to build.
            rings: path of the ring that they read, or of one for each.
            room: on the nodes that have them in their memory.
            incarnation: higher than that of the ones before.
            checkpoint: None starts untrained.
        Returns: references of their first slices, with the role of each.
        """
        if not self._prepared:
            self.prepare(plan.settings.placement, room)
        self._prepared, self.news = False, None
        self._snapshots = []
        self._metrics = {}
        self._drawn, self._shards = {}, len(rings)
        handles = list(self.handles.values())
        meeting = [[handles[0].meeting.remote()]] if self._shards > 1 else []
        for number, handle in enumerate(handles):
            ring = rings[number % self._shards]
            handle.build.remote(functools.partial(build_learner, plan, ring, incarnation, checkpoint, number), *meeting)
        self._answers.clear()
        self._asked = 0
        return self._train()

    def heard(self, role: str, news: LearnerNews) -> dict[Any, str]:
        """Take an answer. Returns: references of further slices with their roles; none while others train."""
        self._take(role, news)
        self._answers[role] += 1
        return self._train()

    def take_metrics(self) -> dict[str, float]:
        """Figures of the slices that were heard of since the last call, of each the mean that the last slice with it
        told: an interval has several, and one that waited for the limiter tells nothing of updates.
        """
        metrics, self._metrics = self._metrics, {}
        return metrics

    def stop(self, running: Mapping[Any, str], seconds: float) -> None:
        """Hear the slices that are under way, and ask for no more.

        Args:
            running: reference → role, of the whole run.
            seconds: that they are waited for.
        Raises: what a learner could not go on with. One that died is no news: its last checkpoint is there.
        """
        slices = [reference for reference, role in running.items() if self.includes(role)]
        answered, _ = ray.wait(slices, num_returns=len(slices), timeout=seconds) if slices else ([], [])
        for reference in slices:
            if reference not in answered:
                continue
            try:
                self._take(running[reference], ray.get(reference))
            except PROCESS_DIED as error:
                log.warning("%s: %s", running[reference], error)
            except ray.exceptions.RayTaskError as error:
                if not isinstance(error.cause, LearnerLostError):
                    raise error.cause from error

    def snapshot(self, wait_seconds: float = 0.0) -> LearnerSnapshot | None:
        """State of all after the same update, between two slices.

        Returns: None where it does not come within ``wait_seconds``, so to be called again: they may be in a long
            update, or for ever in one; or where one of them has just died: the watch replaces them.
        """
        if not self._snapshots:
            first, *others = self.handles.values()
            self._snapshots = [first.snapshot.remote(), *(other.own_draws.remote() for other in others)]
        asked = self._snapshots
        if len(ray.wait(asked, num_returns=len(asked), timeout=wait_seconds)[0]) < len(asked):
            return None
        self._snapshots = []
        try:
            snapshot, *others_own = ray.get(asked)
        except PROCESS_DIED as error:
            log.warning("learner: %s; this checkpoint is left out", error)
            return None
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, LearnerLostError):
                return None
            raise
        feeds = tuple(each.feed_state for each in others_own)
        whole: LearnerSnapshot = dataclasses.replace(snapshot, other_feeds=feeds)
        if self._shards == 1:
            return whole
        drawn = sum(each.drawn_rows for each in others_own)
        return dataclasses.replace(whole, drawn_rows=whole.drawn_rows + drawn)

    def last_snapshot(self, should_stop: Callable[[], bool] = lambda: False) -> LearnerSnapshot | None:
        """``snapshot`` at the end of a run, waited for unless ``should_stop``: the update at hand may be a long one.

        Returns: None where it never comes; then what was learnt since the last checkpoint is lost, and that is logged.
        """
        began, is_told = time.monotonic(), False
        self._snapshots = []  # one that was asked for before lacks the updates since
        while not should_stop() and (waited := time.monotonic() - began) < _LAST_SNAPSHOT_SECONDS:
            if (snapshot := self.snapshot(_SLICE_SECONDS)) is not None:
                return snapshot
            if not self._snapshots:
                break  # it died
            if waited > _STOP_SECONDS and not is_told:
                is_told = True
                log.warning("learner: in an update still; its state is waited for (%.0f s)", _LAST_SNAPSHOT_SECONDS)
        log.warning("learner: it gave no last state; what it learnt since the last checkpoint is lost")
        return None

    def end(self) -> None:
        """End their processes."""
        for handle in self.handles.values():
            ray.kill(handle)
        self.handles = {}

    def _take(self, role: str, news: LearnerNews) -> None:
        if role != _ROLE:
            if self._shards > 1:
                self._drawn[role] = max(news.drawn_rows, self._drawn.get(role, 0))
            return
        if self._drawn:
            news = dataclasses.replace(news, drawn_rows=news.drawn_rows + sum(self._drawn.values()))
        if self.news is None or news.updates >= self.news.updates:
            self.news = news
            self._metrics |= news.metrics
        else:  # two slices are asked for at once, and their answers may come in any order
            self._metrics = {**news.metrics, **self._metrics}

    def _train(self) -> dict[Any, str]:
        """Ask for as many slices as are due: ``_SLICES_ASKED`` more than all have answered."""
        due = min(self._answers[role] for role in self.handles) + _SLICES_ASKED - self._asked
        self._asked += due
        return {handle.train.remote(_SLICE_SECONDS): role for _ in range(due) for role, handle in self.handles.items()}
