"""The Ray actor that everybody asks for news: weights, captions, labels and reward tables (Ray shell, no maths)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from numpy.typing import NDArray

from onibi.actors.evaluation import FrozenRewards
from onibi.clusters.coordinator.store_node import on_node
from onibi.clusters.run_state import cover_lost_captions
from onibi.platform.annotation.annotator import Request
from onibi.platform.annotation.annotator_health import AnnotatorHealth
from onibi.platform.annotation.desk import AnnotationDesk
from onibi.platform.annotation.desk_report import CaptionReportRow
from onibi.platform.annotation.labels import Judge, Label, Preference
from onibi.platform.annotation.shared_annotations import SharedAnnotations
from onibi.platform.annotation.table import AnnotationTable
from onibi.platform.annotation.worker_requests import Worker, WorkerRequests
from onibi.platform.fragment import CaptionText
from onibi.platform.hub_log import tell_warnings
from onibi.platform.policy import NO_WEIGHTS
from onibi.platform.process_usage import ProcessUsage, process_usage
from onibi.platform.rewards.table import RewardTable
from onibi.platform.rewards.training import LabelledKeys, MemberScores

log = logging.getLogger(__name__)

_TABLE_BYTES_PER_SECOND = 2e6
"""To each who follows reward tables. A table of 100,000 captions has 1.7 MB and takes its reader 30 ms to unfold, and
each new caption may make one."""


class News:
    """Wakes all who wait when there is something new. No news is missed between looking and waiting: neither yields."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def tell(self) -> None:
        """Wake all who wait now."""
        told, self._next = self._next, asyncio.Event()
        told.set()

    async def wait(self, seconds: float) -> None:
        """Until the next news, or for ``seconds``."""
        try:
            await asyncio.wait_for(self._next.wait(), seconds)
        except TimeoutError:
            return


def hub_options(annotation_table: str | None) -> dict[str, Any]:
    """Ray's options for the hub: where labels are kept on disk it runs on this node, whose folder was meant."""
    if annotation_table is None:
        return {}
    node = ray.get_runtime_context().get_node_id()
    # A head may offer no CPUs, and the hub must not go elsewhere for the little that it would ask.
    return {"num_cpus": 0, **on_node(node)}


