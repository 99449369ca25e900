"""Several samplers of one ring, each in a thread of its own: whole batches are gathered side by side."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from queue import SimpleQueue
from typing import Any, TypeAlias

import numpy as np

from onibi.platform.errors import ReplayError
from onibi.platform.replay.samplers.uniform_sampler import UniformSampler
from onibi.platform.replay.samplers.window_gather import Empty
from onibi.platform.replay.samplers.windows import Windows

_Ready: TypeAlias = "tuple[Windows, BaseException | None]"


class SamplerThreads:
    """Draws as ``UniformSampler`` does, from samplers that take turns; each fills up to ``depth`` batches ahead.

    ``np.take`` releases the interpreter's lock, so two threads copy two batches at a time. ``gather_threads`` of one
    sampler cuts every batch in pieces instead: that shortens the wait for one large batch, but the threads must meet
    twice a batch, which costs what it saves where a batch is copied in a third of a millisecond.

    Batches handed out may be older than the newest rows by those drawn ahead. ``restore`` forgets these: the draws that
    follow are as random, but not the ones that would have come.
    """

    def __init__(self, samplers: Sequence[UniformSampler], *, depth: int = 2) -> None:
        """Start drawing with the first ``draw``.

        Args:
            samplers: of the same ring, columns and batch size, each with a generator of its own; used by nobody else.
            depth: batches that each draws ahead.
        Raises: ReplayError where there is no sampler or ``depth`` is below 1.
        """
        if not samplers or depth < 1:
            raise ReplayError(f"{len(samplers)} samplers with a depth of {depth} draw nothing; allowed is 1 or more")
        self._samplers, self._depth = list(samplers), depth
        self._locks = [threading.Lock() for _ in samplers]
        self._free: list[SimpleQueue[Windows | None]] = []
        self._ready: list[SimpleQueue[_Ready]] = []
        self._threads: list[threading.Thread] = []
        self._turn = 0
        self._held: list[Windows | None] = [None] * len(samplers)
        self._stop: Any = None
        self._process = 0  # that the threads are of
        self.drawn_rows = 0
        """Window starts handed out, restored ones included."""

    @property
    def overtaken(self) -> int:
        """Starts that the writer overwrote before they were handed out; each was drawn again."""
        return sum(sampler.overtaken for sampler in self._samplers)

    @property
    def readable_rows(self) -> int:
        """Committed rows of the lanes now, final rows included."""
        return self._samplers[0].readable_rows

    def allocate(self, empty: Empty = np.empty) -> Windows:
        """Windows for ``draw`` to exchange; see ``UniformSampler.allocate``."""
        return self._samplers[0].allocate(empty)

    def draw(self, out: Windows | None = None) -> Windows:
        """The next batch.

        Args:
            out: windows from ``allocate``: their arrays are exchanged for filled ones, and filled later themselves.
                None hands out arrays that are filled again after as many further draws as there are samplers.
        Raises: ReplayError where no row can be drawn yet, and in a child that was forked since the first draw.
        """
        if self._stop is None:
            self._start()
        if self._process != os.getpid():  # it would wait for ever
            raise ReplayError(
                "these samplers draw in threads of the process that this one was forked from; make samplers and "
                "SamplerThreads in the child, or fork before the first draw"
            )
        turn = self._turn
        windows, failure = self._ready[turn].get()
        for _ in range(self._depth + 1):  # as many batches may have failed before the rows came in
            if failure is None:
                break
            self._free[turn].put(windows)
            windows, failure = self._ready[turn].get()
        if failure is not None:
            self._free[turn].put(windows)
            raise failure
        self._turn = (turn + 1) % len(self._samplers)
        self.drawn_rows += windows.batch_size
        if out is None:
            before, self._held[turn] = self._held[turn], windows
            if before is not None:
                self._free[turn].put(before)
            return windows
        out.__dict__, windows.__dict__ = windows.__dict__, out.__dict__
        self._free[turn].put(windows)
        return out

    def state(self) -> dict[str, Any]:
        """Plain values; waits for the batches that are being drawn."""
        samplers = []
        for sampler, lock in zip(self._samplers, self._locks, strict=True):
            with lock:
                samplers.append(sampler.state())
        return {"samplers": samplers, "drawn_rows": self.drawn_rows}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``; batches drawn ahead are forgotten.

        Raises: ReplayError where it was taken of another number of samplers.
        """
        if len(state["samplers"]) != len(self._samplers):
            raise ReplayError(
                f"the state is of {len(state['samplers'])} samplers, there are {len(self._samplers)}; restore it with "
                "as many threads as it was taken with"
            )
        self.close()
        for sampler, its in zip(self._samplers, state["samplers"], strict=True):
            sampler.restore(its)
        self.drawn_rows, self._turn = int(state["drawn_rows"]), 0

    def close(self) -> None:
        """End the threads, when they have finished their batches. ``draw`` starts new ones."""
        if self._stop is not None:
            self._stop()
            for thread in self._threads:
                thread.join()
        self._threads, self._stop = [], None
        self._held = [None] * len(self._samplers)

    def _start(self) -> None:
        self._process = os.getpid()
        self._free = [SimpleQueue() for _ in self._samplers]
        self._ready = [SimpleQueue() for _ in self._samplers]
        for parts in zip(self._samplers, self._locks, self._free, self._ready, strict=True):
            # They hold queues and a sampler, not this object: else it would never be collected.
            thread = threading.Thread(target=_serve, args=parts, name="onibi-sampler", daemon=True)
            thread.start()
            self._threads.append(thread)
            for _ in range(self._depth + 1):
                parts[2].put(parts[0].allocate())
        self._stop = weakref.finalize(self, _dismiss, self._free)


def _serve(
    sampler: UniformSampler, lock: threading.Lock, free: SimpleQueue[Windows | None], ready: SimpleQueue[_Ready]
) -> None:
    while (windows := free.get()) is not None:
        failure: BaseException | None = None
        try:
            with lock:
                sampler.draw(windows)
        except BaseException as error:  # noqa: BLE001 - handed to the thread that draws
            failure = error
        ready.put((windows, failure))


def _dismiss(queues: Sequence[SimpleQueue[Windows | None]]) -> None:
    for free in queues:
        free.put(None)
