"""Drawing from a ring on another machine: several batches per call, the next calls under way meanwhile. No Ray here."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from onibi.platform.errors import ReplayError
from onibi.platform.replay.draws_batch import DrawsRoom, draw_arrays, draw_of, from_record_batch, to_record_batch
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.samplers.draws import Batch, Draws, PrioritySettings, SlabDraws
from onibi.platform.replay.samplers.fifo_sampler import FifoSampler
from onibi.platform.replay.samplers.frame_stack import FrameStack
from onibi.platform.replay.samplers.make_sampler import make_sampler
from onibi.platform.replay.samplers.prioritized_sampler import PrioritizedSampler
from onibi.platform.replay.samplers.sequence_sampler import SequenceSampler

Call = TypeVar("Call")
"""A call under way: an object reference with Ray, a future elsewhere."""


@dataclass(frozen=True, kw_only=True)
class DrawRequest:
    """What one client draws. Under one seed and one sequence of ring contents the draws are a local sampler's."""

    client: str
    draws: Draws
    seed: int
    lanes: tuple[int, ...] | None = None
    """None: all."""
    columns: tuple[str, ...] | None = None
    """Observation leaves and extra columns; None: all."""
    stack: FrameStack | None = None
    """Which leaves come as frame stacks; None: none."""


class DrawDesk:
    """The side where the ring lies: a sampler per client, several draws per answer."""

    def __init__(self, reader: RingReader) -> None:
        self._reader = reader
        self._clients: dict[str, _Client] = {}

    def open(self, request: DrawRequest) -> pa.RecordBatch:
        """Begin (again) to draw for a client, from its seed on. Returns: one blank batch, which tells all shapes.

        Raises: ReplayError where the ring has no such lanes, columns or windows.
        """
        self._clients[request.client] = client = _Client(self._reader, request)
        return to_record_batch(client.blank)

    def draw(self, client: str, draws: int) -> pa.RecordBatch:
        """The client's next ``draws`` batches, a row each; of slabs as many as there are, which may be none.

        Raises: ReplayError where the client is not known here or the ring has no row yet.
        """
        if draws < 1:
            raise ReplayError(f"{self._reader.path}: client {client!r} asked for {draws} batches, allowed: 1 or more")
        return self._client(client).draw(draws)

    def update(
        self, client: str, lane: NDArray[np.int64], generation: NDArray[np.int64], priority: NDArray[np.float64]
    ) -> int:
        """New priorities [B] by the names of what was drawn. Returns: how many were applied; see
        ``ReplayFeed.give_priorities``.

        Raises: ReplayError where the client is not known here, or for a priority that is NaN, infinite or negative.
        """
        return self._client(client).update(lane, generation, priority)

    def close(self, client: str) -> None:
        """Forget a client."""
        self._clients.pop(client, None)

    def overtaken(self) -> dict[str, int]:
        """What the writer overwrote before it was sent, per client; it was drawn again."""
        return {name: client.overtaken for name, client in self._clients.items()}

    def _client(self, name: str) -> _Client:
        if name not in self._clients:
            raise ReplayError(
                f"{self._reader.path}: no draws are open for client {name!r} (open are {sorted(self._clients)}); "
                "call open first, and again after this process was restarted"
            )
        return self._clients[name]


class _Client:
    """One client's sampler."""

    def __init__(self, reader: RingReader, request: DrawRequest) -> None:
        self._sampler = make_sampler(
            reader,
            request.draws,
            np.random.default_rng(request.seed),
            lanes=request.lanes,
            columns=request.columns,
            stack=request.stack,
        )
        self._priorities: PrioritySettings | None = None
        self._prioritized: PrioritizedSampler | SequenceSampler | None = None
        made = self._sampler
        if not isinstance(request.draws, SlabDraws) and isinstance(made, (PrioritizedSampler, SequenceSampler)):
            self._priorities = request.draws.priorities
            self._prioritized = None if self._priorities is None else made
        self._batches = 0
        self.blank: Batch = self._sampler.allocate(np.zeros)

    @property
    def overtaken(self) -> int:
        return self._sampler.overtaken

    def draw(self, draws: int) -> pa.RecordBatch:
        room, made = DrawsRoom(self.blank, draws), 0
        for number, part in enumerate(room.parts):
            if isinstance(self._sampler, FifoSampler) and not self._sampler.ready:
                break
            if self._prioritized is not None and self._priorities is not None:
                self._prioritized.importance_exponent = self._priorities.importance_exponent_at(self._batches)
            try:
                drawn = self._sampler.draw(out=part)  # type: ignore[arg-type]  # parts are like its blank
            except ReplayError:
                if made:  # those before it are gone from the ring's side: the next call tells the error
                    break
                raise
            room.put(number, drawn)
            self._batches += 1
            made += 1
        return room.to_record_batch(made)

    def update(self, lane: NDArray[np.int64], generation: NDArray[np.int64], priority: NDArray[np.float64]) -> int:
        return 0 if self._prioritized is None else self._prioritized.update(lane, generation, priority)


