"""How far actors and learner may run apart: inserted step rows against drawn training rows (docs/replay.md)."""

from __future__ import annotations

import math
import mmap
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onibi.platform.config import Settings
from onibi.platform.errors import ConfigError, ReplayError
from onibi.platform.replay.ring.folder import remedy, room
from onibi.platform.replay.samplers.draws import SlabDraws

MINIMUM_ROWS = 1_000
"""Where a run sets none."""
_SAMPLES_PER_INSERT = 8.0


@dataclass(frozen=True, kw_only=True)
class LimiterSettings(Settings):
    """Pacing of actors and learner."""

    # Drawn training rows per inserted step row; on-policy learners draw each one once, whatever the default.
    samples_per_insert: float = _SAMPLES_PER_INSERT
    minimum_rows: int | None = None  # readable rows before the first draw; null: 1,000, and none for on-policy learners
    # Drawn rows that either side may run ahead; null: the least that cannot lock, or 10% of what drawing starts with.
    tolerance_rows: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.samples_per_insert < math.inf:
            raise ValueError(f"samples_per_insert is {self.samples_per_insert}, it must be above 0, and finite")
        if self.minimum_rows is not None and self.minimum_rows < 1:
            raise ValueError(f"minimum_rows is {self.minimum_rows}, it must be at least 1")
        if self.tolerance_rows is not None and not 0 < self.tolerance_rows < math.inf:
            raise ValueError(
                f"tolerance_rows is {self.tolerance_rows}, it must be above 0 or null, and finite; 1e12 hardly paces"
            )


