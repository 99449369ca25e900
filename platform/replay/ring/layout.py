"""Where each word and column of a ring file lies, and how the file says so itself.

Layout (little-endian, every array 64-byte aligned, every column page-aligned)::

    preamble   magic, format version, file bytes, header bytes, groups, lanes per group, slots, window rows, owner
               pid, creation time, length of run id and of schema, the machine's boot, CRC-32 of all but the owner,
               run id, Arrow schema
    words      writing[G] committed[G]                                commit words, one 8-byte store each
               cursor[2, L] oldest[2, L] open[2, L]                   two records per group, used in turn
               incarnation[2, G] sequence[2, G] inserted[2, G]
               restored[2, L]                                         rows put in from a log: first, and behind
    columns    one buffer [L, slots, ...] per column, usable as an Arrow buffer as it stands
    states     per state the rows that it was kept of, int64 [L, entries], and the states [L, entries, ...]

L = G groups × lanes per group; lane = group × lanes_per_group + env.
"""

from __future__ import annotations

import mmap
import os
import struct
import uuid
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from onibi.platform.errors import OnibiError, ReplayError
from onibi.platform.replay.ring.state_ring import state_entries
from onibi.platform.replay.schema import arrow_schema, ring_columns, spec_from_arrow
from onibi.platform.spec import ReplaySpec

OWNER_OFFSET = 64
"""Byte position of the owner's pid, the one field that changes."""

_MAGIC = b"ONIBIRNG"
_FORMAT_VERSION = 4
_PREAMBLE = struct.Struct("<8s11q16sI4x")
_OWNER_FIELD = 8
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_LINE, _PAGE = 64, mmap.PAGESIZE


@dataclass(frozen=True)
class Offsets:
    """Bytes from the begin of the file, by name; of states those of their rows and of their values."""

    words: dict[str, int]
    columns: dict[str, int]
    states: dict[str, tuple[int, int]]
    file_bytes: int


@dataclass(frozen=True, kw_only=True)
class RingLayout:
    """What a ring file holds, and with it where everything lies.

    ``window_rows`` is the longest reach of a draw in rows (look-back + n): with the fragments' length it bounds
    ``slots``.
    """

    spec: ReplaySpec
    groups: int
    lanes_per_group: int
    slots: int
    window_rows: int
    run_id: str

    def __post_init__(self) -> None:
        for name in ("groups", "lanes_per_group", "slots", "window_rows"):
            if getattr(self, name) < 1:
                raise ReplayError(f"ring: {name} is {getattr(self, name)}, it must be at least 1")
        if self.slots < smallest_slots(0, self.window_rows):
            raise ReplayError(
                f"ring: {self.slots} slots per lane are fewer than 4 x (1 head row + {self.window_rows} window rows) = "
                f"{smallest_slots(0, self.window_rows)}; raise replay.capacity_rows or lower the number of environments"
            )

    @property
    def lanes(self) -> int:
        """L."""
        return self.groups * self.lanes_per_group

    @property
    def identity_bytes(self) -> bytes:
        """Run id and Arrow schema, as they follow the preamble."""
        return self.run_id.encode() + self.schema_message

    @property
    def schema_message(self) -> bytes:
        """The row's Arrow schema as an IPC message."""
        return bytes(arrow_schema(self.spec).serialize())

    @property
    def word_shapes(self) -> dict[str, tuple[int, ...]]:
        """The int64 arrays of the header, in file order."""
        per_group, per_lane = (2, self.groups), (2, self.lanes)
        return {
            "writing": (self.groups,),
            "committed": (self.groups,),
            "cursor": per_lane,
            "oldest": per_lane,
            "open": per_lane,
            "incarnation": per_group,
            "sequence": per_group,
            "inserted": per_group,
            "restored": per_lane,
        }

    @property
    def state_entries(self) -> dict[str, int]:
        """Entries of a lane, by the state's name."""
        return {state.name: state_entries(self.slots, state.period) for state in self.spec.states}

    def offsets(self) -> Offsets:
        """Where in the file each array begins."""
        position = _aligned(_PREAMBLE.size + len(self.identity_bytes), _LINE)
        words = {}
        for name, shape in self.word_shapes.items():
            words[name] = position
            position = _aligned(position + 8 * int(np.prod(shape)), _LINE)
        columns = {}
        for column in ring_columns(self.spec):
            position = _aligned(position, _PAGE)
            columns[column.name] = position
            position += self.lanes * self.slots * column.row_bytes
        states = {}
        for state in self.spec.states:
            count = self.lanes * self.state_entries[state.name]
            kept = _aligned(position, _PAGE)
            values = _aligned(kept + 8 * count, _PAGE)
            states[state.name] = kept, values
            position = values + count * state.row_bytes
        return Offsets(words, columns, states, _aligned(position, _PAGE))

    def preamble(self, owner_pid: int, created_unix_ns: int, boot: bytes) -> bytes:
        """The first bytes of the file. ``boot`` are 16 bytes."""
        offsets = self.offsets()
        head = (
            _FORMAT_VERSION,
            offsets.file_bytes,
            offsets.words["writing"],
            self.groups,
            self.lanes_per_group,
            self.slots,
            self.window_rows,
        )
        lengths = (owner_pid, created_unix_ns, len(self.run_id.encode()), len(self.schema_message))
        crc = _checksum((_MAGIC, *head, *lengths, boot), self.identity_bytes)
        return _PREAMBLE.pack(_MAGIC, *head, *lengths, boot, crc) + self.identity_bytes


