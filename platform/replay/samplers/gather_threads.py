"""Threads that gather rows side by side: ``np.take`` releases the interpreter's lock while it copies."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from queue import SimpleQueue
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onibi.platform.errors import ReplayError

Take: TypeAlias = "tuple[NDArray[Any], NDArray[np.int64], NDArray[Any]]"
"""(source [N, ...], index [m], target [m, ...]): ``target[i] = source[index[i]]``."""

_Order: TypeAlias = "tuple[Sequence[Take], Iterator[int]] | None"

_WORTH_BYTES = 1 << 18
"""Below this much to copy in one call, waking the threads costs more than they save."""
_SHARES = 4
"""Parts per thread that a take is cut into: a thread that is held up by another process leaves more to the others."""


class GatherThreads:
    """Copies rows with ``threads`` threads, the caller's among them; the others live until ``close`` or collection.

    A call returns when every thread has finished its share, so an end check made after it covers all that was read.
    A forked child has none of the others: there the caller's thread copies alone.
    """

    def __init__(self, threads: int) -> None:
        """Start ``threads - 1`` threads. Raises: ReplayError where ``threads`` is below 1."""
        if threads < 1:
            raise ReplayError(f"gather_threads is {threads}, it must be at least 1 (the calling thread)")
        self.threads = threads
        self._process = os.getpid()
        self._orders: list[SimpleQueue[_Order]] = [SimpleQueue() for _ in range(threads - 1)]
        self._finished: SimpleQueue[BaseException | None] = SimpleQueue()
        for orders in self._orders:
            # They hold the queues only, not this object: else it would never be collected.
            threading.Thread(target=_serve, args=(orders, self._finished), name="onibi-gather", daemon=True).start()
        self._stop = weakref.finalize(self, _dismiss, self._orders)

    def take(self, takes: Sequence[Take], meanwhile: Callable[[], None] | None = None) -> None:
        """Carry out all ``takes``; indices must be in range, ``clip`` would hide others.

        ``meanwhile`` is called in this thread while the others copy already (before any copying, where there are none).
        Raises: whatever NumPy or ``meanwhile`` raised in any thread, after all of them have ended.
        """
        small = sum(target.nbytes for _, _, target in takes) < _WORTH_BYTES
        if small or not self._orders or self._process != os.getpid():
            if meanwhile is not None:
                meanwhile()
            _share(takes, count())
            return
        parts = [part for take in takes for part in _parts(take, self.threads * _SHARES)]
        turn = count()  # next() on it is one step for the interpreter: no part is taken twice
        for orders in self._orders:
            orders.put((parts, turn))
        own: BaseException | None = None
        try:
            if meanwhile is not None:
                meanwhile()
            _share(parts, turn)
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


def _parts(take: Take, parts: int) -> Iterator[Take]:
    """A take, cut along its index unless it is small."""
    source, index, target = take
    if target.nbytes < _WORTH_BYTES:
        parts = 1
    for part in range(parts):
        begin, end = len(index) * part // parts, len(index) * (part + 1) // parts
        yield source, index[begin:end], target[begin:end]


def _share(takes: Sequence[Take], turn: Iterator[int]) -> None:
    """The next take whose turn it is, until there is none left."""
    for number in turn:
        if number >= len(takes):
            return
        source, index, target = takes[number]
        # Without mode="clip" np.take buffers its output (docs/replay.md).
        np.take(source, index, axis=0, out=target, mode="clip")


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
