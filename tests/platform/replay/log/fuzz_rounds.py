"""Damages the files of a log in all ways it can think of, and reads what is left; counts of outcomes as JSON on stdout.

python fuzz_rounds.py FOLDER ROUNDS SEED

Memory is limited: a length taken from a damaged file must not be believed. A round that crashes or hangs ends this
process, and its number stands in FOLDER/round.
"""

from __future__ import annotations

import json
import random
import resource
import signal
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from onibi.platform.errors import ReplayError
from onibi.platform.fragment import CaptionText, EpisodeStatistics, KeyText
from onibi.platform.replay.log.log_files import open_files
from onibi.platform.replay.log.log_reader import ReplayLog
from onibi.platform.replay.log.segment_format import Manifest, RingOrigin, SealedFile
from onibi.platform.replay.log.segment_writer import RetentionSettings, Rows, SegmentWriter
from onibi.platform.spec import ArraySpec, ReplaySpec

SPEC = ReplaySpec(observation=(ArraySpec(name="observation", dtype="uint8", shape=(4, 3)),), actions=2)
ROWS, MEMORY_BYTES, HANG_SECONDS = 40, 768 << 20, 60


def make_log(folder: Path) -> None:
    """Two segments that compress."""
    writer = SegmentWriter(
        open_files(folder, create=True),
        SPEC,
        run_id="test",
        shard=0,
        retention=RetentionSettings(),
        compression="zstd",
    )
    rng = np.random.default_rng(0)
    for number in range(2):
        columns = {c.name: rng.integers(0, 2, (ROWS, *c.shape)).astype(c.dtype) for c in SPEC.columns}
        generation = np.arange(ROWS) + number * ROWS
        writer.seal(
            Rows(lane=np.zeros(ROWS, np.int32), generation=generation, columns=columns),
            {1: CaptionText("You see a key.", (KeyText("You see a key."),))},
            [EpisodeStatistics(0, number, 1.0, 3, True, {"score": 1.0})],
            next_generation=[(number + 1) * ROWS],
            ring=RingOrigin(created_unix_ns=1, first_generation=(0,)),
        )


def flip(content: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 1, 2, 16))):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)


def cut(content: bytearray, chance: random.Random) -> None:
    del content[chance.randrange(len(content)) :]


def grow(content: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(content))
    content[at:at] = chance.randbytes(chance.choice((1, 8, 64)))


def blank(content: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(content))
    size = min(chance.choice((4, 64, 512)), len(content) - at)
    content[at : at + size] = bytes(size)


def wrong_length(content: bytearray, chance: random.Random) -> None:
    """A number that may be a length becomes another, often a huge one."""
    at = chance.randrange(max(1, len(content) - 8)) // 8 * 8
    size = chance.choice((4, 8))
    value = chance.choice((0, 1, 2**31 - 1, 2**40, -1, -(2**31), chance.getrandbits(31)))
    content[at : at + size] = (value % 2 ** (8 * size)).to_bytes(size, "little")


def digits(content: bytearray, chance: random.Random) -> None:
    """One of a manifest's digits becomes another, or many."""
    places = [at for at, byte in enumerate(content) if 48 <= byte <= 57]
    if places:
        at = chance.choice(places)
        content[at : at + 1] = chance.choice((b"9", b"-1", b"1e400", b"9" * 5_000, b"[" * 100_000, b"null", b"7"))


DAMAGES: tuple[Callable[[bytearray, random.Random], None], ...] = (flip, cut, grow, blank, wrong_length, digits)


def other_schema(content: bytes, chance: random.Random) -> bytes:
    """The same rows with a column dropped, renamed, retyped, or its metadata changed."""
    table = pa.ipc.open_file(pa.py_buffer(content)).read_all()
    column = chance.randrange(table.num_columns)
    name = table.schema.names[column]
    kind = chance.randrange(5)
    if kind == 0:
        table = table.drop_columns([name])
    elif kind == 1:
        table = table.rename_columns([*table.schema.names[:column], "other", *table.schema.names[column + 1 :]])
    elif kind == 2:
        table = table.set_column(column, name, pa.array(["text"] * table.num_rows))
    elif kind == 3:
        keys = table.schema.metadata or {}
        table = table.replace_schema_metadata({key: chance.choice((b"", b"x", b"-5")) for key in keys})
    else:
        field = table.schema.field(column).with_metadata({"dtype": "float128", "shape": "-1", "part": "fixed"})
        table = table.cast(table.schema.set(column, field))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def vouch(folder: Path, name: str, content: bytes) -> None:
    """Make the manifest agree with a changed file, so that no checksum stands before its decoder."""
    path = folder / ("manifest-" + name.split("-", 1)[1].replace(".arrow", ".json"))
    manifest = Manifest.from_json(path.read_bytes(), path.name)
    rows = manifest.files[name].rows
    manifest.files[name] = SealedFile(bytes=len(content), crc32=zlib.crc32(content), rows=rows)
    path.write_bytes(manifest.to_json())


def read_everything(folder: Path) -> tuple[str, list[pa.Table]]:
    """(what happened, tables): whole, or refused by an error or by ``verify``."""
    try:
        log = ReplayLog(folder)
        tables = [*(log.read(segment) for segment in log.segments), log.captions(), log.episodes()]
        spec = log.spec
    except ReplayError:
        return "refused", []
    if log.verify() or log.unreadable:
        return "refused", []
    return ("whole", tables) if spec == SPEC else ("another spec", tables)


def main(folder: Path, rounds: int, seed: int) -> None:
    chance, counts = random.Random(seed), Counter()
    make_log(folder)
    originals = {path.name: path.read_bytes() for path in folder.iterdir()}
    _, expected = read_everything(folder)
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
    for number in range(rounds):
        (folder.parent / "round").write_text(str(number), encoding="ascii")
        signal.alarm(HANG_SECONDS)
        name = chance.choice(sorted(originals))
        content = bytearray(originals[name])
        vouched = name.endswith(".arrow") and chance.random() < 0.4
        if vouched and chance.random() < 0.2:
            content = bytearray(other_schema(originals[name], chance))
        else:
            chance.choice(DAMAGES)(content, chance)
        (folder / name).write_bytes(content)
        if vouched:
            vouch(folder, name, bytes(content))
        outcome, tables = read_everything(folder)
        same = len(tables) == len(expected) and all(
            one.equals(other) for one, other in zip(tables, expected, strict=True)
        )
        if outcome == "whole":
            # A manifest that vouches for other bytes makes them the log's; without, they must be the old ones.
            outcome = "same" if same else "vouched" if vouched else f"WRONG {name}"
        counts[outcome] += 1
        for each, old in originals.items():
            if each == name or each.startswith("manifest"):
                (folder / each).write_bytes(old)
    signal.alarm(0)
    sys.stdout.write(json.dumps(counts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
