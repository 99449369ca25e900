"""A sealed log for reading: what is in it, its tables, and whether all of it is whole.

Rows of a lane are in one piece where their generations follow each other without a gap. A gap (rows dropped because the
disk did not keep up, or lost with a machine) ends the piece: no row is the next observation of the one before the gap.
Whole groups may be removed by the run's retention while a log is read: they are left out from then on (``removed``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from onibi.platform.errors import ReplayError, SegmentError, SpecError
from onibi.platform.replay.log.log_files import LogFiles, arrow_filesystem, local_folder, open_files
from onibi.platform.replay.log.segment_format import (
    CAPTION_SCHEMA,
    CAPTIONS,
    EPISODE_SCHEMA,
    EPISODES,
    MANIFEST,
    ROWS,
    TEXTS,
    Manifest,
    SealedFile,
    check_rows,
    decode,
    file_name,
    group_of,
    spec_of_segment,
    unmet,
)
from onibi.platform.replay.ring.row_table import rows_schema
from onibi.platform.replay.text_table import TEXT_SCHEMA, TextTable
from onibi.platform.spec import ReplaySpec

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One sealed group. Paths are those of ``ReplayLog.filesystem``; None where the group has no such file."""

    shard: int
    number: int
    run_id: str
    files: Mapping[str, SealedFile]  # by name
    rows_path: str
    captions_path: str | None
    episodes_path: str | None
    texts_path: str | None = None
    rows: int
    bytes: int  # of its Arrow files
    lanes: Mapping[int, tuple[int, int]]  # first and last generation
    created_unix_ns: int


@dataclass(frozen=True, kw_only=True)
class Damage:
    """One fault that ``verify`` found."""

    name: str  # the file
    fault: str


