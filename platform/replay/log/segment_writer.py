"""Seals group after group, removes torn ones at opening and the oldest ones by retention. No thread, no ring."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from onibi.platform.config import Settings
from onibi.platform.errors import ReplayError, SegmentError, SpecError
from onibi.platform.fragment import CaptionText, EpisodeStatistics, KeyText
from onibi.platform.replay.log.log_files import LogFiles
from onibi.platform.replay.log.segment_format import (
    CAPTIONS,
    EPISODES,
    FORMAT_VERSION,
    MANIFEST,
    ROWS,
    TEXTS,
    LaneSpans,
    Manifest,
    RingOrigin,
    SealedFile,
    arrow_table,
    captions_table,
    decode,
    encode,
    episodes_table,
    file_name,
    group_of,
    rows_table,
    spec_and_spans,
    spec_of_segment,
    unmet,
)
from onibi.platform.replay.ring.row_table import rows_schema
from onibi.platform.replay.text_table import TEXT_SCHEMA, TextTable, texts_table
from onibi.platform.spec import ReplaySpec

log = logging.getLogger(__name__)

UNKNOWN_ROWS = 1 << 40
"""Numbers that every lane leaves free for a group of which nothing can be read: a group has far fewer rows."""
_MOST_LANES, _MOST_GENERATIONS = 1 << 20, 1 << 62
_FILE_KINDS = (ROWS, CAPTIONS, TEXTS, EPISODES)


@dataclass(frozen=True, kw_only=True)
class RetentionSettings(Settings):
    """When the oldest groups of a log are removed, whole; null stands for no limit. The newest group always stays."""

    rows: int | None = None
    bytes: int | None = 10 << 30  # on disk, compressed
    age_seconds: float | None = None  # since a group was sealed; looked at when the next one is

    def __post_init__(self) -> None:
        for name in ("rows", "bytes", "age_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; allowed: above 0, or null")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows to be sealed. ``columns[name]`` is [N, ...], C-contiguous, in the ring's dtypes."""

    lane: NDArray[np.int32]
    generation: NDArray[np.int64]
    columns: Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class OpenedLog:
    """What an opening for writing found. ``last`` is the newest group whose manifest can be read."""

    torn: tuple[str, ...] = ()  # names of files that were removed
    unreadable: tuple[str, ...] = ()  # manifests that are damaged; their groups stay as they are
    last: Manifest | None = None
    next_generation: tuple[int, ...] = ()  # of each lane, behind all rows that can be read
    unknown_rows: int = 0  # further numbers that every lane leaves free, for groups of which nothing can be read
    captions: dict[int, CaptionText] = field(default_factory=dict)
    texts: pa.Table = field(default_factory=TEXT_SCHEMA.empty_table)  # of Text columns


@dataclass(frozen=True, slots=True)
class _Group:
    """What retention has to know of a sealed group. A log has thousands, and a manifest names every lane."""

    number: int
    rows: int
    stored_bytes: int
    created_unix_ns: int
    kinds: tuple[str, ...]  # of its Arrow files

    @classmethod
    def of(cls, manifest: Manifest) -> _Group:
        shard, number = manifest.shard, manifest.number
        kinds = tuple(kind for kind in _FILE_KINDS if file_name(kind, shard, number) in manifest.files)
        return cls(number, manifest.rows, manifest.stored_bytes, manifest.created_unix_ns, kinds)


