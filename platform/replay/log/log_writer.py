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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from onibi.platform.config import Settings
from onibi.platform.errors import ReplayError, SpecError
from onibi.platform.fragment import CaptionText, EpisodeStatistics
from onibi.platform.replay.log.log_files import LogFiles, local_folder
from onibi.platform.replay.log.ring_follower import RingFollower
from onibi.platform.replay.log.ring_origin import ring_origin
from onibi.platform.replay.log.segment_writer import OpenedLog, RetentionSettings, Rows, SegmentWriter
from onibi.platform.replay.ring_reader import RingReader
from onibi.platform.replay.text_table import text_columns

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.25  # between two copies out of the ring, unless it fills up sooner
_CLOSE_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class LogSettings(Settings):
    """The log of all rows on disk."""

    enabled: bool = True
    url: str | None = None  # folder or address (s3://…), a run in a folder of its id below; null: the run's own folder
    segment_bytes: int = 64 << 20  # of uncompressed rows; a group is sealed when it has so many …
    seal_seconds: float = 5.0  # … or when its oldest row has waited so long: what a machine's death costs
    overflow: Literal["block", "drop"] = "block"  # where the disk is slower than the actors
    on_error: Literal["stop", "continue"] = "continue"  # where the disk is full, read-only or gone
    compression: Literal["zstd", "lz4", "none"] = "zstd"
    retention: RetentionSettings = field(default_factory=RetentionSettings)

    def __post_init__(self) -> None:
        if self.url == "":
            raise ValueError("url is empty; allowed: a folder, an address, or null for the run's own folder")
        if not 1 << 10 <= self.segment_bytes <= 1 << 30:
            raise ValueError(f"segment_bytes is {self.segment_bytes}; allowed: 1024 to 1073741824")
        if not 0 < self.seal_seconds <= 3600:
            raise ValueError(f"seal_seconds is {self.seal_seconds}; allowed: above 0, up to 3600")


@dataclass(frozen=True, kw_only=True)
class LogFigures:
    """What became of the rows of this opening, and what the log holds now."""

    rows: int  # handed to the log, rows that an earlier opening left in the ring included
    sealed_rows: int
    dropped_rows: int  # lost to the log
    segments: int  # in the log now, earlier openings' included
    stored_bytes: int  # of them
    lag_seconds: float  # age of the oldest row that is not sealed
    failure: str  # why the log is off; empty while it is on


class LogWriter:
    """Follows one ring from ``start`` to ``close``.

    Args:
        settings: of the log.
        files: where it is kept.
        ring: path of the ring, open for writing in this process.
        run_id: of the run.
        captions: texts of captions by id that rows of the ring may have, beside those that the log knows.
        clock: seconds, never falling.
    """

    def __init__(
        self,
        settings: LogSettings,
        files: LogFiles,
        ring: Path,
        *,
        run_id: str,
        captions: Mapping[int, CaptionText],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open for writing. Raises: ReplayError where the place cannot be written or belongs to another run."""
        self._settings, self._files, self._clock = settings, files, clock
        self._lock = files.lock()
        reader = RingReader(ring)
        try:
            self._segments = SegmentWriter(
                files,
                reader.spec,
                run_id=run_id,
                shard=0,
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
            if self._fault is not None:
                return
            self._episodes.extend(episodes)
            if self._unsealed_since is None:
                self._unsealed_since = self._clock()
            behind = int((cursor - self._follower.next_row[lanes]).max(initial=0))
            if behind >= self._slots // 4 and not self._hurry:
                self._hurry = True
                self._wake.notify_all()

    def has_room(self, first_lane: int, rows: NDArray[np.int64]) -> bool:
        """Whether so many rows may be committed to each lane now without overwriting any that are not copied.

        Always, with ``overflow: drop``; never again after a fault with ``on_error: stop``: see ``check``.
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
        """Whether these lanes' rows may be released: all of them are copied, or the log is off.

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
        """Return when ``has_copied``. Raises: ReplayError after a fault with ``on_error: stop``."""
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
            dropped = self._follower.missed_rows
            if failure:
                dropped = self._handed_rows - self._sealed_rows
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
        try:
            while not self._follow_once():
                pass
        except (OSError, pa.ArrowException, MemoryError) as error:
            self._give_up(f"{type(error).__name__}: {error}")
        except Exception as error:  # a fault of ours must not end training unseen either
            log.exception("replay log")
            self._give_up(f"{error!r}, a fault of Onibi")

    def _follow_once(self) -> bool:
        """Wait until there is something to do, and do it. Returns: True when all is sealed and closed."""
        with self._wake:
            if not (self._closing or self._hurry):
                self._wake.wait(min(_LOOK_SECONDS, self._settings.seal_seconds))
            self._hurry, closing = False, self._closing
        looked = self._clock()
        while self._copy():
            self._seal(looked, rest=True)
        if closing:
            while self._copy_heads():
                self._seal(looked, rest=True)
        since = self._unsealed_since
        due = since is not None and self._clock() - since >= self._settings.seal_seconds
        if closing or due or self._follower.full:
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
            episodes, self._episodes = self._episodes, []
        rows = self._follower.take()
        count = len(rows.lane)
        if count or episodes:
            named = np.unique(rows.columns["caption_id"])
            self._segments.seal(
                rows,
                {int(index): self._captions.get(int(index)) or lost_caption(int(index)) for index in named if index},
                episodes,
                next_generation=[*self._follower.next_generation.tolist(), *self._other_generations],
                ring=self._origin,
                texts=self._named_texts(rows),
            )
        self._follower.clear()
        with self._wake:
            self._sealed_rows += count
            newer = bool((self._cursor > self._follower.next_row).any()) or bool(self._episodes)
            self._unsealed_since = looked if rest or newer else None
        if count:
            self._segments.retain()
        self._sealing_since = None

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
        figures = self.figures()
        message = (
            f"the replay log at {self._files.location} failed: {why}. What was sealed before "
            f"({figures.segments} segments) is untouched"
        )
        if self._settings.on_error == "stop" and not self._closing:
            message += ". Free or repair that place and resume the run; or set replay.log.on_error=continue"
        else:
            message += "; the log is off for the rest of this session, training goes on without it"
        log.error("%s", message)
        with self._wake:
            self._fault = message
            self._episodes = []
            self._wake.notify_all()


def location_of(settings: LogSettings, run_folder: Path, run_id: str) -> str | None:
    """Where a run's log lies: a folder (absolute) or an address; None where it is off."""
    if not settings.enabled:
        return None
    if settings.url is None:
        return str((run_folder / "replay").absolute())
    if local_folder(settings.url) is None:
        address, mark, options = settings.url.partition("?")  # s3://bucket/logs?region=eu-central-1
        return f"{address.rstrip('/')}/{run_id}{mark}{options}"
    return str((Path(settings.url.removeprefix("file://")).expanduser() / run_id).absolute())


def lost_caption(index: int) -> CaptionText:
    """Stands for a caption whose text died with the process that knew it."""
    return CaptionText(text=f"(caption {index} was lost with its process)", keys=())


def log_metrics(figures: LogFigures) -> dict[str, float]:
    """The figures as metrics."""
    return {
        "replay/log_rows": float(figures.rows),
        "replay/log_sealed_rows": float(figures.sealed_rows),
        "replay/log_dropped_rows": float(figures.dropped_rows),
        "replay/log_segments": float(figures.segments),
        "replay/log_bytes": float(figures.stored_bytes),
        "replay/log_lag_seconds": figures.lag_seconds,
        "replay/log_failed": float(bool(figures.failure)),
    }
