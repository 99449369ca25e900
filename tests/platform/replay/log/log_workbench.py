"""A shard with its log under test: fragments that actors send, disks that misbehave, and what the log must hold."""

from __future__ import annotations

import threading
import time

import numpy as np

from onibi.platform.annotation.captions import text_hash
from onibi.platform.fragment import CaptionText, EpisodeStatistics, Fragment, KeyText
from onibi.platform.replay.limiter import Limiter
from onibi.platform.replay.log.log_files import FolderDisk, LocalFiles
from onibi.platform.replay.log.log_reader import ReplayLog
from onibi.platform.replay.log.log_settings import LogSettings
from onibi.platform.replay.log.log_writer import LogWriter
from onibi.platform.replay.shard import Shard

ENVS, ACTORS, SLOTS = 2, 2, 64
TEXTS = ("", "You see here a key.", "It is locked.")
LIMITER = Limiter(ratio=1.0, minimum_rows=1, tolerance_rows=1_000)


class SlowDisk(FolderDisk):
    """A disk on which nothing gets written until ``open``; or that refuses with ``error``."""

    def __init__(self, path):
        super().__init__(path)
        self.open = threading.Event()
        self.error = None

    def write(self, name, content):
        assert self.open.wait(60)
        if (error := self.error) is not None:  # once: a test may take it back at this moment
            super().write(name, memoryview(content)[: len(content) // 2])
            raise error
        super().write(name, content)


class Workbench:
    """A shard with its log, actors that send fragments, and the model of what the log must hold."""

    def __init__(self, rows, ring_path, folder):
        self.rows, self.ring, self.folder = rows, ring_path, folder
        self.folder.mkdir(exist_ok=True)
        self.rng = np.random.default_rng(5)
        self.model = rows.RingModel(ACTORS * ENVS, 10**9)
        self.lanes = [rows.Lane(self.rng, lane, same_step=lane < ENVS, end=0.15) for lane in range(ACTORS * ENVS)]
        self.leases, self.sequences = [None] * ACTORS, [0] * ACTORS
        self.shard = None

    def resolve(self, captions):
        return np.array([TEXTS.index(caption.text) for caption in captions], np.uint32)

    def open(self, disk=None, captions=None, reopen=False, **settings):
        if reopen:
            self.shard = Shard.reopen(self.ring, run_id="test", limiter=LIMITER, resolve=self.resolve)
        else:
            self.shard = Shard.create(
                self.ring,
                self.rows.SPEC,
                max_actors=ACTORS,
                envs_per_actor=ENVS,
                capacity_rows=SLOTS * ACTORS * ENVS,
                window_rows=3,
                run_id="test",
                limiter=LIMITER,
                resolve=self.resolve,
            )
        files = LocalFiles(str(self.folder), disk or FolderDisk(self.folder))
        self.log = LogWriter(LogSettings(**settings), files, self.ring, run_id="test", captions=captions or {})
        self.shard.attach_log(self.log)
        for actor in range(ACTORS):
            self.register(actor)
        return self

    def register(self, actor):
        self.leases[actor] = self.shard.register(actor, ENVS)
        self.sequences[actor] = 0
        for lane in range(actor * ENVS, (actor + 1) * ENVS):
            self.model.close(lane)
            self.lanes[lane].begin()

    def insert(self, actor, *, gap=False, texts=(1, 2)):
        """A fragment of ragged lanes. ``gap``: the one before it got lost."""
        if gap:
            self.sequences[actor] += 1
            for lane in range(actor * ENVS, (actor + 1) * ENVS):
                self.model.close(lane)
                self.lanes[lane].begin()
        mine = self.lanes[actor * ENVS : (actor + 1) * ENVS]
        made = [[row for _ in range(int(self.rng.integers(0, 5))) for row in lane.advance()] for lane in mine]
        columns = self.rows.fragment_columns(made, [lane.head() for lane in mine])
        ids = columns.pop("caption_id")
        columns["caption_hash"] = np.array([text_hash(TEXTS[k]) for k in range(3)], np.uint64)[ids % 3]
        fragment = Fragment(
            actor=actor,
            incarnation=self.leases[actor].incarnation,
            sequence=self.sequences[actor],
            rows_per_lane=np.array([len(each) for each in made], np.int32),
            columns=columns,
            new_captions=[CaptionText(TEXTS[k], (KeyText(TEXTS[k], askable=k == 1),)) for k in texts],
            episodes=[EpisodeStatistics(1, self.sequences[actor], 1.5, 3, True, {"score": 2.0})],
        )
        self.shard.insert(fragment)
        self.sequences[actor] += 1
        for lane, each, head in zip(range(actor * ENVS, (actor + 1) * ENVS), made, mine, strict=True):
            self.model.add(lane, each, head.head())

    def insert_many(self, count, *, gaps=0.1, registers=0.1):
        for _ in range(count):
            actor = int(self.rng.integers(ACTORS))
            if self.rng.random() < registers:
                self.register(actor)
            self.insert(actor, gap=self.rng.random() < gaps)

    def close(self):
        self.shard.close()
        for lane in range(ACTORS * ENVS):
            self.model.close(lane)

    def abandon(self):
        """As kill -9 leaves it: what the thread has in its buffers is gone, heads are open, the ring stays."""
        self.log._segments._files = None  # the thread fails at its next seal
        self.log.close()
        self.shard._writer.close()


def rows_of(log: ReplayLog):
    """{lane: (generations, {column: values})}, segment by segment through ``read``."""
    import pyarrow as pa

    table = pa.concat_tables([log.read(segment) for segment in log.segments])
    found = {}
    for lane in set(table.column("lane").to_pylist()):
        mine = table.filter(pa.compute.equal(table.column("lane"), lane))
        found[lane] = mine.column("generation").to_numpy(), mine
    return found


def assert_log_holds(log: ReplayLog, bench: Workbench) -> None:
    """Every row of the model, column for column, under its own number."""
    assert log.verify() == []
    assert log.torn == ()
    found = rows_of(log)
    for lane, rows in enumerate(bench.model.rows):
        if not rows:
            assert lane not in found
            continue
        generation, table = found[lane]
        assert generation.tolist() == list(range(len(rows)))
        for column in bench.rows.SPEC.columns:
            values = table.column(column.name).combine_chunks()
            if column.shape:
                values = values.flatten()
            values = values.to_numpy(zero_copy_only=False).reshape(len(rows), *column.shape).astype(column.dtype)
            expected = np.array([row[column.name] for row in rows], column.dtype)
            if column.name == "caption_id":
                expected = np.where(expected % 3 == 0, 0, expected % 3)
            np.testing.assert_array_equal(values, expected, err_msg=f"lane {lane}, {column.name}")


def wait_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
