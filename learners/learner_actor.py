"""A learner as a Ray actor: trains in slices, publishes weights, follows reward tables (Ray shell)."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray
from numpy.typing import NDArray

from onibi.learners.learner import Learner
from onibi.learners.learner_loop import LearnerLoop
from onibi.learners.weights_outbox import WeightsOutbox
from onibi.platform.errors import LearnerLostError, TrainingError
from onibi.platform.hub_calls import raised_there
from onibi.platform.hub_log import tell_warnings
from onibi.platform.policy import Weights, WeightsVersion
from onibi.platform.process_usage import ProcessUsage, process_usage
from onibi.platform.replay.feed import ReplayFeed
from onibi.platform.replay.feed_state import FeedState
from onibi.platform.replay.prefetched_feed import PrefetchedFeed
from onibi.platform.rewards.table import RewardTable
from onibi.platform.rewards.table_log import UNKNOWN_STEPS, TableLog

if TYPE_CHECKING:
    from onibi.learners.bonuses.reward_sources import RewardSources
    from onibi.learners.worker_group import WorkerGroup

log = logging.getLogger(__name__)

_IDLE_SECONDS = 0.001
_PUBLISH_SECONDS = 0.05  # between two publications at least
_TABLE_PAUSE_SECONDS = 0.1  # between two questions for one at least
_TABLE_WAIT_SECONDS = 30.0
_HUB_RETRY_SECONDS = 1.0
_ASKING_SHARE = 0.2  # of the learner's time at most, for tables that an update waits for


@dataclass(frozen=True)
class LearnerParts:
    """What a learner process is made of. ``group`` is there where it is one of several."""

    learner: Learner
    feed: ReplayFeed | PrefetchedFeed
    loop: LearnerLoop
    drawn_at_start: int = 0  # what the limiter's count was before anyone drew
    group: WorkerGroup | None = None
    sources: RewardSources | None = None  # of bonuses, caps and schedules
    table_log: TableLog | None = None  # told which reward table took effect when


@dataclass(frozen=True)
class LearnerNews:
    """What a slice of training brought. ``metrics`` are means since the last slice."""

    updates: int
    drawn_rows: int  # by all learners of its ring since their start
    waited_seconds: float  # for the limiter, since the start of this process
    metrics: dict[str, float]
    figures: dict[str, float]  # of drawing, up to now


@dataclass(frozen=True)
class LearnerSnapshot:
    """A consistent picture between two updates: for checkpoints and evaluations."""

    updates: int
    drawn_rows: int  # by all learners of its ring since their start
    weights: Weights
    learner_state: dict[str, NDArray[Any]]
    feed_state: FeedState
    other_feeds: tuple[FeedState, ...] = ()  # of the other ones of several learners
    bonus_state: dict[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class OwnDraws:
    """Of a learner beside the first."""

    feed_state: FeedState
    drawn_rows: int  # from its ring, by whoever draws from it


@ray.remote(max_restarts=0)
class LearnerActor:
    """Loads torch when it is made, and what it learns with in :meth:`build`. Args: hub: handle. threads: of torch."""

    def __init__(self, hub: Any, threads: int) -> None:
        tell_warnings("learner", hub.note.remote)
        self._hub = hub
        self._reference: Any = None
        self._outbox = WeightsOutbox(self._send, _PUBLISH_SECONDS)
        self._sender = ThreadPoolExecutor(max_workers=1, thread_name_prefix="publish")
        self._sending: Future[None] | None = None
        self._fault: Exception | None = None
        self._parts: LearnerParts | None = None  # while it is being built: a restored learner publishes at once
        self._waited_seconds = 0.0
        self._between_seconds = 0.0
        self._left: float | None = None  # when the last slice ended
        self._table: Future[Any] | None = None  # asked for
        self._ask_table_at = 0.0
        self._missing_told = False
        self._newest_asked_for = 0  # caption
        self._may_wait_at = 0.0
        try:
            import torch

            torch.set_num_threads(threads)
        except Exception as error:  # noqa: BLE001 (raised later: of one in a constructor Ray tells but the text)
            self._fault = error

    def meeting(self) -> str:
        """Where learners on several nodes meet: at a port of this node that nobody listens at now."""
        host = _node_address()
        with socket.create_server((host, 0)) as server:
            return f"tcp://{host}:{server.getsockname()[1]}"

    def build(self, make: Callable[..., LearnerParts], *meeting: list[Any]) -> None:
        """Make the parts in this process, by a function that is given what publishes weights, and where learners on
        several nodes meet: the ObjectRef of that, in a list, as it may never come.

        What goes wrong is raised by the first ``train``, whose answer is the one that is waited for.
        """
        if self._fault is not None:
            return
        try:
            places = [_place_of(reference) for (reference,) in meeting]
            self._parts = make(lambda weights: self._outbox.put(weights, time.monotonic()), *places)
            self._parts.loop.ask_for = self._ask_for
        except Exception as error:  # noqa: BLE001
            self._fault = error

    def train(self, seconds: float) -> LearnerNews:
        """Update for about ``seconds``, as often as the limiter allows, but not before there is a reward table: without
        one all captions are worth nothing, which a resumed run would learn.

        Several learners make each update together: all of them are ready, and the first one's clock ends the slice. So
        they have made the same updates when they answer.

        Raises: TrainingError where learning cannot go on, LearnerLostError where another learner is gone; what the
            building raised.
        """
        parts, began = self._built(), time.monotonic()
        self._between_seconds += 0.0 if self._left is None else began - self._left
        loop, group, end = parts.loop, parts.group, began + seconds
        while True:
            now = time.monotonic()
            self._look_for_table(loop, now)
            self._outbox.send_due(now)
            has_table, goes_on, waits_for_others = loop.table_version > 0, now < end, False
            ready = has_table and loop.ready()
            if group is not None:
                mine = ready
                has_table, ready, goes_on = group.all_agree(has_table, ready, goes_on or group.rank > 0)
                waits_for_others = mine and has_table and not ready
            if not goes_on:
                break
            if ready:
                loop.update()
            elif waits_for_others and parts.feed.is_stuck():
                parts.feed.leave_out()
            else:
                time.sleep(_IDLE_SECONDS)
                self._waited_seconds += time.monotonic() - now
        self._finish_sending(wait=False)
        report = loop.report()
        self._left = time.monotonic()
        return LearnerNews(
            updates=report.updates,
            drawn_rows=self._drawn_rows(),
            waited_seconds=self._waited_seconds,
            metrics=report.metrics,
            figures=parts.feed.figures(),
        )

    def snapshot(self) -> LearnerSnapshot:
        """Weights and all state, copied."""
        parts = self._built()
        state = {name: tensor.detach().cpu().numpy() for name, tensor in parts.learner.state_dict().items()}
        return LearnerSnapshot(
            updates=parts.loop.updates,
            drawn_rows=self._drawn_rows(),
            weights=parts.loop.weights(),
            learner_state=state,
            feed_state=parts.feed.state(),
            bonus_state={} if parts.sources is None else parts.sources.state(),
        )

    def own_draws(self) -> OwnDraws:
        """What only this one of several learners knows."""
        return OwnDraws(self._built().feed.state(), self._drawn_rows())

    def usage(self) -> ProcessUsage:
        """Processor time, and where training has spent its time."""
        waits = {"wait": self._waited_seconds, "between slices": self._between_seconds}
        return process_usage({**waits, **self._built().loop.spent_seconds})

    def _drawn_rows(self) -> int:
        # The feed's own count is the limiter's: a restore re-bases it.
        parts = self._built()
        return parts.feed.drawn_rows - parts.drawn_at_start

    def _built(self) -> LearnerParts:
        if self._fault is not None:
            raise self._fault
        if self._parts is None:
            raise TrainingError(
                "the learner's process was asked to train and never built: what it builds with could not be brought to "
                "it. Ray's log of this process (/tmp/ray/session_latest/logs) tells why."
            )
        return self._parts

    def _send(self, weights: Weights) -> None:
        """Publish in a thread: putting a few kilobytes into the object store is some milliseconds of waiting for it."""
        self._finish_sending(wait=True)
        self._sending = self._sender.submit(self._publish, weights)

    def _finish_sending(self, *, wait: bool) -> None:
        """Raise what went wrong with the last publication, where it has ended or is waited for."""
        if self._sending is not None and (wait or self._sending.done()):
            sending, self._sending = self._sending, None
            sending.result()

    def _publish(self, weights: Weights) -> None:
        # The reference is kept here until the next one is out: an actor may be fetching it at this moment.
        reference = ray.put(weights)
        taken = self._hub.publish_weights.remote(int(weights.version), [reference])
        version = weights.version
        taken.future().add_done_callback(lambda told: self._tell_arrival(version, told))
        self._reference = (reference, self._reference[0] if self._reference else None)

    def _tell_arrival(self, version: WeightsVersion, told: Future[Any]) -> None:
        if self._parts is not None and told.exception() is None:
            self._parts.loop.weights_arrived(version)

    def _look_for_table(self, loop: LearnerLoop, now: float) -> None:
        """Take the reward table that was asked for as soon as it is there, and ask for the next when it is time."""
        if self._table is not None and self._table.done():
            asked, self._table = self._table, None
            try:
                self._take_table(asked.result(), loop)
            except ray.exceptions.RayError as error:
                if (fault := raised_there(error)) is not None:
                    raise fault from error
                # No table yet. What was learnt must not die of it: a hub that is gone for good ends the run itself.
                if not self._missing_told:
                    self._missing_told = True
                    log.warning("no reward table comes (%s); it is asked again", str(error).partition("\n")[0])
                self._ask_table_at = now + _HUB_RETRY_SECONDS
        if self._table is None and now >= self._ask_table_at:
            self._ask_table_at = now + _TABLE_PAUSE_SECONDS
            self._table = self._hub.table_after.remote(loop.table_version, _TABLE_WAIT_SECONDS).future()

    def _ask_for(self, caption: int) -> None:
        """Wait for a table that knows a drawn caption, where there is one: a row comes after the table it makes."""
        began, loop = time.monotonic(), self._built().loop
        if caption <= self._newest_asked_for or began < self._may_wait_at:
            return
        try:
            asked = self._hub.table_after.remote(loop.table_version, 0.0)
            self._take_table(ray.get(asked, timeout=_HUB_RETRY_SECONDS), loop)
            self._newest_asked_for = caption  # else it is worth nothing yet, and who follows tables hears when it is
        except ray.exceptions.RayError as error:
            log.debug("no table for caption %d: %s", caption, error)  # who follows tables is told the same
        ended = time.monotonic()
        self._may_wait_at = ended + (ended - began) * (1 / _ASKING_SHARE - 1)

    def _take_table(self, table: RewardTable | None, loop: LearnerLoop) -> None:
        if table is None or table.version <= loop.table_version:
            return
        loop.set_table(table)
        if self._parts is not None and self._parts.table_log is not None:
            self._parts.table_log.add(table, loop.updates, UNKNOWN_STEPS)


def _place_of(meeting: Any) -> str:
    """Where to meet, ready to be met there. Raises: LearnerLostError where the first learner is gone."""
    from onibi.learners.worker_group import use_interface_of

    use_interface_of(_node_address())
    try:
        return str(ray.get(meeting))
    except ray.exceptions.RayError as error:
        raise LearnerLostError(f"the first learner tells no place to meet at ({str(error).splitlines()[0]})") from error


def _node_address() -> str:
    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
