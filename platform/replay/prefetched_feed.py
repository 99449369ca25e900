"""A feed whose batches are drawn ahead by a thread of the learner's process, while it learns from the one before."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onibi.platform.errors import ReplayError
from onibi.platform.replay.feed import ReplayFeed
from onibi.platform.replay.feed_state import FeedState
from onibi.platform.replay.samplers.draws import Batch

_LOOK_SECONDS = 0.001
"""Between two looks whether the limiter allows a batch; nobody tells a thread that rows have come."""


@dataclass(frozen=True)
class _NewPriorities:
    """Priorities that wait for the thread. Copies: the batch's arrays may be filled anew before it comes to them."""

    lane: NDArray[np.int64]
    generation: NDArray[np.int64]
    priorities: NDArray[np.float64]
    reward_version: int


class PrefetchedFeed:
    """Draws up to ``batches`` batches ahead. What is drawn depends on when: runs no longer repeat bit for bit.

    The thread alone uses the feed. Priorities reach the sampler before its next draw, so those of a batch count
    ``batches`` draws later than without a thread. A checkpoint knows nothing of batches that wait: they count as drawn,
    but after a restore nobody learns from them.

    Args:
        feed: with ``buffers_for(batches)`` buffers or more; nobody else may use it from now on.
        batches: that may wait, 1 or more.
        drawn: called by the thread with every batch, to begin copies to a device.
    Raises: ReplayError where there are too few buffers.
    """

    def __init__(self, feed: ReplayFeed, batches: int, drawn: Callable[[Batch], None] | None = None) -> None:
        if batches < 1 or feed.buffers < self.buffers_for(batches):
            raise ReplayError(
                f"{batches} batches ahead need {self.buffers_for(max(1, batches))} buffers, the feed has {feed.buffers}"
            )
        self._feed, self._drawn = feed, drawn
        self._waiting: deque[Batch] = deque()
        self._room = threading.Semaphore(batches)
        self._priorities: deque[_NewPriorities] = deque()
        self._feed_in_use = threading.Lock()
        self._ended = threading.Event()
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None

    @staticmethod
    def buffers_for(batches: int) -> int:
        """Buffers that a feed needs: those that wait or are filled, the one learned from, the one before it."""
        return batches + 2

    @property
    def drawn_rows(self) -> int:
        """Rows drawn, as the limiter counts them, those that wait included."""
        return self._feed.drawn_rows

    def figures(self) -> dict[str, float]:
        """Metrics of drawing, by name."""
        return {**self._feed.figures(), "replay/batches_ahead": float(len(self._waiting))}

    def may_draw(self) -> bool:
        """Whether a batch waits. The first call starts the thread. Raises: what the thread raised."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="onibi-prefetch", daemon=True)
            self._thread.start()
        if self._waiting:
            return True
        if self._failure is not None:
            raise self._failure
        return False

    def draw(self) -> Batch:
        """The batch that has waited longest; its arrays are filled anew after two more were taken.

        Raises: ReplayError where none waits.
        """
        if not self._waiting:
            raise ReplayError("no batch has been drawn ahead; take one when may_draw says so")
        batch = self._waiting.popleft()
        self._room.release()
        return batch

    def is_stuck(self) -> bool:
        """See ``ReplayFeed.is_stuck``."""
        with self._feed_in_use:
            return self._feed.is_stuck()

    def leave_out(self) -> None:
        """Forget the batch that has waited longest; see ``ReplayFeed.leave_out``."""
        batch = self.draw()
        with self._feed_in_use:
            self._feed.leave_out(batch)

    def update_priorities(self, batch: Batch, priorities: ArrayLike, reward_version: int = 0) -> int:
        """New priorities [B] of a batch, made with the reward table of that version; applied before the thread's next
        draw.

        Returns: 0, as none is applied yet. What is wrong with them is raised by a later ``may_draw``.
        """
        self._priorities.append(
            _NewPriorities(batch.lane.copy(), batch.generation.copy(), np.array(priorities, np.float64), reward_version)
        )
        return 0

    def state(self) -> FeedState:
        """For a checkpoint, with all priorities that were given so far."""
        with self._feed_in_use:
            self._apply_priorities()
            return self._feed.state()

    def restore(self, state: FeedState) -> None:
        """Go on drawing from ``state``; batches that wait are dropped."""
        with self._feed_in_use:
            while self._waiting:
                self.draw()
            self._priorities.clear()
            self._feed.restore(state)

    def rebase(self) -> None:
        """See ``ReplayFeed.rebase``."""
        with self._feed_in_use:
            self._feed.rebase()

    def close(self) -> None:
        """End the thread and let go of the ring's memory."""
        self._ended.set()
        self._room.release()
        if self._thread is not None:
            self._thread.join()
        self._feed.close()

    def _serve(self) -> None:
        try:
            while True:
                self._room.acquire()
                while not self._ended.is_set() and not self._fill():
                    self._ended.wait(_LOOK_SECONDS)
                if self._ended.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 - raised again in the learner's thread
            self._failure = error

    def _fill(self) -> bool:
        """One batch, where the limiter allows it; whether it did."""
        with self._feed_in_use:
            self._apply_priorities()
            if not self._feed.may_draw():
                return False
            batch = self._feed.draw()
            if self._drawn is not None:
                self._drawn(batch)
            self._waiting.append(batch)
        return True

    def _apply_priorities(self) -> None:
        while self._priorities:
            new = self._priorities.popleft()
            self._feed.give_priorities(new.lane, new.generation, new.priorities, new.reward_version)
