"""A sampler and its limiter: what a learner on the shard's node draws from."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onibi.platform.errors import ReplayError
from onibi.platform.replay.feed_state import FeedState
from onibi.platform.replay.limiter import DrawnWord, Limiter
from onibi.platform.replay.ring.file import drawn_path
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.samplers.draws import Batch, Draws, SequenceDraws, SlabDraws, WindowDraws
from onibi.platform.replay.samplers.fifo_sampler import FifoSampler
from onibi.platform.replay.samplers.frame_stack import FrameStack
from onibi.platform.replay.samplers.make_sampler import make_sampler
from onibi.platform.replay.samplers.prioritized_sampler import PrioritizedSampler
from onibi.platform.replay.samplers.sequence_sampler import SequenceSampler
from onibi.platform.replay.samplers.uniform_sampler import UniformSettings
from onibi.platform.replay.samplers.window_gather import Empty

log = logging.getLogger(__name__)

BatchT = TypeVar("BatchT")

_STUCK_AFTER = 20
"""Words in a row that another learner cannot draw, after which one of several gives up waiting for it."""
_RING_FREE = (
    *("generator", "importance_exponent", "drawn_rows", "overtaken", "late_updates", "replaced_priorities"),
    *("final_rows", "lost_rows"),
)
"""Keys of a sampler's state that say nothing about the rows of a ring."""


