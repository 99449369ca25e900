"""The Ray actor that everybody asks for news: weights, captions, labels and reward tables (Ray shell, no maths)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import ray
from numpy.typing import NDArray
from onibi.platform.annotation_desk import AnnotationDesk
from onibi.platform.annotator import AnnotationRequest
from onibi.platform.fragment import CaptionText
from onibi.platform.labels import Label
from onibi.platform.policy import NO_WEIGHTS
from onibi.platform.reward_table import RewardTable

News = asyncio.Condition


@ray.remote(num_cpus=0.05)
class HubActor:
    """Long polls instead of polling: who asks for something newer is answered when there is some, or after a wait.

    Holds the caption table, the queue and the labels (:class:`AnnotationDesk`), and the reference to the newest
    weights. The weights themselves never pass through here.
    """

    def __init__(self, desk_arguments: dict[str, Any], desk_state: Any | None = None) -> None:
        self._desk = AnnotationDesk(**desk_arguments)
        if desk_state is not None:
            self._desk.restore(desk_state)
        self._weights_version: int = NO_WEIGHTS
        self._weights: list[Any] = []
        self._weights_news, self._table_news, self._queue_news = News(), News(), News()

    async def publish_weights(self, version: int, reference: list[Any]) -> None:
        """Take a newer version, ``reference`` being a list that holds one ObjectRef to ``Weights``."""
        if version > self._weights_version:
            self._weights_version, self._weights = version, reference
            await _tell(self._weights_news)

    async def weights_after(self, version: int, wait_seconds: float) -> list[Any]:
        """[ObjectRef] of weights newer than ``version``; empty when none came in time."""
        await _wait(self._weights_news, lambda: self._weights_version > version, wait_seconds)
        return self._weights if self._weights_version > version else []

    async def intern(self, captions: Sequence[CaptionText]) -> NDArray[Any]:
        """Dense caption indices; their unlabelled keys are queued."""
        indices = self._desk.intern(captions)
        await _tell(self._queue_news)
        return indices

    async def see(self, caption_ids: NDArray[Any], rows: NDArray[Any]) -> None:
        """Captions met again, and in how many rows: counted, and queued where they have no label yet."""
        self._desk.see(caption_ids, rows)
        await _tell(self._queue_news)

    async def take(self, count: int, wait_seconds: float) -> list[AnnotationRequest]:
        """Up to ``count`` requests, newest first; empty when none came in time."""
        await _wait(self._queue_news, self._desk.has_requests, wait_seconds)
        return self._desk.take(count)

    async def put(self, labels: Sequence[Label]) -> None:
        """Labels of requests that were taken."""
        self._desk.put(labels)
        await _tell(self._table_news)

    async def table_after(self, version: int, wait_seconds: float) -> RewardTable | None:
        """A reward table newer than ``version``; None when none came in time."""
        await _wait(self._table_news, lambda: self._desk.table_version > version, wait_seconds)
        return self._desk.table(newer_than=version)

    async def statistics(self) -> dict[str, float]:
        """The desk's metrics."""
        return self._desk.statistics()

    async def state(self) -> Any:
        """The desk's state for a checkpoint."""
        return self._desk.state()

    async def caption_report(self) -> Any:
        """Rows of the captions table."""
        return self._desk.caption_report()


async def _tell(news: News) -> None:
    async with news:
        news.notify_all()


async def _wait(news: News, is_there: Any, wait_seconds: float) -> None:
    async with news:
        try:
            await asyncio.wait_for(news.wait_for(is_there), wait_seconds)
        except TimeoutError:
            return
