"""An event loop in a thread of its own, for an annotator that is called from plain code."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from typing import Any, TypeVar

from onibi.platform.errors import AnnotatorError

T = TypeVar("T")


class BackgroundLoop:
    """Runs coroutines beside the caller. The thread starts with the first of them, so that it never crosses a fork.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result, waited for."""
        return asyncio.run_coroutine_threadsafe(work, self._started()).result()

    def iterate(self, items: AsyncGenerator[T]) -> Iterator[T]:
        """Items as they come. Whoever stops reading ends the generator: what it has running is cancelled.

        Raises: what the generator raises, behind the items before it; AnnotatorError where it is closed.
        """
        received: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()

        async def hand_over() -> None:
            try:
                async for item in items:
                    received.put(("item", item))
                received.put(("end", None))
            except BaseException as error:
                received.put(("error", error))
                if not isinstance(error, Exception):
                    raise  # a cancellation is not to be swallowed
            finally:
                await items.aclose()

        future = asyncio.run_coroutine_threadsafe(hand_over(), self._started())
        try:
            while True:
                kind, value = received.get()
                if kind == "end":
                    return
                if kind == "error":
                    if isinstance(value, asyncio.CancelledError):
                        raise AnnotatorError(f"{self._name} was closed while it was asked") from value
                    raise value
                yield value
        finally:
            future.cancel()

    def close(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """End what is running, then run ``last``, then end the thread. Nothing where no coroutine was ever run."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is not None and thread is not None:
            asyncio.run_coroutine_threadsafe(_cancel_others(), loop).result()
            asyncio.run_coroutine_threadsafe(last(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name=self._name, daemon=True)
                self._thread.start()
            return self._loop


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
