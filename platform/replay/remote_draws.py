"""Drawing from a ring on another machine: several batches per call, the next calls under way meanwhile. No Ray here."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa

from onibi.platform.errors import ReplayError
from onibi.platform.replay.ring_reader import RingReader
from onibi.platform.replay.sampler import UniformSampler
from onibi.platform.replay.windows import Windows
from onibi.platform.replay.windows_batch import (
    from_windows_batch,
    stacked_windows,
    to_windows_batch,
    window_arrays,
    windows_of,
)

Call = TypeVar("Call")
"""A call under way: an object reference with Ray, a future elsewhere."""


@dataclass(frozen=True, kw_only=True)
class DrawRequest:
    """What one client draws. Under one seed and one sequence of ring contents the windows are a local sampler's."""

    client: str
    seed: int
    n_steps: int
    batch_size: int
    lanes: tuple[int, ...] | None = None
    """None: all."""
    columns: tuple[str, ...] | None = None
    """Observation leaves and extra columns; None: all."""


class DrawDesk:
    """The side where the ring lies: a sampler per client, several draws per answer."""

    def __init__(self, reader: RingReader) -> None:
        self._reader = reader
        self._samplers: dict[str, tuple[UniformSampler, Windows]] = {}

    def open(self, request: DrawRequest) -> pa.RecordBatch:
        """Begin (again) to draw for a client, from its seed on. Returns: one blank batch, which tells all shapes.

        Raises: ReplayError where the ring has no such lanes, columns or windows.
        """
        sampler = UniformSampler(
            self._reader,
            n_steps=request.n_steps,
            batch_size=request.batch_size,
            rng=np.random.default_rng(request.seed),
            lanes=request.lanes,
            columns=request.columns,
        )
        blank = sampler.allocate(np.zeros)
        self._samplers[request.client] = sampler, blank
        return to_windows_batch(blank)

    def draw(self, client: str, draws: int) -> pa.RecordBatch:
        """The client's next ``draws`` batches, one behind the other.

        Raises: ReplayError where the client is not known here or the ring has no row yet.
        """
        if client not in self._samplers:
            raise ReplayError(
                f"{self._reader.path}: no draws are open for client {client!r} (open are {sorted(self._samplers)}); "
                "call open first, and again after this process was restarted"
            )
        if draws < 1:
            raise ReplayError(f"{self._reader.path}: client {client!r} asked for {draws} batches, allowed: 1 or more")
        sampler, like = self._samplers[client]
        room, parts = stacked_windows(like, draws)
        for part in parts:
            places = dict(window_arrays(part))
            for name, array in window_arrays(sampler.draw(out=part)):
                if array is not places[name]:  # small columns come as views of what the sampler planned
                    np.copyto(places[name], array)
        return to_windows_batch(room)

    def close(self, client: str) -> None:
        """Forget a client."""
        self._samplers.pop(client, None)

    def overtaken(self) -> dict[str, int]:
        """Starts per client that the writer overwrote before they were sent; each was drawn again."""
        return {client: sampler.overtaken for client, (sampler, _) in self._samplers.items()}


class RemoteSampler(Generic[Call]):
    """The side of the learner: windows one batch at a time, with calls ahead so that none is waited for.

    Rows in calls under way were drawn when the call was answered: they lag by up to ``draws × (calls_ahead + 1)``
    batches behind the newest. The position is no part of a checkpoint: after a restart ``seed`` begins anew.

    Args:
        start: begins a call of ``DrawDesk.draw`` for so many batches.
        wait: the answer of a call.
        blank: what ``DrawDesk.open`` gave.
        draws: batches per call.
        calls_ahead: calls under way while a batch is used; 1 or 2 hide a call's time, more only age the rows.
    """

    def __init__(
        self,
        start: Callable[[int], Call],
        wait: Callable[[Call], pa.RecordBatch],
        blank: pa.RecordBatch,
        *,
        draws: int = 8,
        calls_ahead: int = 1,
    ) -> None:
        if draws < 1 or calls_ahead < 0:
            raise ReplayError(f"remote draws: draws {draws} must be at least 1, calls_ahead {calls_ahead} at least 0")
        self._start, self._wait = start, wait
        self._blank = from_windows_batch(blank)
        self._draws, self._ahead = draws, calls_ahead
        self._calls: deque[Call] = deque()
        self._answer: pa.RecordBatch | None = None
        self._position = 0
        self.drawn_rows = 0
        """Window starts handed out."""

    def allocate(self, empty: Callable[..., Any] = np.empty) -> Windows:
        """Windows for ``draw(out=...)``, in memory that ``empty(shape, dtype)`` makes."""
        return windows_of({name: empty(array.shape, array.dtype) for name, array in window_arrays(self._blank)})

    def draw(self, out: Windows | None = None) -> Windows:
        """The next batch.

        Args:
            out: windows from ``allocate``, filled and returned. None: read-only views of the answer's memory, which is
                held as long as one of them is (with Ray: a plasma object; do not hoard).
        Raises: what the call raised.
        """
        size = self._blank.batch_size
        if self._answer is None or self._position == self._answer.num_rows:
            while len(self._calls) <= self._ahead:
                self._calls.append(self._start(self._draws))
            self._answer, self._position = self._wait(self._calls.popleft()), 0
        windows = from_windows_batch(self._answer.slice(self._position, size))
        self._position += size
        self.drawn_rows += size
        if out is None:
            return windows
        for (_, target), (_, source) in zip(window_arrays(out), window_arrays(windows), strict=True):
            np.copyto(target, source)
        return out
