"""The log of a running shard: a thread that follows the ring, and what insertions ask of it.

The ring is the log's queue: an insertion only says that rows were committed. The thread copies them out of the ring,
compresses and seals. So an insertion waits for the disk only where a lane of the ring is about to go round past rows
that are not copied (``overflow: block``), or never (``drop``: such rows are lost to the log, and counted).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from onibi.platform.annotation.captions import lost_caption
from onibi.platform.errors import ReplayError, SpecError
from onibi.platform.fragment import CaptionText, EpisodeStatistics
from onibi.platform.replay.log.log_figures import LogFigures
from onibi.platform.replay.log.log_files import LogFiles
from onibi.platform.replay.log.log_settings import LogSettings
from onibi.platform.replay.log.ring_follower import RingFollower
from onibi.platform.replay.log.ring_origin import ring_origin
from onibi.platform.replay.log.segment_writer import OpenedLog, Rows, SegmentWriter
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.text_table import text_columns

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.25  # between two copies out of the ring, unless it fills up sooner
_CLOSE_SECONDS = 60.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 60.0  # before what a disk or store refused is tried again
_EPISODES_KEPT = 1 << 16  # of a time in which nothing can be sealed: the newest


class LogWriter:
    """Follows one ring from ``start`` to ``close``.

    Args:
        settings: of the log.
        files: where it is kept.
        ring: path of the ring, open for writing in this process.
        run_id: of the run.
        shard: number of the shard whose ring it is, of several that write to one place; None: the only one.
        captions: texts of captions by id that rows of the ring may have, beside those that the log knows.
        clock: seconds, never falling.
    """

    def __init__(
        self,
        settings: LogSettings,
        files: LogFiles,
        ring: Path | str,
        *,
        run_id: str,
        shard: int | None = None,
        captions: Mapping[int, CaptionText],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open for writing. Raises: ReplayError where the place cannot be written or belongs to another run."""
        self._settings, self._files, self._clock = settings, files, clock
        self._lock = files.lock(shard or 0)
        reader = RingReader(ring)
        try:
            self._segments = SegmentWriter(
                files,
                reader.spec,
                run_id=run_id,
                shard=shard or 0,
                retention=settings.retention,
                compression=settings.compression,
            )
        except (OSError, pa.ArrowException) as error:
            reader.close()
            self._unlock()
            raise ReplayError(
                f"the replay log at {files.location} cannot be opened: {error}. Set replay.log.url to a place that can "
                "be written, or replay.log.enabled to false"
            ) from error
        except ReplayError:
            reader.close()
            self._unlock()
            raise
        except SpecError as error:
            reader.close()
            self._unlock()
            raise ReplayError(f"the replay log at {files.location} cannot hold these rows: {error}") from error
        self.opened: OpenedLog = self._segments.opened
        self._captions = {**captions, **self._segments.opened.captions}
        self._text_columns = text_columns(reader.spec)
        texts = self.opened.texts
        self._texts = dict(zip(texts["text_hash"].to_pylist(), texts["text"].to_pylist(), strict=True))
        self._texts_lost = False
        self._origin, self._other_generations, next_row = ring_origin(self.opened, reader)
        capacity = max(1, settings.segment_bytes // reader.spec.row_bytes)
        self._slots = reader.slots
        self._follower = RingFollower(reader, capacity, next_row, np.array(self._origin.first_generation, np.int64))
        self._cursor = reader.snapshot().cursor.copy()
        self._handed_rows = int(np.maximum(self._cursor - self._follower.next_row, 0).sum())
        self._sealed_rows = 0
        self._episodes: list[EpisodeStatistics] = []
        self._wake = threading.Condition()
        self._unsealed_since: float | None = clock() if self._handed_rows else None
        self._sealing_since: float | None = None
        self._hurry = self._closing = False
        self._fault: str | None = None
        self._has_ended = False
        self._sealing_episodes = 0  # of those that wait, the first so many are in the group that is being sealed
        self._pause_seconds = _FIRST_PAUSE_SECONDS
        self._thread = threading.Thread(target=self._work, name="replay-log", daemon=True)
        self._thread.start()

    def learn(self, captions: Mapping[int, CaptionText]) -> None:
        """Texts of captions that rows are about to name. Call before the rows are committed."""
        self._captions.update(captions)

    def learn_texts(self, texts: Mapping[int, str]) -> None:
        """Texts by their hash that rows are about to name in Text columns. Call before the rows are committed."""
        self._texts.update(texts)

    def note(self, first_lane: int, cursor: NDArray[np.int64], episodes: Sequence[EpisodeStatistics]) -> None:
        """Rows were committed.

        Args:
            first_lane: of the lanes that got rows.
            cursor: [lanes] their committed rows now.
            episodes: that ended in them; their lane is the ring's.
        """
        lanes = slice(first_lane, first_lane + len(cursor))
        with self._wake:
            self._handed_rows += int((cursor - self._cursor[lanes]).sum())
            self._cursor[lanes] = cursor
            if self._has_ended:
                return
            self._episodes.extend(episodes)
            if self._fault is not None:
                del self._episodes[self._sealing_episodes : -_EPISODES_KEPT]
                return
            if self._unsealed_since is None:
                self._unsealed_since = self._clock()
            behind = int((cursor - self._follower.next_row[lanes]).max(initial=0))
            if behind >= self._slots // 4 and not self._hurry:
                self._hurry = True
                self._wake.notify_all()

    def has_room(self, first_lane: int, rows: NDArray[np.int64]) -> bool:
        """Whether so many rows may be committed to each lane now without overwriting any that are not copied.

        Always, with ``overflow: drop`` and while the disk or store refuses; never again after a fault with
        ``on_error: stop``: see ``check``.
        """
        if self._fault is not None:
            return self._settings.on_error == "continue"
        if self._settings.overflow == "drop":
            return True
        lanes = slice(first_lane, first_lane + len(rows))
        # One row more for a head that becomes final, one for the new head.
        needed = self._cursor[lanes] + rows + 2 - self._slots
        if bool((self._follower.next_row[lanes] >= needed).all()):
            return True
        with self._wake:
            self._hurry = True
            self._wake.notify_all()
        return False

    def wait_for_room(self, first_lane: int, rows: NDArray[np.int64]) -> None:
        """Return when ``has_room``. Raises: ReplayError after a fault with ``on_error: stop``."""
        while not self.has_room(first_lane, rows):
            self.check()
            with self._wake:
                self._wake.wait(0.1)

    def has_copied(self, lanes: slice) -> bool:
        """Whether these lanes' rows may be released: all of them are copied, or the log takes none.

        With ``overflow: drop`` also where the disk does not keep up: sealing has lasted for ``seal_seconds``, or the
        buffers are full. After a fault with ``on_error: stop`` as ``has_room``.
        """
        if self._fault is not None:
            return self._settings.on_error == "continue"
        if bool((self._follower.next_row[lanes] >= self._cursor[lanes]).all()):
            return True
        since = self._sealing_since if self._settings.overflow == "drop" else None
        if since is not None and (self._follower.full or self._clock() - since >= self._settings.seal_seconds):
            return True
        with self._wake:
            self._hurry = True
            self._wake.notify_all()
        return False

    def wait_for_copy(self, lanes: slice) -> None:
        """Return when ``has_copied``. Raises: as ``wait_for_room``."""
        while not self.has_copied(lanes):
            self.check()
            with self._wake:
                self._wake.wait(0.1)

    def check(self) -> None:
        """Raises: ReplayError after a fault with ``on_error: stop``."""
        if self._fault is not None and self._settings.on_error == "stop":
            raise ReplayError(self._fault)

    def figures(self) -> LogFigures:
        """Figures up to now."""
        with self._wake:
            failure, since = self._fault or "", self._unsealed_since
            dropped = self._handed_rows - self._sealed_rows if self._has_ended else self._follower.missed_rows
            return LogFigures(
                rows=self._handed_rows,
                sealed_rows=self._sealed_rows,
                dropped_rows=dropped,
                segments=self._segments.segments,
                stored_bytes=self._segments.stored_bytes,
                lag_seconds=0.0 if failure or since is None else self._clock() - since,
                failure=failure,
            )

    def close(self, timeout_seconds: float = _CLOSE_SECONDS) -> None:
        """Seal what is left, the open heads as final rows, and end. Nobody may insert any more; may be called again.

        A disk that refuses now is reported and raises nothing: the rows have been learnt from.
        """
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            log.error(
                "the replay log at %s did not take the last rows within %.0f s; they are not in it",
                self._files.location,
                timeout_seconds,
            )
            return
        self._follower.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def _work(self) -> None:
        is_over = False
        try:
            while not is_over:
                was_closing = self._closing
                try:
                    is_over = self._follow_once()
                except (OSError, pa.ArrowException) as error:
                    is_over = self._refused(f"{type(error).__name__}: {error}", is_last=was_closing)
        except MemoryError as error:
            self._give_up(f"{type(error).__name__}: {error}")
        except Exception as error:  # a fault of ours must not end training unseen either
            log.exception("replay log")
            self._give_up(f"{error!r}, a fault of Onibi")

    def _refused(self, why: str, *, is_last: bool) -> bool:
        """The disk or store did: wait before it is tried again. Returns: True where it is not."""
        if self._settings.on_error == "stop" or is_last:
            self._give_up(why)
            return True
        if self._fault is None:
            lost = "those that are overwritten before it does are lost to the log, and counted"
            self._tell(f"{self._failed(why)}. Training goes on, and that place is asked to take rows again; {lost}")
        with self._wake:
            self._wake.wait_for(lambda: self._closing, self._pause_seconds)
        self._pause_seconds = min(2 * self._pause_seconds, _LONGEST_PAUSE_SECONDS)
        return False

    def _taken_again(self) -> None:
        with self._wake:
            self._fault, self._pause_seconds = None, _FIRST_PAUSE_SECONDS
        log.warning(
            "the replay log at %s takes rows again; %d rows of this session are lost to it",
            self._files.location,
            self._follower.missed_rows,
        )

    def _follow_once(self) -> bool:
        """Wait until there is something to do, and do it. Returns: True when all is sealed and closed."""
        with self._wake:
            if not (self._closing or self._hurry):
                self._wake.wait(min(_LOOK_SECONDS, self._settings.seal_seconds))
            self._hurry, closing = False, self._closing
        looked = self._clock()
        if self._segments.is_unconfirmed:
            self._segments.confirm()
            self._sealed(looked, rest=True)
        while self._copy():
            self._seal(looked, rest=True)
        if closing:
            while self._copy_heads():
                self._seal(looked, rest=True)
        since = self._unsealed_since
        due = since is not None and self._clock() - since >= self._settings.seal_seconds
        if closing or due or self._follower.full or self._fault is not None:
            self._seal(looked, rest=False)
        return closing

    def _copy(self) -> bool:
        left = self._follower.copy()
        with self._wake:
            self._wake.notify_all()  # there is room again
        return left

    def _copy_heads(self) -> bool:
        before = self._follower.rows
        left = self._follower.copy_heads()
        with self._wake:
            self._handed_rows += self._follower.rows - before
        return left

    def _seal(self, looked: float, *, rest: bool) -> None:
        """Seal the buffers. ``rest``: the ring holds rows from before ``looked`` that did not fit."""
        self._sealing_since = self._clock()
        with self._wake:
            episodes = self._episodes[:]
        self._sealing_episodes = len(episodes)
        rows = self._follower.take()
        if len(rows.lane) or episodes:
            named = np.unique(rows.columns["caption_id"])
            self._segments.seal(
                rows,
                {int(index): self._captions.get(int(index)) or lost_caption(int(index)) for index in named if index},
                episodes,
                next_generation=[*self._follower.next_generation.tolist(), *self._other_generations],
                ring=self._origin,
                texts=self._named_texts(rows),
            )
        self._sealed(looked, rest=rest)

    def _sealed(self, looked: float, *, rest: bool) -> None:
        """The buffers are part of the log. ``rest``: as ``_seal``."""
        count = self._follower.rows
        self._follower.clear()
        with self._wake:
            del self._episodes[: self._sealing_episodes]
            self._sealed_rows += count
            newer = bool((self._cursor > self._follower.next_row).any()) or bool(self._episodes)
            self._unsealed_since = looked if rest or newer else None
        if count or self._fault is not None:  # what is to be removed may have been refused, too
            self._segments.retain()
        self._sealing_since = None
        if self._fault is not None:  # with the first group: actors that outrun the place have to wait for it again
            self._taken_again()

    def _named_texts(self, rows: Rows) -> dict[int, str]:
        """Texts of the rows' Text columns, by hash; what died with its process stays a hash, and that is said once."""
        columns = [rows.columns[name].reshape(-1) for name in self._text_columns]
        if not columns:
            return {}
        named = [hashed for hashed in np.unique(np.concatenate(columns)).tolist() if hashed]
        known = {hashed: self._texts[hashed] for hashed in named if hashed in self._texts}
        if len(known) < len(named) and not self._texts_lost:
            self._texts_lost = True
            log.warning(
                "%s: %d texts of rows that an earlier session left are lost with its process; the log has their hashes",
                self._files.location,
                len(named) - len(known),
            )
        return known

    def _give_up(self, why: str) -> None:
        message = f"{self._failed(why)}; the log is off for the rest of this session, training goes on without it"
        if self._settings.on_error == "stop" and not self._closing:
            message = f"{self._failed(why)}. Free or repair that place and resume; or set replay.log.on_error=continue"
        self._has_ended, self._episodes = True, []
        self._segments.abandon()
        self._tell(message)

    def _tell(self, fault: str) -> None:
        log.error("%s", fault)
        with self._wake:
            self._fault, self._sealing_since = fault, None
            self._wake.notify_all()

    def _failed(self, why: str) -> str:
        segments = self._segments.segments
        return (
            f"the replay log at {self._files.location} failed: {why}. What was sealed before ({segments} segments) is "
            "untouched"
        )