class SegmentWriter:
    """The one writer of a shard's log.

    Args:
        files: the log's files.
        spec: of the rows.
        run_id: named by every group; a log belongs to one run.
        shard: number of the shard.
        retention: when groups are removed.
        compression: of the Arrow buffers.
        wall_clock: nanoseconds since 1970.
    """

    def __init__(
        self,
        files: LogFiles,
        spec: ReplaySpec,
        *,
        run_id: str,
        shard: int,
        retention: RetentionSettings,
        compression: Literal["zstd", "lz4", "none"],
        wall_clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """Open for writing: torn groups are removed, and the numbering goes on.

        Raises: ReplayError where the log is of another run or row layout; SpecError where a column has a name of the
            log's own; OSError where the disk or store refuses.
        """
        rows_schema(spec)
        self._files, self._run_id, self._shard = files, run_id, shard
        self._spec = replace(spec, states=())  # they are not logged
        self._retention, self._wall_clock = retention, wall_clock
        self._compression = None if compression == "none" else compression
        self._sealed: deque[_Group] = deque()
        self.rows = self.stored_bytes = 0
        """In the log now: rows, and bytes of its Arrow files."""
        self.next_number = 0
        self._unconfirmed: Manifest | None = None
        self.opened = self._open()

    @property
    def segments(self) -> int:
        """Groups in the log now."""
        return len(self._sealed)

    def seal(
        self,
        rows: Rows,
        captions: Mapping[int, CaptionText],
        episodes: Sequence[EpisodeStatistics],
        *,
        next_generation: Sequence[int],
        ring: RingOrigin,
        texts: Mapping[int, str] | None = None,
    ) -> Manifest:
        """Make rows part of the log: when this returns they survive a power cut.

        Args:
            rows: in a lane's order; a lane's rows may lie apart.
            captions: those that ``rows`` name, by id.
            episodes: that ended in ``rows``; their lane is the ring's.
            next_generation: of every lane, from now on.
            ring: where the rows came from.
            texts: of the hashes in Text columns that ``rows`` name, by hash.
        Raises: OSError where the disk or store refuses. Nothing of the group is part of the log then, or, where
            ``is_unconfirmed`` holds, it may be: the answer can be lost. Then ``confirm`` comes before the next group.
        """
        assert self._unconfirmed is None, "its rows may be in the log: sealed once more they would be there twice"
        number, created = self.next_number, self._wall_clock()
        # Never used again, whatever happens: what a failed attempt left must not be mistaken for the next group.
        self.next_number += 1
        identity = {
            "format": FORMAT_VERSION,
            "run_id": self._run_id,
            "shard": self._shard,
            "number": number,
            "rows": len(rows.lane),
            "created_unix_ns": created,
        }
        tables = {
            CAPTIONS: captions_table(captions) if captions else None,
            TEXTS: texts_table(texts) if texts else None,
            EPISODES: episodes_table(episodes) if episodes else None,
            ROWS: rows_table(self._spec, rows.lane, rows.generation, rows.columns, identity),
        }
        contents = {
            file_name(kind, self._shard, number): (encode(table, self._compression), table.num_rows)
            for kind, table in tables.items()
            if table is not None
        }
        manifest = Manifest(
            run_id=self._run_id,
            shard=self._shard,
            number=number,
            created_unix_ns=created,
            files={name: SealedFile.of(content, count) for name, (content, count) in contents.items()},
            lanes=LaneSpans.of_rows(rows.lane, rows.generation),
            next_generation=tuple(next_generation),
            ring=ring,
        )
        try:
            self._files.seal([(name, memoryview(content)) for name, (content, _) in contents.items()])
        except (OSError, pa.ArrowException):
            self._take_back(list(contents))
            raise
        self._unconfirmed = manifest
        return self.confirm()

    @property
    def is_unconfirmed(self) -> bool:
        """Whether it is not known if the last group is part of the log."""
        return self._unconfirmed is not None

    def confirm(self) -> Manifest:
        """Write the manifest of the group that is unconfirmed: the same bytes under the same name, however often.

        Raises: OSError where the disk or store still refuses.
        """
        manifest = self._unconfirmed
        assert manifest is not None, "there is a group to confirm"
        self._files.seal([(file_name(MANIFEST, self._shard, manifest.number), manifest.to_json())])
        self._unconfirmed = None
        self._add(manifest)
        return manifest

    def abandon(self) -> None:
        """Take back the group that is unconfirmed, as far as the disk or store lets us; else the next opening does."""
        manifest, self._unconfirmed = self._unconfirmed, None
        if manifest is not None:
            self._take_back([file_name(MANIFEST, self._shard, manifest.number)], list(manifest.files))

    def retain(self) -> int:
        """Remove the oldest groups that are beyond a limit. Returns: how many. Raises: OSError."""
        limit, removed = self._retention, 0
        now = self._wall_clock()
        while len(self._sealed) > 1:
            oldest = self._sealed[0]
            over = (
                (limit.rows is not None and self.rows > limit.rows)
                or (limit.bytes is not None and self.stored_bytes > limit.bytes)
                or (limit.age_seconds is not None and now - oldest.created_unix_ns > limit.age_seconds * 1e9)
            )
            if not over:
                break
            # The manifest first, for good: a group without its other files would be damage, the others are only torn.
            self._files.remove([file_name(MANIFEST, self._shard, oldest.number)])
            self._sealed.popleft()
            self.rows -= oldest.rows
            self.stored_bytes -= oldest.stored_bytes
            self._files.remove([file_name(kind, self._shard, oldest.number) for kind in oldest.kinds])
            removed += 1
        return removed

    def _take_back(self, *steps: list[str]) -> None:
        """Remove what a failed attempt left, one step after the other, to give a full disk its bytes back."""
        try:
            for names in steps:
                self._files.remove(names)
        except (OSError, pa.ArrowException) as error:
            log.warning("%s: a torn group stays until the next start (%s)", self._files.location, error)

    def _open(self) -> OpenedLog:
        groups = {name: group for name in self._files.names() if (group := group_of(name)) is not None}
        mine = {name: number for name, (shard, number) in groups.items() if shard == self._shard}
        sealed = {number for name, number in mine.items() if name == file_name(MANIFEST, self._shard, number)}
        torn = sorted(name for name, number in mine.items() if number not in sealed or name.endswith(".part"))
        last: Manifest | None = None
        unreadable: list[int] = []
        captions: dict[int, CaptionText] = {}
        texts = TextTable()
        for number in sorted(sealed):
            try:
                last = self._manifest(number)
            except SegmentError as error:
                log.error("%s", error)
                unreadable.append(number)
                continue
            self._check_run(last)
            self._add(last)
            self._learn(last, captions, texts)
        self._check_layout()
        if torn:
            self._files.remove(torn)
            log.warning("%s: %d files of torn groups removed: %s", self._files.location, len(torn), ", ".join(torn[:4]))
        self.next_number = max(mine.values(), default=-1) + 1
        newer = [number for number in unreadable if last is None or number > last.number]
        following, unknown_rows = self._following(last, newer)
        return OpenedLog(
            torn=tuple(torn),
            unreadable=tuple(file_name(MANIFEST, self._shard, number) for number in unreadable),
            last=last,
            next_generation=following,
            unknown_rows=unknown_rows,
            captions=captions,
            texts=texts.to_arrow(),
        )

    def _add(self, manifest: Manifest) -> None:
        self._sealed.append(_Group.of(manifest))
        self.rows += manifest.rows
        self.stored_bytes += manifest.stored_bytes

    def _manifest(self, number: int) -> Manifest:
        name = file_name(MANIFEST, self._shard, number)
        return Manifest.from_json(self._files.read(name), f"{self._files.location.rstrip('/')}/{name}")

    def _check_run(self, manifest: Manifest) -> None:
        if manifest.run_id != self._run_id:
            raise ReplayError(
                f"{self._files.location} is the replay log of run {manifest.run_id!r}, not of {self._run_id!r}. Set "
                "replay.log.url to another place, or resume that run"
            )

    def _check_layout(self) -> None:
        for group in reversed(self._sealed):
            table = self._table(self._manifest(group.number), ROWS)
            if table is None:
                continue
            if spec_of_segment(table.schema) != self._spec:
                raise ReplayError(
                    f"{self._files.location}: the rows of this log are of another layout (columns "
                    f"{table.schema.names}). Start a new run, or undo the change of environment, view or learner"
                )
            return

    def _learn(self, manifest: Manifest, captions: dict[int, CaptionText], texts: TextTable) -> None:
        """Add a group's captions and texts to those that are known."""
        table = self._table(manifest, CAPTIONS)
        for row in table.take(unmet(table, captions)).to_pylist() if table is not None else ():
            keys = tuple(KeyText(text, askable) for text, askable in zip(row["keys"], row["askable"], strict=True))
            captions[row["caption_id"]] = CaptionText(row["text"], keys)
        table = self._table(manifest, TEXTS)
        if table is not None:
            try:
                texts.merge(table)
            except SpecError as error:
                log.error("%s: %s", self._files.location, error)

    def _table(self, manifest: Manifest, kind: str) -> pa.Table | None:
        """A table of a group; None where it has no such file, or one that cannot be read, which is told."""
        name = file_name(kind, self._shard, manifest.number)
        if name not in manifest.files:
            return None
        try:
            return decode(self._files.read(name), manifest.files[name], name)
        except (SegmentError, FileNotFoundError) as error:
            log.error("%s: %s", self._files.location, error)
            return None

    def _following(self, last: Manifest | None, newer: Sequence[int]) -> tuple[tuple[int, ...], int]:
        """``next_generation`` and ``unknown_rows`` of the log.

        A manifest that is damaged now may be restored from a copy later: no row of its group may share a name with one
        that is sealed from now on.

        Args:
            newer: groups behind ``last`` whose manifests cannot be read.
        """
        following = [] if last is None else list(last.next_generation)
        unknown_rows = 0
        for number in newer:
            try:
                spans = self._unvouched_spans(number, following)
            except (SegmentError, FileNotFoundError) as error:
                log.error("%s; %d row numbers of every lane are left free for it", error, UNKNOWN_ROWS)
                unknown_rows += UNKNOWN_ROWS
                continue
            for lane, (_, newest) in spans.items():
                following.extend([0] * (lane + 1 - len(following)))
                following[lane] = newest + 1
        return tuple(following), unknown_rows

    def _unvouched_spans(self, number: int, following: Sequence[int]) -> LaneSpans:
        """Of a rows file without its manifest's checksum. Raises: SegmentError where they cannot be right."""
        name = file_name(ROWS, self._shard, number)
        spec, spans = spec_and_spans(arrow_table(self._files.read(name), name), name)
        if spec != self._spec:
            raise SegmentError(f"{name}: its rows are of another layout; the file is damaged")
        for lane, (first, newest) in spans.items():
            least = following[lane] if lane < len(following) else 0
            if not (0 <= lane < _MOST_LANES and least <= first and newest < _MOST_GENERATIONS):
                raise SegmentError(f"{name}: rows {first} to {newest} of lane {lane}; the file is damaged")
        return spans