class ReplayLog:
    """Read-only view of a sealed log as it was at opening.

    ``segments`` are in the order in which they were sealed; ``torn`` names files that no manifest speaks for, of a
    group that is being sealed right now or whose writer was killed; ``unreadable`` are manifests that are damaged.
    """

    def __init__(self, location: str | Path) -> None:
        """Open the log in a folder or at an address of ``pyarrow.fs`` or fsspec.

        Raises: ReplayError where there is no log.
        """
        self.location = str(location)
        self.filesystem, self._prefix = arrow_filesystem(location)
        folder = local_folder(location)
        if folder is not None and not folder.is_dir():
            raise ReplayError(f"{folder}: no replay log is here. Was the run started with replay.log.enabled=true?")
        self._files: LogFiles = open_files(location)
        names = self._names()
        groups = {name: group for name in sorted(names) if (group := group_of(name)) is not None}
        sealed = {group for name, group in groups.items() if name == file_name(MANIFEST, *group)}
        self.torn: tuple[str, ...] = tuple(name for name, group in groups.items() if group not in sealed)
        segments, unreadable = [], []
        for group in sorted(sealed):
            name = file_name(MANIFEST, *group)
            try:
                segments.append(self._segment(Manifest.from_json(self._read(name), self._where(name))))
            except SegmentError as error:
                if isinstance(error.__cause__, FileNotFoundError):
                    continue  # the run that writes the log has removed its oldest segment since the names were read
                unreadable.append(Damage(name=name, fault=str(error)))
        self.unreadable: tuple[Damage, ...] = tuple(unreadable)
        if unreadable:
            log.warning("%s: %d manifests are damaged, their segments are left out", self.location, len(unreadable))
        if not groups:
            raise ReplayError(f"{self.location}: no segment of a replay log is here; is this a run's replay folder?")
        self.segments: tuple[Segment, ...] = tuple(segments)
        self.on_rows: Callable[[int], None] = lambda _rows: None
        """Called with the rows of each segment that is read, for whoever shows how far a reading is."""

    @property
    def rows(self) -> int:
        """Over all segments, final rows included."""
        return sum(segment.rows for segment in self.segments)

    @property
    def spec(self) -> ReplaySpec:
        """The row layout, of the newest segment that tells it.

        Raises: ReplayError where no segment is sealed, SegmentError where none of them can be read.
        """
        if not self.segments:
            raise ReplayError(f"{self.location}: no segment of this log is sealed yet")
        newest: SegmentError | None = None
        for segment in reversed(self.segments):
            try:
                with self.filesystem.open_input_file(segment.rows_path) as file, pa.ipc.open_file(file) as reader:
                    return spec_of_segment(reader.schema)
            except (pa.ArrowException, OSError, SpecError) as error:
                newest = newest or SegmentError(f"{segment.rows_path}: its schema cannot be read ({error})")
        assert newest is not None, "there is a segment"
        raise newest

    def dataset(self, schema: pa.Schema | None = None) -> Any:
        """``pyarrow.dataset.Dataset`` of all rows files in their order; checksums are not looked at.

        Args:
            schema: to read the rows by; None: that of the log.
        Raises: SegmentError where a rows file is not there although its manifest is.
        """
        from pyarrow import dataset

        schema = rows_schema(self.spec) if schema is None else schema
        try:
            return dataset.dataset(self.rows_paths(), schema=schema, format="ipc", filesystem=self.filesystem)
        except FileNotFoundError as error:
            raise SegmentError(
                f"{self.location}: a rows file is not there ({error}). The run's retention has removed it just now: "
                "try again; or the log is damaged: `onibi replay verify` tells which"
            ) from error

    def rows_paths(self) -> list[str]:
        """Of the rows files that are still there, in their order. Raises: ReplayError where they cannot be listed."""
        names = self._names()
        there = [file_name(MANIFEST, segment.shard, segment.number) in names for segment in self.segments]
        return [segment.rows_path for segment, is_there in zip(self.segments, there, strict=True) if is_there]

    def read(self, segment: Segment) -> pa.Table:
        """The rows of a segment, its checksum compared first.

        Raises: SegmentError where the file is missing, damaged, or not what its manifest says.
        """
        table = self._table(segment, ROWS)
        assert table is not None, "a manifest without a rows file is refused"
        check_rows(table, segment.lanes, segment.rows_path)
        return table

    def read_each(self, shard: int | None = None) -> Iterator[tuple[Segment, pa.Table]]:
        """``read`` of every segment of a shard (None: of all) in their order, but for those that are removed meanwhile.

        Raises: SegmentError.
        """
        chosen = [segment for segment in self.segments if shard in (None, segment.shard)]
        return self._still_there(chosen, self.read)

    def removed(self, segment: Segment) -> bool:
        """Whether a segment is no longer part of the log: its manifest is gone, as retention leaves it, and whoever
        gives a damaged segment up. Raises: ReplayError where the files cannot be listed.
        """
        return file_name(MANIFEST, segment.shard, segment.number) not in self._names()

    def captions(self) -> pa.Table:
        """Every caption that rows of the log name, once, by id: ``CAPTION_SCHEMA``. Raises: SegmentError."""
        every, met = [CAPTION_SCHEMA.empty_table()], set[int]()
        for _, table in self._tables(CAPTIONS):
            if len(places := unmet(table, met)):  # the others are let go of at once
                every.append(table.take(places))
                met.update(every[-1].column("caption_id").to_pylist())
        return pa.concat_tables(every).combine_chunks().sort_by("caption_id")

    def texts(self) -> pa.Table:
        """What the hashes in Text columns stand for, each once: ``text_hash``, ``text``. Raises: SegmentError.

        A hash in the rows whose text is not here belongs to a text that died with its process.
        """
        texts = TextTable()
        for segment, table in self._tables(TEXTS):
            self._merge(texts, table, segment)
        return texts.to_arrow()

    def episodes(self) -> pa.Table:
        """Figures of all finished episodes: ``EPISODE_SCHEMA``. Raises: SegmentError."""
        return pa.concat_tables([EPISODE_SCHEMA.empty_table(), *(table for _, table in self._tables(EPISODES))])

    def verify(self) -> list[Damage]:
        """Read everything and compare checksums, row counts, schemas and generations; [] where all is whole.

        Torn groups are no damage: they were never part of the log.
        """
        found = list(self.unreadable)
        newest: dict[tuple[int, int], int] = {}
        layout: ReplaySpec | None = None
        for segment in self.segments:
            for kind in (ROWS, CAPTIONS, TEXTS, EPISODES):
                name = file_name(kind, segment.shard, segment.number)
                try:
                    table = self._table(segment, kind)
                    if kind == ROWS and table is not None:
                        spec = check_rows(table, segment.lanes, self._where(name))
                        layout = layout or spec
                        if spec != layout:
                            raise SegmentError(f"{self._where(name)}: its rows have another layout than those before")
                    if kind == TEXTS and table is not None:
                        self._merge(TextTable(), table, segment)
                except SegmentError as error:
                    if self.removed(segment):
                        break
                    found.append(Damage(name=name, fault=str(error)))
            for lane, (first, last) in segment.lanes.items():
                place = segment.shard, lane
                if first <= newest.get(place, -1):
                    fault = f"lane {lane} begins at row {first}, an earlier segment ends at {newest[place]}: rows twice"
                    found.append(Damage(name=file_name(MANIFEST, segment.shard, segment.number), fault=fault))
                newest[place] = max(last, newest.get(place, -1))
        return found

    def _segment(self, manifest: Manifest) -> Segment:
        def path(kind: str) -> str | None:
            name = file_name(kind, manifest.shard, manifest.number)
            return f"{self._prefix}/{name}" if name in manifest.files else None

        rows_path = path(ROWS)
        assert rows_path is not None, "a manifest without a rows file is refused"
        return Segment(
            shard=manifest.shard,
            number=manifest.number,
            run_id=manifest.run_id,
            files=manifest.files,
            rows_path=rows_path,
            captions_path=path(CAPTIONS),
            episodes_path=path(EPISODES),
            texts_path=path(TEXTS),
            rows=manifest.rows,
            bytes=manifest.stored_bytes,
            lanes=manifest.lanes,
            created_unix_ns=manifest.created_unix_ns,
        )

    def _table(self, segment: Segment, kind: str) -> pa.Table | None:
        name = file_name(kind, segment.shard, segment.number)
        if name not in segment.files:
            return None
        table = decode(self._read(name), segment.files[name], self._where(name))
        if kind in _SCHEMAS and not table.schema.equals(_SCHEMAS[kind]):
            raise SegmentError(f"{self._where(name)}: {table.schema.names[:8]} are not the columns of {kind}")
        if kind == ROWS:
            self.on_rows(table.num_rows)
        return table

    def _tables(self, kind: str) -> Iterator[tuple[Segment, pa.Table]]:
        """The tables of one kind, of the segments that have one and are still there."""
        found = self._still_there(self.segments, lambda segment: self._table(segment, kind))
        return ((segment, table) for segment, table in found if table is not None)

    def _still_there(
        self, segments: Iterable[Segment], read: Callable[[Segment], pa.Table | None]
    ) -> Iterator[tuple[Segment, pa.Table | None]]:
        """What is read of segments, but for those that are removed meanwhile. Raises: SegmentError for the others."""
        for segment in segments:
            try:
                table = read(segment)
            except SegmentError:
                if not self.removed(segment):
                    raise
                continue
            yield segment, table

    def _merge(self, texts: TextTable, table: pa.Table, segment: Segment) -> None:
        try:
            texts.merge(table)
        except SpecError as error:
            raise SegmentError(f"{self._where(file_name(TEXTS, segment.shard, segment.number))}: {error}") from error

    def _names(self) -> dict[str, int]:
        try:
            return self._files.names()
        except (OSError, pa.ArrowException) as error:
            raise ReplayError(f"{self.location}: the replay log cannot be listed ({error})") from error

    def _read(self, name: str) -> bytes:
        try:
            return self._files.read(name)
        except (OSError, pa.ArrowException) as error:
            raise SegmentError(f"{self._where(name)}: cannot be read ({error})") from error

    def _where(self, name: str) -> str:
        return f"{self.location.rstrip('/')}/{name}"


_SCHEMAS = {CAPTIONS: CAPTION_SCHEMA, TEXTS: TEXT_SCHEMA, EPISODES: EPISODE_SCHEMA}