@ray.remote(num_cpus=0.05)
class HubActor:
    """Long polls instead of polling: who asks for something newer is answered when there is some, or after a wait.

    Holds the caption table, the queues and the labels (:class:`AnnotationDesk`), and the reference to the newest
    weights. The weights themselves never pass through here.

    Args:
        make_desk: makes the desk for a clock.
        judges: of each annotator, by name.
        keeping: judges whose labels go to disk.
        annotation_table: folder of the labels on disk; None for none.
        desk_state: to go on from; None starts anew.
        weights_to_come: whether the learner begins with those of a checkpoint.
    """

    def __init__(
        self,
        make_desk: Callable[[Callable[[], float]], AnnotationDesk],
        judges: Mapping[str, Judge],
        keeping: Sequence[Judge],
        annotation_table: str | None,
        desk_state: dict[str, pa.Table] | None,
        weights_to_come: bool,
    ) -> None:
        self._notes: list[str] = []
        tell_warnings("hub", self._notes.extend)
        self._judges = judges
        self._health = AnnotatorHealth(judges)
        self._weights_version: int = NO_WEIGHTS
        self._weights_to_come = weights_to_come
        self._weights: list[Any] = []
        self._weights_news, self._table_news, self._queue_news = News(), News(), News()
        # Raised by `start`: of an exception in a constructor Ray tells no more than its text, traceback and all.
        self._fault: Exception | None = None
        try:
            self._desk = make_desk(time.monotonic)
            if desk_state is not None:
                self._desk.restore(desk_state)
            self._labels = None if annotation_table is None else AnnotationTable(Path(annotation_table))
            self._shared = SharedAnnotations(self._desk, self._labels, keeping, self._table_news.tell)
            self._workers = WorkerRequests(self._shared, judges, self._desk.settings.desk.lease_seconds)
        except Exception as error:  # noqa: BLE001 (raised later)
            self._fault = error

    async def start(self, env_steps: int) -> None:
        """Begin a session of a run that has made so many env steps; comes before all other calls. What a resumed run
        pays must not wait for its first new row.

        Raises: what making the hub raised.
        """
        if self._fault is not None:
            raise self._fault
        await self.advance(env_steps)

    async def publish_weights(self, version: int, reference: list[Any]) -> None:
        """Take a newer version, ``reference`` being a list that holds one ObjectRef to ``Weights``."""
        if version > self._weights_version:
            self._weights_version, self._weights = version, reference
            self._weights_news.tell()

    async def is_untrained(self) -> bool:
        """Whether there are no weights, nor any of a checkpoint on their way: policies then act at random."""
        return self._weights_version == NO_WEIGHTS and not self._weights_to_come

    async def weights_after(self, version: int, wait_seconds: float) -> list[Any]:
        """[ObjectRef] of weights newer than ``version``; empty when none came in time."""
        if self._weights_version <= version:
            await self._weights_news.wait(wait_seconds)
        return self._weights if self._weights_version > version else []

    async def intern(self, captions: list[CaptionText]) -> NDArray[Any]:
        """Dense caption indices; their unlabelled keys are queued. New captions of labelled keys make a new table."""
        with self._table_changes_told():
            indices = self._desk.intern(captions)
        self._queue_news.tell()
        return indices

    async def see(self, caption_ids: NDArray[Any], rows: NDArray[Any]) -> None:
        """Captions met again, and in how many rows: counted, and queued where they have no label yet."""
        with self._table_changes_told():
            self._desk.see(caption_ids, rows)
        self._queue_news.tell()

    async def begin_work(self, worker: Worker, shift: str) -> str | None:
        """A worker of an annotator is set to work, under a name that it never had before.

        Returns: id of the annotation table that is open here; None without one.
        """
        self._workers.begin(worker, shift)
        self._queue_news.tell()
        return None if self._labels is None else self._labels.table_id

    async def end_work(self, worker: Worker) -> None:
        """A worker of an annotator is gone: what it had waits again."""
        self._workers.end(worker)
        self._queue_news.tell()

    async def take(self, worker: Worker, shift: str, count: int, wait_seconds: float) -> list[Request] | None:
        """Up to ``count`` requests for a worker; empty when none came in time, None where it was set to work anew
        meanwhile, or counted as lost.
        """
        requests = self._take(worker, shift, count)
        if requests or requests is None:
            return requests
        await self._queue_news.wait(wait_seconds)
        return self._take(worker, shift, count)

    async def put(self, annotator: str, records: Sequence[Label | Preference], kept: bool) -> None:
        """Answers of an annotator, and whether it wrote them to the annotation table itself."""
        if not kept and self._labels is not None:
            try:
                self._labels.append(records)
            except OSError as error:
                log.warning("labels cannot be kept in %s: %s", self._labels.folder, error)
        self._desk.put(records)
        self._health.answered(annotator, records)
        self._table_news.tell()
        self._queue_news.tell()

    async def give_back(self, annotator: str, requests: Sequence[Request]) -> None:
        """Requests that an annotator failed at."""
        self._shared.give_back(requests, self._judges[annotator])
        self._queue_news.tell()

    async def tell(self, worker: Worker, figures: Mapping[str, float], notes: Sequence[str]) -> None:
        """How a worker of an annotator does, and what a person should hear of it; also a sign of life."""
        self._workers.renew(worker)
        self._health.tell(worker.annotator, worker.number, figures)
        self._notes += notes

    async def note(self, notes: Sequence[str]) -> None:
        """What a person should hear of any role."""
        self._notes += notes

    async def notes(self) -> list[str]:
        """What a person should hear, since the last call."""
        notes = self._notes.copy()
        del self._notes[: len(notes)]  # the same list: other threads add to it
        return notes

    async def advance(self, env_steps: int) -> None:
        """So many env steps were made."""
        with self._table_changes_told():
            self._desk.advance(env_steps)

    async def training_data(self, newer_than: int, wait_seconds: float) -> LabelledKeys | None:
        """What a reward model learns from, with a version above ``newer_than``; None when there was none in time."""
        data = self._desk.training_data(newer_than)
        if data is None:
            await self._table_news.wait(wait_seconds)
            data = self._desk.training_data(newer_than)
        return data

    async def set_scores(self, scores: MemberScores) -> None:
        """The newest scores of a reward model: they make a new table."""
        self._desk.set_scores(scores)
        self._table_news.tell()

    async def table_after(self, version: int, wait_seconds: float) -> RewardTable | None:
        """A reward table newer than ``version``; None when none came in time. Who follows tables gets the next one
        after a pause, the longer the larger it is; who will not wait (0 s) must not ask often.
        """
        if self._desk.table_version <= version:
            await self._table_news.wait(wait_seconds)
        if wait_seconds and 0 < version < self._desk.table_version:
            await asyncio.sleep(self._desk.captions.caption_keys.nbytes / _TABLE_BYTES_PER_SECOND)
        return self._desk.table(newer_than=version)

    async def cover_lost_captions(self, newest: int, logged: Mapping[int, CaptionText]) -> int:
        """Take captions that ring and log have and the restored table lacks."""
        with self._table_changes_told():
            return cover_lost_captions(self._desk, newest, logged)

    async def frozen_rewards(self, count_power: float) -> FrozenRewards:
        """The caption rewards as they are now."""
        table = self._desk.table(newer_than=-1)
        assert table is not None, "a desk's first table is version 1"
        return FrozenRewards(self._desk.captions, table, count_power)

    async def usage(self) -> ProcessUsage:
        """Processor time."""
        return process_usage()

    async def statistics(self) -> dict[str, float]:
        """Metrics of desk and annotators; labels of other runs are read, even where no annotator asks."""
        self._shared.read()
        return {**self._desk.statistics(), **self._health.metrics()}

    async def state(self) -> dict[str, pa.Table]:
        """The desk's state for a checkpoint."""
        return self._desk.state()

    async def key_texts(self, keys: Sequence[int]) -> list[str]:
        """Texts of keys by their indices."""
        return self._desk.captions.key_texts(keys)

    async def caption_report(self) -> list[CaptionReportRow]:
        """Rows of the captions table."""
        return self._desk.caption_report()

    @contextmanager
    def _table_changes_told(self) -> Iterator[None]:
        """Wake who waits for a table where what is done here makes a new one."""
        version = self._desk.table_version
        try:
            yield
        finally:
            if self._desk.table_version > version:
                self._table_news.tell()

    def _take(self, worker: Worker, shift: str, count: int) -> list[Request] | None:
        self._shared.read()
        return self._workers.take(worker, shift, count)
