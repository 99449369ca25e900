"""The Ray actor that everybody asks for news: weights, captions, labels and reward tables (Ray shell, no maths)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import ray
from numpy.typing import NDArray

from onibi.actors.evaluation import FrozenRewards
from onibi.clusters.run_state import cover_lost_captions
from onibi.platform.annotation_desk import AnnotationDesk
from onibi.platform.annotator import AnnotationRequest
from onibi.platform.desk_report import CaptionReportRow
from onibi.platform.fragment import CaptionText
from onibi.platform.labels import Label
from onibi.platform.policy import NO_WEIGHTS
from onibi.platform.process_usage import ProcessUsage, process_usage
from onibi.platform.reward_table import RewardTable


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


@ray.remote(num_cpus=0.05)
class HubActor:
    """Long polls instead of polling: who asks for something newer is answered when there is some, or after a wait.

    Holds the caption table, the queue and the labels (:class:`AnnotationDesk`), and the reference to the newest
    weights. The weights themselves never pass through here.
    """

    def __init__(
        self, make_desk: Callable[[Callable[[], float]], AnnotationDesk], desk_state: dict[str, pa.Table] | None
    ) -> None:
        self._desk = make_desk(time.monotonic)
        if desk_state is not None:
            self._desk.restore(desk_state)
        self._weights_version: int = NO_WEIGHTS
        self._weights: list[Any] = []
        self._weights_news, self._table_news, self._queue_news = News(), News(), News()

    async def publish_weights(self, version: int, reference: list[Any]) -> None:
        """Take a newer version, ``reference`` being a list that holds one ObjectRef to ``Weights``."""
        if version > self._weights_version:
            self._weights_version, self._weights = version, reference
            self._weights_news.tell()

    async def weights_after(self, version: int, wait_seconds: float) -> list[Any]:
        """[ObjectRef] of weights newer than ``version``; empty when none came in time."""
        if self._weights_version <= version:
            await self._weights_news.wait(wait_seconds)
        return self._weights if self._weights_version > version else []

    async def intern(self, captions: list[CaptionText]) -> NDArray[Any]:
        """Dense caption indices; their unlabelled keys are queued."""
        indices = self._desk.intern(captions)
        self._queue_news.tell()
        return indices

    async def see(self, caption_ids: NDArray[Any], rows: NDArray[Any]) -> None:
        """Captions met again, and in how many rows: counted, and queued where they have no label yet."""
        self._desk.see(caption_ids, rows)
        self._queue_news.tell()

    async def take(self, count: int, wait_seconds: float) -> list[AnnotationRequest]:
        """Up to ``count`` requests, newest first; empty when none came in time."""
        requests = self._desk.take(count)
        if requests:
            return requests
        await self._queue_news.wait(wait_seconds)
        return self._desk.take(count)

    async def put(self, labels: Sequence[Label]) -> None:
        """Labels of requests that were taken."""
        self._desk.put(labels)
        self._table_news.tell()

    async def table_after(self, version: int, wait_seconds: float) -> RewardTable | None:
        """A reward table newer than ``version``; None when none came in time."""
        table = self._desk.table(newer_than=version)
        if table is None:
            await self._table_news.wait(wait_seconds)
            table = self._desk.table(newer_than=version)
        return table

    async def cover_lost_captions(self, newest: int, logged: Mapping[int, CaptionText]) -> int:
        """Take captions that ring and log have and the restored table lacks."""
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
        """The desk's metrics."""
        return self._desk.statistics()

    async def state(self) -> dict[str, pa.Table]:
        """The desk's state for a checkpoint."""
        return self._desk.state()

    async def caption_report(self) -> list[CaptionReportRow]:
        """Rows of the captions table."""
        return self._desk.caption_report()
