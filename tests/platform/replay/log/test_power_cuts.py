"""A disk that forgets what was not fsynced, cut off after every single operation of a writer (docs/replay-log.md).

kill -9 keeps the page cache, so kills prove nothing about fsync. Here the operations go to a model of a disk: content
counts once its file was synced, names once the folder was; of the rest, nothing, everything or any part may survive.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest

from onibi.platform.fragment import CaptionText, EpisodeStatistics, KeyText
from onibi.platform.replay.log.log_files import PART_SUFFIX, FolderDisk, LocalFiles
from onibi.platform.replay.log.log_reader import ReplayLog
from onibi.platform.replay.log.segment_format import RingOrigin
from onibi.platform.replay.log.segment_writer import RetentionSettings, Rows, SegmentWriter
from onibi.platform.spec import ArraySpec, ReplaySpec

SPEC = ReplaySpec(observation=(ArraySpec(name="observation", dtype="int64"),), actions=2)
SEGMENT_ROWS, SEGMENTS, KEPT_ROWS = 3, 4, 7
ORIGIN = RingOrigin(created_unix_ns=1, first_generation=(0,))


class PowerCutError(BaseException):
    """Nothing that a writer could catch."""


class RecordingDisk:
    """A folder in memory that knows which contents and names would survive a power cut.

    Args:
        cut: the operation after which the power fails; None: never.
    """

    def __init__(self, cut=None):
        self.cut, self.operations = cut, 0
        self.contents, self.synced = {}, {}  # by inode
        self.folder, self.durable = {}, {}  # name → inode: as seen, and as on the disk
        self.pending = []  # changes of names since the last sync of the folder, each {name: inode or None}

    def names(self):
        return {name: len(self.contents[inode]) for name, inode in self.folder.items()}

    def read(self, name):
        return self.contents[self.folder[name]]

    def write(self, name, content):
        inode = len(self.contents)
        self.contents[inode] = bytes(content)
        self.change({name: inode})

    def sync(self, name):
        inode = self.folder[name]
        self.synced[inode] = self.contents[inode]
        self.count()

    def rename(self, name, new):
        self.change({name: None, new: self.folder[name]})

    def remove(self, name):
        if name in self.folder:
            self.change({name: None})

    def sync_folder(self):
        self.durable = dict(self.folder)
        self.pending = []
        self.count()

    def change(self, names):
        apply(self.folder, names)
        self.pending.append(names)
        self.count()

    def count(self):
        self.operations += 1
        if self.operations == self.cut:
            raise PowerCutError

    def survivors(self, luck, rng):
        """{name: content} after the power cut. ``luck``: share of what was not synced that survives all the same."""
        names = dict(self.durable)
        for change in self.pending:
            if rng.random() < luck:
                apply(names, change)
        return {name: self.surviving_content(inode, luck, rng) for name, inode in names.items()}

    def surviving_content(self, inode, luck, rng):
        if inode in self.synced:
            return self.synced[inode]
        content = self.contents[inode]
        if luck in (0, 1):
            return content if luck else b""
        whole = int(rng.integers(len(content) + 1))
        return content[:whole] + bytes(len(content) - whole if rng.random() < 0.5 else 0)


def apply(folder, names):
    for name, inode in names.items():
        if inode is None:
            folder.pop(name, None)
        else:
            folder[name] = inode


def open_writer(files):
    return SegmentWriter(
        files,
        SPEC,
        run_id="test",
        shard=0,
        retention=RetentionSettings(rows=KEPT_ROWS),
        compression="zstd",
        wall_clock=lambda: 0,
    )


def seal(writer, first):
    """Rows ``first`` to ``first + SEGMENT_ROWS - 1``, whose observation is their number."""
    columns = {column.name: np.zeros((SEGMENT_ROWS, *column.shape), column.dtype) for column in SPEC.columns}
    columns["observation"] = first + np.arange(SEGMENT_ROWS)
    columns["caption_id"] += 1
    rows = Rows(lane=np.zeros(SEGMENT_ROWS, np.int32), generation=first + np.arange(SEGMENT_ROWS), columns=columns)
    episodes = [EpisodeStatistics(0, first, 1.0, SEGMENT_ROWS, True)]
    caption = CaptionText("a key", (KeyText("a key"),))
    writer.seal(rows, {1: caption}, episodes, next_generation=[first + SEGMENT_ROWS], ring=ORIGIN)


def work(disk, files_class):
    """Seal and retain. Returns: rows sealed for good, and the first that retention cannot have begun to remove."""
    sealed = kept_from = 0
    try:
        writer = open_writer(files_class("test", disk))
        for number in range(SEGMENTS):
            seal(writer, number * SEGMENT_ROWS)
            sealed = (number + 1) * SEGMENT_ROWS
            kept_from = max(0, (sealed - KEPT_ROWS + SEGMENT_ROWS - 1) // SEGMENT_ROWS * SEGMENT_ROWS)
            writer.retain()
    except PowerCutError:
        pass
    return sealed, kept_from


def faults_after(disk, folder, sealed, kept_from, luck, rng):
    """What is wrong with the log that the cut left, before and after a new writer has opened it."""
    folder.mkdir()
    for name, content in disk.survivors(luck, rng).items():
        (folder / name).write_bytes(content)
    if sealed:
        yield from faults_of(folder, kept_from, sealed)
    writer = open_writer(LocalFiles(str(folder), FolderDisk(folder)))
    first = writer.opened.last.next_generation[0] if writer.opened.last else 0
    if first < sealed:
        yield f"opened behind row {first}, {sealed} were sealed"
    seal(writer, first)
    yield from faults_of(folder, kept_from, sealed)
    if ReplayLog(folder).torn:
        yield f"torn files stay: {ReplayLog(folder).torn}"


def faults_of(folder, kept_from, sealed):
    if not any(folder.iterdir()):
        yield "nothing is left of the log"
        return
    log = ReplayLog(folder)
    yield from (damage.fault for damage in (*log.verify(), *log.unreadable))
    if log.verify():
        return
    numbers = []
    for segment in log.segments:
        table = log.read(segment)
        if table.column("observation").to_pylist() != table.column("generation").to_pylist():
            yield f"segment {segment.number} holds other rows than were sealed"
        numbers += table.column("generation").to_pylist()
    if len(set(numbers)) != len(numbers):
        yield "rows twice"
    if missing := set(range(kept_from, sealed)) - set(numbers):
        yield f"sealed rows {sorted(missing)} are gone"


def faults_of_all_cuts(folder, files_class, operations):
    for cut in range(1, operations + 1):
        for attempt, luck in enumerate((0, 1, 0.5)):
            disk = RecordingDisk(cut)
            sealed, kept_from = work(disk, files_class)
            rng = np.random.default_rng([cut, attempt])
            for fault in faults_after(disk, folder / f"{cut}-{attempt}", sealed, kept_from, luck, rng):
                yield f"cut {cut}, luck {luck}: {fault}"


def operations_of(files_class):
    disk = RecordingDisk()
    assert work(disk, files_class)[0] == SEGMENTS * SEGMENT_ROWS
    return disk.operations


@pytest.fixture
def folder():
    """In memory: what a real disk does is not in question here."""
    with tempfile.TemporaryDirectory(prefix="onibi-test-", dir="/dev/shm") as path:
        yield Path(path)


def test_after_a_cut_at_any_operation_every_sealed_row_is_there_once_and_whole(folder):
    operations = operations_of(LocalFiles)
    assert operations >= SEGMENTS * 14  # of 4 files written, synced and renamed, 2 syncs of the folder
    assert list(faults_of_all_cuts(folder, LocalFiles, operations)) == []


class NoFileSync(LocalFiles):
    def seal(self, files):
        for name, content in files:
            self._disk.write(name, content)
        self._disk.sync_folder()


class NoFolderSync(LocalFiles):
    def seal(self, files):
        for name, content in files:
            self._disk.write(name + PART_SUFFIX, content)
            self._disk.sync(name + PART_SUFFIX)
            self._disk.rename(name + PART_SUFFIX, name)


class NoSyncBetweenRemovals(LocalFiles):
    def remove(self, names):
        for name in names:
            self._disk.remove(name)


@pytest.mark.parametrize("files_class", [NoFileSync, NoFolderSync, NoSyncBetweenRemovals])
def test_the_cuts_find_a_file_layer_that_leaves_a_sync_out(folder, files_class):
    assert next(faults_of_all_cuts(folder, files_class, operations_of(files_class)))