class BatchSampler(Protocol[BatchT]):
    """What a feed asks of a sampler; every one has it."""

    @property
    def overtaken(self) -> int:
        """Starts, sequences or lanes of a slab that the writer overwrote before they were handed out."""

    def allocate(self, empty: Empty = ...) -> BatchT:
        """A batch for ``draw`` to fill."""

    def draw(self, out: BatchT | None = None) -> BatchT:
        """One batch."""

    def state(self) -> dict[str, Any]:
        """From which ``restore`` goes on."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""


class ReplayFeed:
    """Draws batches while the limiter allows, and tells the shard through shared memory how many rows were drawn.

    The header is looked at only when the last look's allowance is used up: insertion can only add to it. Slabs, whose
    rows are drawn once, are allowed whenever their rows are there: it is the actors that wait then.

    Several learners that draw slabs begin at common rows (``common_begin``) and take as many from their lanes at each
    draw. Where lanes fill unequally (a final row of its own for each episode's end), one may run dry while rows pile
    up for another and the actors wait: the other one then leaves a slab out (``is_stuck``).

    Args:
        reader: the ring, mapped in this process.
        draws: what to draw; the sampler is made from it.
        limiter: the same as the shard's.
        rng: of the sampler.
        lanes: to draw from, None for all.
        columns: observation leaves and extra columns to gather, None for all.
        buffers: sets of arrays that batches take turns in; a batch is overwritten ``buffers`` draws later.
        empty: makes the memory of observations (pinned memory for a GPU).
        gather_threads: threads that copy rows.
        stack: which leaves come as frame stacks; None for none.
        learner: number of this one among ``learners``, which draw from other lanes in step: one batch each.
        learners: that the limiter lets draw together.
    """

    def __init__(
        self,
        reader: RingReader,
        draws: Draws,
        limiter: Limiter,
        rng: np.random.Generator,
        *,
        lanes: Sequence[int] | None = None,
        columns: Sequence[str] | None = None,
        buffers: int = 2,
        empty: Empty = np.empty,
        gather_threads: int = 1,
        stack: FrameStack | None = None,
        learner: int = 0,
        learners: int = 1,
    ) -> None:
        self._reader, self._draws, self._limiter = reader, draws, limiter
        self._learner, self._learners = learner, learners
        made = make_sampler(
            reader, draws, rng, lanes=lanes, columns=columns, gather_threads=gather_threads, stack=stack
        )
        self._sampler: BatchSampler[Any] = made
        self._fifo = made if isinstance(made, FifoSampler) else None
        self._priorities = None if isinstance(draws, SlabDraws) else draws.priorities
        self._prioritized = (
            made if self._priorities is not None and isinstance(made, (PrioritizedSampler, SequenceSampler)) else None
        )
        frames = 1 if stack is None else stack.frames
        self._state_fits = f"{_kind(draws)}, lanes {'all' if lanes is None else sorted(lanes)}, {frames} frames"
        self._drawn = DrawnWord(drawn_path(reader.path), writable=True, learner=learner)
        self._allowed_batches = 0
        self._batches = 0
        self._lost_rows = 0
        self._left_out_rows = 0
        self._waits_for_others = 0
        self._buffers: list[Any] = [made.allocate(empty) for _ in range(buffers)]
        self._turn = 0
        if self._fifo is not None and self._drawn.value and not self.begins_together:
            skipped = self._fifo.skip_to_newest()
            self.rebase()
            log.info("%d rows of an earlier learner are left out: slabs begin with the newest rows", skipped)

    @property
    def drawn_rows(self) -> int:
        """Rows drawn by all learners, as the limiter counts them."""
        return self._drawn.value

    @property
    def buffers(self) -> int:
        """Sets of arrays that batches take turns in."""
        return len(self._buffers)

    @property
    def draws(self) -> Draws:
        """What is drawn."""
        return self._draws

    @property
    def begins_together(self) -> bool:
        """Whether this is one of several learners that must agree on the rows to begin with, by ``begin_at``."""
        return self._fifo is not None and self._learners > 1

    def figures(self) -> dict[str, float]:
        """Metrics of drawing, by name.

        Overtaken draws were made again; lost rows were overwritten before they were drawn, which none should be; rows
        left out were drawn for nothing, see ``is_stuck``; late priorities came after their row was overwritten; draws
        by stale priorities were by one made with an older reward table than the newest priorities.
        """
        figures = {"replay/overtaken_draws": float(self._sampler.overtaken)}
        if self._fifo is not None:
            figures["replay/lost_rows"] = float(self._fifo.lost_rows)
        if self.begins_together:
            figures["replay/left_out_rows"] = float(self._left_out_rows)
        if self._prioritized is not None:
            figures["replay/late_priorities"] = float(self._prioritized.late_updates)
            figures["replay/stale_priority_draws"] = float(self._prioritized.stale_draws)
            figures["replay/importance_exponent"] = self._prioritized.importance_exponent
        return figures

    def may_draw(self) -> bool:
        """Whether one more batch may be drawn now."""
        if self._fifo is not None:
            ready = self._fifo.ready
            self._give_up_lost_rows()
            return ready
        if self._allowed_batches == 0:
            snapshot = self._reader.snapshot()
            self._allowed_batches = self._limiter.batches_allowed(
                self._draws.batch_rows * self._learners,
                inserted=snapshot.inserted_rows,
                drawn=self._drawn.value,
                readable=snapshot.readable_rows,
            )
        return self._allowed_batches > 0

    def draw(self) -> Batch:
        """The next batch; its arrays are used again ``buffers`` draws later.

        Raises: ReplayError where no row can be drawn.
        """
        if self._prioritized is not None and self._priorities is not None:
            self._prioritized.importance_exponent = self._priorities.importance_exponent_at(self._batches)
        self._turn = (self._turn + 1) % len(self._buffers)
        batch: Batch = self._sampler.draw(out=self._buffers[self._turn])
        self._drawn.add(batch.drawn_rows)
        self._allowed_batches = max(0, self._allowed_batches - 1)
        self._batches += 1
        self._waits_for_others = 0
        self._give_up_lost_rows()
        return batch

    def is_stuck(self) -> bool:
        """To be asked by one of several learners whenever it could draw and another one could not, in turns with all
        others: whether that has lasted, and the actors wait as well, so that ``leave_out`` is all that helps.
        """
        self._waits_for_others += 1
        if not self.begins_together or self._waits_for_others < _STUCK_AFTER:
            return False
        snapshot, limiter = self._reader.snapshot(), self._limiter
        return not limiter.may_insert(
            limiter.largest_fragment_rows,
            inserted=snapshot.inserted_rows,
            drawn=self._drawn.value,
            readable=snapshot.readable_rows,
        )

    def leave_out(self, batch: Batch | None = None) -> None:
        """Count ``batch`` (None: one drawn now) as drawn for nothing."""
        self._left_out_rows += (self.draw() if batch is None else batch).drawn_rows
        self._waits_for_others = 0

    def update_priorities(self, batch: Batch, priorities: ArrayLike, reward_version: int = 0) -> int:
        """New priorities [B] of a drawn batch, made with the reward table of that version; call it before the batch's
        arrays are used again.

        Returns: how many were applied; those of rows that were overwritten are not, and without priorities none is.
        Raises: ReplayError for a priority that is NaN, infinite or negative.
        """
        return self.give_priorities(batch.lane, batch.generation, priorities, reward_version)

    def give_priorities(
        self, lane: ArrayLike, generation: ArrayLike, priorities: ArrayLike, reward_version: int = 0
    ) -> int:
        """As ``update_priorities``, by the names [B] of what was drawn, for whoever cannot keep the batch."""
        if self._prioritized is None:
            return 0
        return self._prioritized.update(lane, generation, priorities, reward_version)

    def state(self) -> FeedState:
        """For a checkpoint."""
        return FeedState.split(
            {
                "sampler": self._sampler.state(),
                "drawn_rows": self._drawn.value,
                "batches": self._batches,
                "ring": self._reader.created_unix_ns,
                "draws": self._state_fits,
            }
        )

    def restore(self, state: FeedState) -> None:
        """Go on drawing from ``state``. The drawn word is the store's business: see ``rebase``.

        What belongs to the rows of another ring (the checkpoint's is gone), to draws of another kind, or to rows that
        are not there is left out, and that is logged: the generator and the counters go on all the same. Slabs go on
        with the newest rows in any case.
        """
        whole = state.joined()
        told, fresh = whole["sampler"], self._sampler.state()
        self._batches = int(whole.get("batches", 0))
        if self._fifo is not None:
            reason = ""
        elif whole.get("ring") != self._reader.created_unix_ns:
            reason = "the ring of the checkpoint is gone"
        elif whole.get("draws") != self._state_fits:
            reason = f"the checkpoint drew {whole.get('draws')}, this session draws {self._state_fits}"
        else:
            try:
                self._sampler.restore(told)
                return
            except ReplayError as error:
                reason = str(error)
        self._sampler.restore({**fresh, **{name: told[name] for name in _RING_FREE if name in told}})
        if self._fifo is not None:
            self._lost_rows = self._fifo.lost_rows
        if reason and self._prioritized is not None:
            log.warning("the rows' priorities are not gone on with, all begin with the largest: %s", reason)

    def rebase(self) -> None:
        """Set the limiter's surplus to 0, after a restore with rows missing or added.

        Without it the learner would make a burst of updates, or wait for rows that are lost.
        """
        snapshot = self._reader.snapshot()
        if self._fifo is not None:
            self._drawn.value = snapshot.inserted_rows - self._fifo.waiting_rows(snapshot)
        else:
            self._drawn.value = self._limiter.rebased_drawn(
                inserted=snapshot.inserted_rows, readable=snapshot.readable_rows
            )
        self._allowed_batches = 0

    def common_begin(self) -> NDArray[np.int64]:
        """What one of several learners tells all for ``begin_at``: [lanes of the ring + 1], the next row of every lane,
        and the count of drawn rows that goes with them. Rows that an earlier learner may have had are left out.
        """
        if self._drawn.value == 0:
            return np.zeros(self._reader.lanes + 1, np.int64)
        snapshot = self._reader.snapshot()
        return np.append(snapshot.cursor, snapshot.inserted_rows)

    def begin_at(self, begin: NDArray[np.int64]) -> None:
        """Begin where all others begin; none of them may draw before all have. Raises: ReplayError for a feed that does
        not begin together with others.
        """
        if self._fifo is None or not self.begins_together:
            raise ReplayError(f"{self._reader.path}: only several learners that draw slabs begin together")
        self._fifo.begin_at(begin[:-1])
        if self._learner == 0:
            self._drawn.value = int(begin[-1])

    def close(self) -> None:
        """Let go of the ring's memory."""
        self._reader.close()

    def _give_up_lost_rows(self) -> None:
        """Count rows as drawn that were overwritten before: else the actors would wait for ever for that.

        One of several learners knows what waits in its own lanes alone: how many of its lost rows were step rows is
        told from those that it has drawn.
        """
        if self._fifo is None or self._fifo.lost_rows == self._lost_rows:
            return
        log.warning(
            "%d rows were overwritten before they were learned from (%d in all); raise replay.capacity_rows",
            self._fifo.lost_rows - self._lost_rows,
            self._fifo.lost_rows,
        )
        lost, self._lost_rows = self._fifo.lost_rows - self._lost_rows, self._fifo.lost_rows
        if self.begins_together:
            steps, final = self._fifo.drawn_rows, self._fifo.final_rows
            self._drawn.add(round(lost * (steps / (steps + final) if steps else 1.0)))
        else:
            self.rebase()


def _kind(draws: Draws) -> str:
    """All that a sampler's state of rows depends on, in words."""
    if isinstance(draws, WindowDraws):
        if draws.priorities is not None:
            return f"windows by priority^{draws.priorities.exponent:g}"
        return "windows" if draws.sampling == UniformSettings() else f"windows by {draws.sampling}"
    if isinstance(draws, SequenceDraws):
        exponent = 0.0 if draws.priorities is None else draws.priorities.exponent
        return (
            f"sequences of {draws.burn_in} + {draws.length} rows every {draws.period} ({draws.tail}) by "
            f"priority^{exponent:g}"
        )
    return "slabs"