class RemoteSampler(Generic[Call]):
    """The side of the learner: one batch at a time, with calls ahead so that none is waited for.

    What lies in calls under way was drawn when the call was answered: it lags by up to ``draws × (calls_ahead + 1)``
    batches behind the newest rows and priorities. The position is no part of a checkpoint: after a restart ``seed``
    begins anew.

    Args:
        start: begins a call of ``DrawDesk.draw`` for so many batches.
        start_update: begins a call of ``DrawDesk.update``, given lane, generation and priority.
        wait: the answer of a call.
        blank: what ``DrawDesk.open`` gave.
        draws: batches per call.
        calls_ahead: calls under way while a batch is used; 1 or 2 hide a call's time, more only age the rows.
    """

    def __init__(
        self,
        start: Callable[[int], Call],
        start_update: Callable[[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]], Call],
        wait: Callable[[Call], Any],
        blank: pa.RecordBatch,
        *,
        draws: int = 8,
        calls_ahead: int = 1,
    ) -> None:
        if draws < 1 or calls_ahead < 0:
            raise ReplayError(f"remote draws: draws {draws} must be at least 1, calls_ahead {calls_ahead} at least 0")
        self._start, self._start_update, self._wait = start, start_update, wait
        self._blank = from_record_batch(blank, 0)
        self._draws, self._ahead = draws, calls_ahead
        self._calls: deque[Call] = deque()
        self._updates: deque[Call] = deque()
        self._answer: pa.RecordBatch | None = None
        self._position = 0
        self.drawn_rows = 0
        """As the limiter counts them."""

    def allocate(self, empty: Callable[..., Any] = np.empty) -> Batch:
        """A batch for ``draw(out=...)``, in memory that ``empty(shape, dtype)`` makes."""
        arrays = {name: empty(array.shape, array.dtype) for name, array in draw_arrays(self._blank)}
        return draw_of(type(self._blank), arrays)

    def draw(self, out: Batch | None = None) -> Batch:
        """The next batch: ``Windows``, ``Sequences`` or a ``Slab``, as was asked for.

        Args:
            out: a batch from ``allocate``, filled and returned. None: read-only views of the answer's memory, which is
                held as long as one of them is (with Ray: a plasma object; do not hoard).
        Raises: ReplayError where no slab is there yet; else what the call raised.
        """
        if self._answer is None or self._position == self._answer.num_rows:
            self._answer, self._position = self._next_answer(), 0
        batch = from_record_batch(self._answer, self._position)
        self._position += 1
        self.drawn_rows += batch.drawn_rows
        if out is None:
            return batch
        for (_, target), (_, source) in zip(draw_arrays(out), draw_arrays(batch), strict=True):
            np.copyto(target, source)
        return out

    def _next_answer(self) -> pa.RecordBatch:
        old = len(self._calls)  # of what was asked earlier, an error may be no longer true: rows may have come since
        while len(self._calls) <= self._ahead:
            self._calls.append(self._start(self._draws))
        for _ in range(old):
            try:
                answer = self._wait(self._calls.popleft())
            except Exception:  # noqa: BLE001 - one that lasts is told by the newest call
                continue
            if answer.num_rows:
                return answer
        answer = self._wait(self._calls.popleft())
        if answer.num_rows == 0:
            raise ReplayError("too few rows came in for another slab; draw again later")
        return answer

    def update(self, lane: ArrayLike, generation: ArrayLike, priority: ArrayLike) -> None:
        """New priorities [B] of a drawn batch; they act on draws that are asked for after this call.

        Raises: what an earlier call of this kind raised; ``flush`` raises what the last ones did.
        """
        names = np.array(lane, np.int64), np.array(generation, np.int64)
        self._updates.append(self._start_update(*names, np.array(priority, np.float64)))
        while len(self._updates) > self._ahead + 1:
            self._wait(self._updates.popleft())

    def flush(self) -> int:
        """Wait for all updates under way. Returns: how many of their priorities were applied. Raises: what they did."""
        applied = 0
        while self._updates:
            applied += self._wait(self._updates.popleft())
        return applied
