"""Threads that gather rows side by side: ``np.take`` releases the interpreter's lock while it copies."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onibi.platform.errors import ReplayError

Take: TypeAlias = "tuple[NDArray[Any], NDArray[np.int64], NDArray[Any]]"
"""(source [N, ...], index [m], target [m, ...]): ``target[i] = source[index[i]]``."""

_Order: TypeAlias = "tuple[Sequence[Take], int, int] | None"

_WORTH_BYTES = 1 << 18
"""Below this much to copy in one call, waking the threads costs more than they save."""


class GatherThreads:
    """Copies rows with ``threads`` threads, the caller's among them; the others live until ``close`` or collection.

    A call returns when every thread has finished its share, so an end check made after it covers all that was read.
    """

    def __init__(self, threads: int) -> None:
        """Start ``threads - 1`` threads. Raises: ReplayError where ``threads`` is below 1."""
        if threads < 1:
            raise ReplayError(f"gather_threads is {threads}, it must be at least 1 (the calling thread)")
        self.threads = threads
        self._orders: list[SimpleQueue[_Order]] = [SimpleQueue() for _ in range(threads - 1)]
        self._finished: SimpleQueue[BaseException | None] = SimpleQueue()
        for orders in self._orders:
            # They hold the queues only, not this object: else it would never be collected.
            threading.Thread(target=_serve, args=(orders, self._finished), name="onibi-gather", daemon=True).start()
        self._stop = weakref.finalize(self, _dismiss, self._orders)

    def take(self, takes: Sequence[Take]) -> None:
        """Carry out all ``takes``, each cut along its index; indices must be in range, ``clip`` would hide others.

        Raises: whatever NumPy raised in any thread, after all of them have ended.
        """
        if not self._orders or sum(target.nbytes for _, _, target in takes) < _WORTH_BYTES:
            _share(takes, 0, 1)
            return
        for part, orders in enumerate(self._orders):
            orders.put((takes, part + 1, self.threads))
        own: BaseException | None = None
        try:
            _share(takes, 0, self.threads)
        except BaseException as error:  # noqa: BLE001 - raised again below, once nobody writes to the targets any more
            own = error
        failures = [self._finished.get() for _ in self._orders]
        for failure in (own, *failures):
            if failure is not None:
                raise failure

    def close(self) -> None:
        """End the threads. May be called again; ``take`` then works with the caller's thread alone."""
        self._stop()
        self._orders = []


def _share(takes: Sequence[Take], part: int, parts: int) -> None:
    """The ``part``-th of ``parts`` equal shares of every take."""
    for source, index, target in takes:
        begin, end = len(index) * part // parts, len(index) * (part + 1) // parts
        # Without mode="clip" np.take buffers its output (contracts §3).
        np.take(source, index[begin:end], axis=0, out=target[begin:end], mode="clip")


def _serve(orders: SimpleQueue[_Order], finished: SimpleQueue[BaseException | None]) -> None:
    while (order := orders.get()) is not None:
        failure: BaseException | None = None
        try:
            _share(*order)
        except BaseException as error:  # noqa: BLE001 - handed to the thread that asked
            failure = error
        del order  # or the last batch's buffers would stay alive
        finished.put(failure)


def _dismiss(queues: Sequence[SimpleQueue[_Order]]) -> None:
    for orders in queues:
        orders.put(None)