@dataclass(frozen=True, kw_only=True)
class RingHeader:
    """What a ring file's preamble says."""

    layout: RingLayout
    owner_pid: int
    created_unix_ns: int
    boot: bytes
    """16 bytes, other ones after each start of the machine; see ``current_boot``."""


def lane_slots(capacity_rows: int, lanes: int) -> int:
    """Slots of each lane where ``lanes`` share ``capacity_rows`` rows, rounded up."""
    return -(-capacity_rows // max(1, lanes))  # a ring of no lanes is refused by its layout


def smallest_slots(fragment_rows: int, window_rows: int) -> int:
    """Fewest slots per lane for fragments of ``fragment_rows`` committed rows a lane: 4 × (rows + head + window
    rows).
    """
    return 4 * (fragment_rows + 1 + window_rows)


def read_header(path: Path) -> RingHeader:
    """Read and check a ring's preamble without mapping the file.

    Raises: ReplayError for a missing, foreign, older, damaged or cut-off file.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_PREAMBLE.size)
            if len(head) < _PREAMBLE.size or not head.startswith(_MAGIC):
                raise ReplayError(
                    f"{path} is not a replay ring: it begins with {head[:8]!r}, a ring with {_MAGIC!r}. Give the "
                    "path that the run's shard has created"
                )
            _, version, size, words, groups, lanes, slots, window, pid, created, *lengths, boot, crc = _PREAMBLE.unpack(
                head
            )
            run_length, schema_length = lengths
            if version != _FORMAT_VERSION:
                raise ReplayError(
                    f"{path} has ring format {version}, this version of Onibi reads {_FORMAT_VERSION}; start a new ring"
                )
            length = run_length + schema_length
            found = os.fstat(file.fileno()).st_size
            identity = file.read(length) if 0 <= length <= found else b""
    except OSError as error:
        raise ReplayError(f"{path} cannot be read: {error.strerror}; has the run's shard been started?") from error
    damaged = f"{path}: the header is damaged"
    if _checksum(_PREAMBLE.unpack(head)[:-1], identity) != crc:
        raise ReplayError(f"{damaged} (its checksum differs). Remove the file; its rows cannot be trusted")
    try:
        spec = spec_from_arrow(pa.ipc.read_schema(pa.py_buffer(identity[run_length:])))
        run_id = identity[:run_length].decode()
        layout = RingLayout(
            spec=spec, groups=groups, lanes_per_group=lanes, slots=slots, window_rows=window, run_id=run_id
        )
    except (OnibiError, pa.ArrowInvalid, UnicodeDecodeError, KeyError) as error:
        raise ReplayError(f"{damaged}: {error}") from error
    offsets = layout.offsets()
    if size != offsets.file_bytes or words != offsets.words["writing"]:
        raise ReplayError(f"{damaged}: it says {size} bytes, its columns make {offsets.file_bytes}; remove the file")
    if found != size:  # checked before mapping: reading behind a file's end is SIGBUS, not an exception
        raise ReplayError(f"{path} is cut off: {found} bytes, its header says {size}. Remove the file")
    return RingHeader(layout=layout, owner_pid=pid, created_unix_ns=created, boot=boot)


def current_boot() -> bytes:
    """16 bytes that differ after each start of the machine; zeros where the system does not tell."""
    try:
        return uuid.UUID(_BOOT_ID.read_text(encoding="ascii").strip()).bytes
    except (OSError, ValueError):
        return bytes(16)


def _checksum(fields: tuple[Any, ...], identity: bytes) -> int:
    """CRC-32 of the preamble without its owner, which changes while others read."""
    return zlib.crc32(_PREAMBLE.pack(*fields[:_OWNER_FIELD], 0, *fields[_OWNER_FIELD + 1 :], 0) + identity)


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