@dataclass(frozen=True, kw_only=True)
class Limiter:
    """Keeps  ratio × (inserted − minimum) − drawn  within ± tolerance once ``minimum_rows`` rows can be read.

    Raises: ValueError for counts that no ring has, and for a tolerance with which both sides could wait for ever.

    All decisions are pure functions of the counts. Two sides cannot both wait: insertion waits only where
    surplus + ratio × fragment > tolerance, drawing only where surplus − batch < −tolerance, and
    tolerance ≥ max(ratio × fragment, batch) leaves no surplus for which both hold.
    """

    ratio: float
    minimum_rows: int
    tolerance_rows: float
    largest_fragment_rows: int = 1
    """Step rows that an actor may want to insert at once; for ``pacing`` alone."""
    largest_batch_rows: int = 1
    """Training rows that the learner may want to draw at once; for ``pacing`` alone."""
    once: bool = False
    """Each row is drawn once: drawing never runs ahead of insertion."""

    def __post_init__(self) -> None:
        if not 0 < self.ratio < math.inf:
            raise ValueError(f"ratio is {self.ratio}, it must be above 0, and finite")
        if self.minimum_rows < 0 or self.largest_fragment_rows < 1 or self.largest_batch_rows < 1:
            raise ValueError(
                f"minimum_rows is {self.minimum_rows}, largest_fragment_rows {self.largest_fragment_rows}, "
                f"largest_batch_rows {self.largest_batch_rows}: the first must be at least 0, the others at least 1"
            )
        least = max(self.ratio * self.largest_fragment_rows, 0 if self.once else self.largest_batch_rows)
        if not self.tolerance_rows >= least:  # NaN neither
            raise ValueError(
                f"tolerance_rows is {self.tolerance_rows:g}, below {least:g}, the largest fragment's draws or batch: "
                "actors and learner could both wait for ever. Raise it; 1e12 holds nobody back"
            )

    @classmethod
    def from_settings(
        cls,
        settings: LimiterSettings,
        *,
        fragment_rows: int,
        batch_rows: int,
        capacity_rows: int,
        reachable_rows: int | None = None,
    ) -> Limiter:
        """Check the settings against what will be inserted and drawn at once.

        Args:
            fragment_rows: step rows of the largest fragment, over all its lanes.
            batch_rows: rows of one draw; one window start is one row, whatever its n.
            capacity_rows: rows that the whole ring can hold.
            reachable_rows: of them, those that the run's actors can fill: actors × lanes of each × (slots − 1). Groups
                that no actor has hold none. None: every group has an actor.
        Raises: ConfigError, with the sum that does not come out.
        """
        ratio = settings.samples_per_insert
        minimum = MINIMUM_ROWS if settings.minimum_rows is None else settings.minimum_rows
        least = 2 * max(ratio * fragment_rows, batch_rows)
        at_once = f"{ratio:g} samples per insert x {fragment_rows} fragment rows, {batch_rows} batch rows"
        sums = f"2 x max({at_once}) = {least:g}"
        tolerance = settings.tolerance_rows
        if tolerance is None:
            tolerance = max(least, 0.1 * ratio * minimum)
        if tolerance < least:
            raise ConfigError(
                f"replay.limiter.tolerance_rows is {tolerance:g}, below {sums}: actors and learner could both "
                f"wait for ever. "
                "Raise it, set it to null, or use shorter fragments"
            )
        if minimum > capacity_rows // 2:
            raise ConfigError(
                f"replay.limiter.minimum_rows is {minimum}, more than half of the ring's "
                f"{capacity_rows} rows: lanes of "
                "unequal length might never reach it. Lower it or raise replay.capacity_rows"
            )
        if reachable_rows is not None and minimum > reachable_rows:
            raise ConfigError(
                f"replay.limiter.minimum_rows is {minimum}, but the lanes of the run's actors hold {reachable_rows} of "
                f"the ring's {capacity_rows} rows at most: the learner would wait for ever. Lower it, raise "
                "replay.capacity_rows, or set replay.max_actors to actors.count"
            )
        return cls(
            ratio=ratio,
            minimum_rows=minimum,
            tolerance_rows=tolerance,
            largest_fragment_rows=fragment_rows,
            largest_batch_rows=batch_rows,
        )

    @classmethod
    def for_slabs(
        cls,
        settings: LimiterSettings,
        draws: SlabDraws,
        *,
        lanes: int,
        lanes_per_actor: int,
        fragment_rows: int,
        slots: int,
        learners: int = 1,
    ) -> Limiter:
        """Of a learner that draws every row once: the actors wait while ``tolerance_rows`` rows wait for it.

            least = lanes × (T − 1) + W × ((B − 1) × T + 1) − 1 + fragment rows

        With fewer, T-row pieces for W × B might be missing although no actor may insert any more; so many are the
        default, for rows that wait grow old. At least one actor's lanes must have room for all of them.

        Args:
            settings: as read.
            draws: B pieces of T rows.
            lanes: of the ring.
            lanes_per_actor: of one actor.
            fragment_rows: step rows of the largest fragment, over all its lanes.
            slots: of a lane.
            learners: W, which draw B pieces each in step, from equal shares of every actor's lanes.
        Raises: ConfigError, with the sum that does not come out.
        """
        if settings.samples_per_insert not in (1, _SAMPLES_PER_INSERT):  # the default is for those that draw again
            raise ConfigError(
                f"replay.limiter.samples_per_insert is {settings.samples_per_insert:g}, but this learner is on-policy: "
                "it learns from each row once. Leave replay.limiter.samples_per_insert out, or set it to 1"
            )
        if settings.minimum_rows is not None:
            raise ConfigError(
                f"replay.limiter.minimum_rows is {settings.minimum_rows}, but this learner is on-policy: it learns "
                "from rows as soon as they are there. Leave it out, or set it to null"
            )
        if draws.batch_lanes * learners > lanes:
            whose = "the learner draws" if learners == 1 else f"each of {learners} learners draws"
            raise ConfigError(
                f"learner.batch_lanes is {draws.batch_lanes}: {whose} so many lanes at once, the run has {lanes}. "
                "Lower it, or raise actors.count or actors.rollout.envs_per_actor"
            )
        rows, at_once = draws.rows, draws.batch_lanes
        least = lanes * (rows - 1) + learners * ((at_once - 1) * rows + 1) - 1 + fragment_rows
        pieces = f"({at_once} - 1) x {rows}"
        together = pieces if learners == 1 else f"{learners} learners x ({pieces} + 1) - 1"
        sums = f"{lanes} lanes x ({rows} - 1) + {together} + {fragment_rows} fragment rows = {least}"
        tolerance = float(least) if settings.tolerance_rows is None else settings.tolerance_rows
        if tolerance < least:
            raise ConfigError(
                f"replay.limiter.tolerance_rows is {tolerance:g}, below {sums}: actors and learner could both wait for "
                "ever. Raise it, set it to null, or use shorter fragments"
            )
        needed = math.ceil(tolerance / lanes_per_actor) + fragment_rows // lanes_per_actor + rows + 1
        if slots < needed:
            raise ConfigError(
                f"replay.capacity_rows gives {slots} rows a lane, but {needed} may wait for the learner there: "
                f"tolerance {tolerance:g} / {lanes_per_actor} lanes of an actor + a fragment + {rows} + 1. Raise "
                f"replay.capacity_rows to {needed * lanes}, or use shorter fragments"
            )
        return cls(
            ratio=1.0,
            minimum_rows=0,
            tolerance_rows=tolerance,
            largest_fragment_rows=fragment_rows,
            largest_batch_rows=draws.batch_rows * learners,
            once=True,
        )

    def surplus(self, inserted: int, drawn: float) -> float:
        """Drawn rows that the learner is behind (positive) or ahead (negative) of the ratio."""
        return self.ratio * (inserted - self.minimum_rows) - drawn

    def may_insert(self, rows: int, *, inserted: int, drawn: float, readable: int) -> bool:
        """Whether ``rows`` more step rows may come in. Always while fewer than ``minimum_rows`` can be read."""
        if readable < self.minimum_rows:
            return True
        return self.surplus(inserted + rows, drawn) <= self.tolerance_rows

    def may_draw(self, rows: int, *, inserted: int, drawn: float, readable: int) -> bool:
        """Whether ``rows`` more training rows may be drawn."""
        ahead = 0.0 if self.once else self.tolerance_rows
        return readable >= self.minimum_rows and self.surplus(inserted, drawn + rows) >= -ahead

    def batches_allowed(self, rows: int, *, inserted: int, drawn: float, readable: int) -> int:
        """How many batches of ``rows`` training rows may be drawn before the counts must be looked at again."""
        if readable < self.minimum_rows:
            return 0
        return max(0, int((self.surplus(inserted, drawn) + self.tolerance_rows) // rows))

    def rebased_drawn(self, *, inserted: int, readable: int) -> int:
        """The drawn count that puts the surplus to 0 at the moment when drawing begins again.

        After a restore with an incomplete ring, rows come in unpaced until ``minimum_rows`` can be read; without this
        the learner would owe a burst of draws for them, or wait for rows that were lost.
        """
        missing = max(0, self.minimum_rows - readable)
        return round(self.ratio * (inserted + missing - self.minimum_rows))


class DrawnWord:
    """The learner's count of drawn rows in a small shared file: written by the learner alone, read by the shard.

    Several learners have a word each; what counts is their sum.
    """

    _BYTES = mmap.PAGESIZE
    LEARNERS = 64
    """The most that there is room for."""

    def __init__(self, path: Path, *, writable: bool, learner: int = 0) -> None:
        """Map the existing words, to write that of ``learner``. Raises: ReplayError where there are none."""
        self.path = path
        try:
            descriptor = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        except OSError as error:
            raise ReplayError(
                f"{path} cannot be opened: {error.strerror}; has the run's shard been started?"
            ) from error
        try:
            if os.fstat(descriptor).st_size != self._BYTES:
                raise ReplayError(
                    f"{path} is not a drawn word: it has {os.fstat(descriptor).st_size} bytes, not {self._BYTES}"
                )
            access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
            memory = mmap.mmap(descriptor, self._BYTES, flags=mmap.MAP_SHARED, prot=access)
        finally:
            os.close(descriptor)
        self._words = np.frombuffer(memory, np.dtype("<i8"), self.LEARNERS)
        self._learner = learner

    @classmethod
    def create(cls, path: Path) -> None:
        """Make the word, 0; an existing one keeps its value.

        Raises: ReplayError where there is no room for it; no new file stays then.
        """
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:  # of an existing one, too: its maker may have been killed before this line
                os.posix_fallocate(descriptor, 0, cls._BYTES)
            except OSError:
                if not os.fstat(descriptor).st_size:
                    path.unlink(missing_ok=True)
                raise
            finally:
                os.close(descriptor)
        except OSError as error:
            raise ReplayError(
                f"too little {room(path.parent)} for the replay ring ({error.strerror}): its count of drawn rows, "
                f"{path}, needs {cls._BYTES} bytes. {remedy(path.parent)}"
            ) from error

    @property
    def value(self) -> int:
        """Rows drawn by all learners, as the limiter counts them.

        May be set while no other learner draws.
        """
        return int(self._words.sum())

    @value.setter
    def value(self, drawn: int) -> None:
        self._words[self._learner] += drawn - self.value

    def add(self, rows: int) -> None:
        """This learner has drawn ``rows`` more."""
        self._words[self._learner] += rows
