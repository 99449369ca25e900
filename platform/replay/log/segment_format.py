"""What the files of a sealed segment hold: rows, captions, texts, episodes, and the manifest that makes them one.

A group is ``captions-SSSS-NNNNNNNN.arrow``, ``texts-…``, ``episodes-…``, ``rows-…`` (Arrow IPC files; the first three
are left out where they would be empty) and, sealed last, ``manifest-SSSS-NNNNNNNN.json``. SSSS is the shard, NNNNNNNN
the running number.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Container, ItemsView, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from onibi.platform.errors import ReplayError, SegmentError, SpecError
from onibi.platform.fragment import CaptionText, EpisodeStatistics
from onibi.platform.replay.ring.row_table import PLACE_FIELDS, row_arrays, rows_schema
from onibi.platform.replay.schema import spec_from_arrow
from onibi.platform.spec import ReplaySpec

FORMAT_VERSION = 1
ROWS, CAPTIONS, TEXTS, EPISODES, MANIFEST = "rows", "captions", "texts", "episodes", "manifest"
SEGMENT_METADATA = b"onibi_segment"
"""Key of a rows file's schema metadata: JSON of format, run_id, shard, number, rows, created_unix_ns."""

CAPTION_SCHEMA = pa.schema(
    [
        pa.field("caption_id", pa.uint32(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("keys", pa.list_(pa.string()), nullable=False),
        pa.field("askable", pa.list_(pa.bool_()), nullable=False),  # of each key
    ]
)
EPISODE_SCHEMA = pa.schema(
    [
        pa.field("lane", pa.int32(), nullable=False),
        pa.field("episode_id", pa.int64(), nullable=False),
        pa.field("episode_return", pa.float64(), nullable=False),
        pa.field("length", pa.int64(), nullable=False),
        pa.field("terminated", pa.bool_(), nullable=False),
        pa.field("extra", pa.map_(pa.string(), pa.float64()), nullable=False),
    ]
)
_NAME = re.compile(r"(rows|captions|texts|episodes|manifest)-(\d{4})-(\d{8})\.(arrow|json)(\.part)?")
_MOST_MANIFEST_BYTES = 64 << 20
_BATCH_ROWS = 1 << 16


def file_name(kind: str, shard: int, number: int) -> str:
    """Name of a group's file."""
    return f"{kind}-{shard:04d}-{number:08d}.{'json' if kind == MANIFEST else 'arrow'}"


def group_of(name: str) -> tuple[int, int] | None:
    """(shard, number) of the group that a file belongs to by its name; None where it is no file of a log."""
    match = _NAME.fullmatch(name)
    return (int(match[2]), int(match[3])) if match else None


def spec_of_segment(schema: pa.Schema) -> ReplaySpec:
    """The spec that a rows file's schema was made from. Raises: SpecError where it was not."""
    names = [field.name for field in PLACE_FIELDS]
    if schema.names[: len(names)] != names:
        raise SpecError(f"the Arrow schema begins with {schema.names[:4]}, a rows file of a log with {names}")
    try:
        spec = spec_from_arrow(pa.schema(list(schema)[len(names) :], metadata=schema.metadata))
        expected = rows_schema(spec)
    except (KeyError, ValueError, TypeError, OverflowError, pa.ArrowException) as error:
        raise SpecError(f"the Arrow schema with fields {schema.names[:8]} has broken metadata: {error!r}") from error
    if not expected.equals(schema):
        raise SpecError("the Arrow schema's types differ from those that its own metadata describe")
    return spec


def rows_table(
    spec: ReplaySpec,
    lane: NDArray[np.int32],
    generation: NDArray[np.int64],
    columns: Mapping[str, NDArray[Any]],
    identity: Mapping[str, Any],
) -> pa.Table:
    """A table that shares the arrays' memory, flags apart.

    Args:
        lane: [N], with ``generation`` the place of each row.
        columns: each [N, ...], C-contiguous, in the ring's dtypes.
        identity: what ``SEGMENT_METADATA`` shall say.
    """
    schema = rows_schema(spec)
    arrays = row_arrays(schema, lane, generation, columns)
    said = {**schema.metadata, SEGMENT_METADATA: json.dumps(dict(identity)).encode()}
    return pa.Table.from_arrays(arrays, schema=schema.with_metadata(said))


def captions_table(captions: Mapping[int, CaptionText]) -> pa.Table:
    """Captions by their id in the run."""
    return pa.Table.from_pydict(
        {
            "caption_id": list(captions),
            "text": [_valid(caption.text) for caption in captions.values()],
            "keys": [[_valid(key.text) for key in caption.keys] for caption in captions.values()],
            "askable": [[key.askable for key in caption.keys] for caption in captions.values()],
        },
        schema=CAPTION_SCHEMA,
    )


def unmet(captions: pa.Table, met: Container[int]) -> pa.Array:
    """Places of the rows of a table of captions whose ids are not among ``met``, each once: every group names all
    captions of its rows, so a log has most of them hundreds of times.
    """
    places: dict[int, int] = {}
    for place, caption_id in enumerate(captions.column("caption_id").to_pylist()):
        if caption_id not in met:
            places.setdefault(caption_id, place)
    return pa.array(places.values(), pa.int64())


def episodes_table(episodes: Iterable[EpisodeStatistics]) -> pa.Table:
    """Figures of finished episodes; their ``lane`` is the ring's."""
    ended = list(episodes)
    columns: dict[str, list[Any]] = {
        name: [getattr(episode, name) for episode in ended] for name in EPISODE_SCHEMA.names if name != "extra"
    }
    columns["extra"] = [[(_valid(name), float(value)) for name, value in each.extra.items()] for each in ended]
    return pa.Table.from_pydict(columns, schema=EPISODE_SCHEMA)


def encode(table: pa.Table, compression: str | None) -> pa.Buffer:
    """The table as an Arrow IPC file, its buffers compressed one by one; in this thread alone."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression, use_threads=False)
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=_BATCH_ROWS)
    return sink.getvalue()


class LaneSpans(Mapping[int, tuple[int, int]]):
    """First and last generation of each lane of a segment, {lane: (first, last)}: 20 bytes a lane, for a reader holds
    those of every segment of a log.
    """

    __slots__ = ("_first", "_lane", "_last")

    def __init__(self, spans: Mapping[int, tuple[int, int]]) -> None:
        """Raises: OverflowError where a lane or generation does not fit its integer."""
        ordered = sorted(spans.items())
        self._lane = np.array([lane for lane, _ in ordered], np.int32)
        self._first = np.array([first for _, (first, _) in ordered], np.int64)
        self._last = np.array([last for _, (_, last) in ordered], np.int64)

    @classmethod
    def of_rows(cls, lane: NDArray[np.int32], generation: NDArray[np.int64]) -> LaneSpans:
        """Of rows in any order. Args: lane, generation: [N]."""
        order = np.lexsort((generation, lane))
        lane, generation = lane[order], generation[order]
        first = np.flatnonzero(np.r_[True, lane[1:] != lane[:-1]][: len(lane)])
        last = np.r_[first[1:], len(lane)][: len(first)] - 1
        places = zip(lane[first].tolist(), generation[first].tolist(), generation[last].tolist(), strict=True)
        return cls({each: (begin, end) for each, begin, end in places})

    def __getitem__(self, lane: int) -> tuple[int, int]:
        at = int(np.searchsorted(self._lane, lane))
        if at == len(self._lane) or self._lane[at] != lane:
            raise KeyError(lane)
        return int(self._first[at]), int(self._last[at])

    def __iter__(self) -> Iterator[int]:
        return iter(self._lane.tolist())

    def __len__(self) -> int:
        return len(self._lane)

    def __repr__(self) -> str:
        return repr(dict(self.items()))

    def items(self) -> ItemsView[int, tuple[int, int]]:
        """All at once: one look-up after the other is slow."""
        spans = zip(self._first.tolist(), self._last.tolist(), strict=True)
        return dict(zip(self._lane.tolist(), spans, strict=True)).items()


@dataclass(frozen=True, kw_only=True, slots=True)
class SealedFile:
    """One file of a group as its manifest has it."""

    bytes: int
    crc32: int  # zlib.crc32 of the whole file
    rows: int

    @classmethod
    def of(cls, content: pa.Buffer, rows: int) -> SealedFile:
        """What the manifest says of ``content``."""
        return cls(bytes=content.size, crc32=zlib.crc32(content), rows=rows)


@dataclass(frozen=True, kw_only=True)
class RingOrigin:
    """Which ring a segment's rows came from, and the generation that row 0 of each of its lanes has in the log."""

    created_unix_ns: int
    first_generation: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What makes a group one: sealed last, so a group with a manifest is whole."""

    run_id: str
    shard: int
    number: int
    created_unix_ns: int
    files: dict[str, SealedFile]
    lanes: Mapping[int, tuple[int, int]]  # first and last generation in this segment
    next_generation: tuple[int, ...]  # of each lane of the log, after this segment
    ring: RingOrigin

    @property
    def stored_bytes(self) -> int:
        """Of the group's Arrow files."""
        return sum(file.bytes for file in self.files.values())

    @property
    def rows(self) -> int:
        """Rows in the rows file."""
        return self.files[file_name(ROWS, self.shard, self.number)].rows

    def to_json(self) -> bytes:
        """The manifest's file, its own checksum in it."""
        body = {
            "format": FORMAT_VERSION,
            "run_id": self.run_id,
            "shard": self.shard,
            "number": self.number,
            "created_unix_ns": self.created_unix_ns,
            "files": {name: asdict(file) for name, file in self.files.items()},
            "lanes": {str(lane): list(span) for lane, span in self.lanes.items()},
            "next_generation": list(self.next_generation),
            "ring": {
                "created_unix_ns": self.ring.created_unix_ns,
                "first_generation": list(self.ring.first_generation),
            },
        }
        return json.dumps({**body, "crc32": _checksum(body)}).encode()

    @classmethod
    def from_json(cls, content: bytes, where: str) -> Manifest:
        """Read and check a manifest.

        Args:
            where: its file, for messages; the group in its name must be the one inside.
        Raises: SegmentError where anything of it is not as ``to_json`` writes it.
        """
        name = where.rsplit("/", 1)[-1]
        if len(content) > _MOST_MANIFEST_BYTES:
            raise SegmentError(f"{where}: {len(content)} bytes are too many for a manifest; the file is damaged")
        try:
            body = json.loads(content)
            found = body.pop("crc32")
            if found != _checksum(body):
                raise SegmentError(f"{where}: its checksum differs; the file is damaged. {_RESTORE}")
            if body["format"] != FORMAT_VERSION:
                raise SegmentError(
                    f"{where}: format {body['format']!r}, this version of Onibi reads {FORMAT_VERSION}; open the log "
                    "with the version that wrote it"
                )
            manifest = cls(
                run_id=str(body["run_id"]),
                shard=int(body["shard"]),
                number=int(body["number"]),
                created_unix_ns=int(body["created_unix_ns"]),
                files={
                    each: SealedFile(**{key: int(value) for key, value in file.items()})
                    for each, file in body["files"].items()
                },
                lanes=LaneSpans({int(lane): (int(first), int(last)) for lane, (first, last) in body["lanes"].items()}),
                next_generation=tuple(map(int, body["next_generation"])),
                ring=RingOrigin(
                    created_unix_ns=int(body["ring"]["created_unix_ns"]),
                    first_generation=tuple(map(int, body["ring"]["first_generation"])),
                ),
            )
        except SegmentError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
            raise SegmentError(f"{where}: not a manifest ({error!r}); the file is damaged. {_RESTORE}") from error
        group = (manifest.shard, manifest.number)
        allowed = {file_name(kind, *group) for kind in (ROWS, CAPTIONS, TEXTS, EPISODES)}
        if group_of(name) != group or not {file_name(ROWS, *group)} <= manifest.files.keys() <= allowed:
            raise SegmentError(f"{where}: it describes segment {group} with the files {sorted(manifest.files)}")
        return manifest


_RESTORE = "Restore it from a copy, or remove the group's files to give the segment up"


def decode(content: bytes, file: SealedFile, where: str) -> pa.Table:
    """The table of an Arrow file, after its size and checksum have been compared with the manifest's.

    Raises: SegmentError where they differ, or the content is no table of so many rows.
    """
    crc32 = zlib.crc32(content)
    if len(content) != file.bytes or crc32 != file.crc32:
        raise SegmentError(
            f"{where}: {len(content)} bytes with CRC-32 {crc32:#010x}, its manifest says {file.bytes} with "
            f"{file.crc32:#010x}; the file is damaged. {_RESTORE}"
        )
    table = arrow_table(content, where)
    if table.num_rows != file.rows:
        raise SegmentError(f"{where}: {table.num_rows} rows, its manifest says {file.rows}")
    return table


def arrow_table(content: bytes, where: str) -> pa.Table:
    """The table of an Arrow file that no manifest speaks for. Raises: SegmentError where it is none."""
    try:
        with pa.ipc.open_file(pa.py_buffer(content)) as reader:
            table = reader.read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, MemoryError) as error:
        raise SegmentError(f"{where}: not an Arrow file ({error}); {_RESTORE}") from error
    return table


def check_rows(table: pa.Table, lanes: Mapping[int, tuple[int, int]], where: str) -> ReplaySpec:
    """Compare a rows table with its manifest's ``lanes``; see ``spec_and_spans``.

    Returns: the row layout. Raises: SegmentError.
    """
    spec, found = spec_and_spans(table, where)
    if found != lanes:
        raise SegmentError(f"{where}: it holds the lanes {_short(found)}, its manifest says {_short(lanes)}")
    return spec


def spec_and_spans(table: pa.Table, where: str) -> tuple[ReplaySpec, LaneSpans]:
    """The row layout of a rows table and the spans of its lanes.

    Raises: SegmentError where it has no layout, or the generations of a lane fall or repeat.
    """
    try:
        spec = spec_of_segment(table.schema)
    except (SpecError, ReplayError) as error:
        raise SegmentError(f"{where}: {error}") from error
    lane = table.column("lane").to_numpy()
    generation = table.column("generation").to_numpy()
    order = np.lexsort((np.arange(len(lane)), lane))  # by lane, rows of a lane as they lie in the file
    ordered = lane[order]
    if (np.diff(generation[order])[ordered[1:] == ordered[:-1]] <= 0).any():
        raise SegmentError(f"{where}: a lane's generations do not rise from row to row")
    return spec, LaneSpans.of_rows(lane, generation)


def _short(lanes: Mapping[int, tuple[int, int]]) -> str:
    shown = str(dict(list(lanes.items())[:4]))
    return shown if len(lanes) <= 4 else f"{shown} and {len(lanes) - 4} more"


def _checksum(body: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())


def _valid(text: str) -> str:
    """UTF-8 has no lone surrogates; a text that came from broken bytes shows them as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
