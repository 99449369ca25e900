"""A sampler and its limiter: what a learner on the shard's node draws from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from onibi.platform.replay.limiter import DrawnWord, Limiter
from onibi.platform.replay.ring_file import drawn_path
from onibi.platform.replay.ring_reader import RingReader
from onibi.platform.replay.window_gather import Empty
from onibi.platform.replay.windows import Windows


class WindowSampler(Protocol):
    """What a feed asks of a sampler of windows; every one of them has it."""

    @property
    def overtaken(self) -> int:
        """Starts that the writer overwrote before they were handed out."""

    def allocate(self, empty: Empty = ...) -> Windows:
        """Windows for ``draw`` to fill."""

    def draw(self, out: Windows | None = None) -> Windows:
        """One batch."""

    def state(self) -> dict[str, Any]:
        """From which ``restore`` goes on."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""


class ReplayFeed:
    """Draws batches while the limiter allows, and tells the shard through shared memory how many rows were drawn.

    The header is looked at only when the last look's allowance is used up: insertion can only add to it.

    Args:
        reader: the ring, mapped in this process.
        sampler: draws from it.
        limiter: the same as the shard's.
        batch_size: B windows a batch.
        buffers: sets of arrays that batches take turns in; a batch is overwritten ``buffers`` draws later.
    """

    def __init__(
        self, reader: RingReader, sampler: WindowSampler, limiter: Limiter, batch_size: int, buffers: int = 2
    ) -> None:
        self._reader, self._sampler, self._limiter = reader, sampler, limiter
        self._batch_size = batch_size
        self._drawn = DrawnWord(drawn_path(reader.path), writable=True)
        self._allowed_batches = 0
        self._buffers = [sampler.allocate() for _ in range(buffers)]
        self._turn = 0

    @property
    def drawn_rows(self) -> int:
        """Rows drawn, as the limiter counts them."""
        return self._drawn.value

    @property
    def overtaken(self) -> int:
        """Starts that the writer overwrote before they were handed out."""
        return self._sampler.overtaken

    def may_draw(self) -> bool:
        """Whether the limiter allows one more batch now."""
        if self._allowed_batches == 0:
            snapshot = self._reader.snapshot()
            self._allowed_batches = self._limiter.batches_allowed(
                self._batch_size,
                inserted=snapshot.inserted_rows,
                drawn=self._drawn.value,
                readable=snapshot.readable_rows,
            )
        return self._allowed_batches > 0

    def draw(self) -> Windows:
        """The next batch; its arrays are used again ``buffers`` draws later.

        Raises: ReplayError where no row can be drawn.
        """
        self._turn = (self._turn + 1) % len(self._buffers)
        windows = self._sampler.draw(out=self._buffers[self._turn])
        self._drawn.value = self._drawn.value + windows.drawn_rows
        self._allowed_batches = max(0, self._allowed_batches - 1)
        return windows

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"sampler": self._sampler.state(), "drawn_rows": self._drawn.value}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on drawing from the same generator state. The drawn word is the store's business: see ``rebase``."""
        self._sampler.restore(state["sampler"])

    def rebase(self) -> None:
        """Set the limiter's surplus to 0, after a restore with rows missing or added.

        Without it the learner would make a burst of updates, or wait for rows that are lost.
        """
        snapshot = self._reader.snapshot()
        self._drawn.value = self._limiter.rebased_drawn(
            inserted=snapshot.inserted_rows, readable=snapshot.readable_rows
        )
        self._allowed_batches = 0

    def close(self) -> None:
        """Let go of the ring's memory."""
        self._reader.close()
