"""Reservation, mapping, and every kind of file that is not a healthy ring."""

from __future__ import annotations

import fcntl
import os
import resource
import subprocess
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest

from onibi.platform.errors import ReplayError
from onibi.platform.replay.limiter import DrawnWord
from onibi.platform.replay.ring import file as ring_file
from onibi.platform.replay.ring.file import drawn_path, orphans, remove_orphan
from onibi.platform.replay.ring.folder import in_memory
from onibi.platform.replay.ring.layout import read_header
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.ring.writer import RingWriter


def create(rows, path, *, slots=64, run_id="run"):
    return RingWriter.create(path, rows.SPEC, groups=1, lanes_per_group=2, slots=slots, window_rows=3, run_id=run_id)


def test_ring_larger_than_the_free_memory_is_refused_with_the_sums_and_leaves_nothing(rows, ring_path):
    row_bytes = rows.SPEC.row_bytes
    with pytest.raises(
        ReplayError, match=rf"too little shared memory.*2 lanes x 1000000000000 slots x {row_bytes} bytes"
    ):
        create(rows, ring_path, slots=10**12)
    assert list(ring_path.parent.iterdir()) == []


def test_memory_that_ends_during_reservation_is_an_error_that_leaves_nothing(rows, ring_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        with pytest.raises(ReplayError, match=r"too little shared memory for the replay ring \(File too large\)"):
            create(rows, ring_path, slots=100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(ring_path.parent.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small memory file system")
def test_memory_taken_by_others_after_the_check_is_an_error_and_not_a_signal(rows, ring_path, monkeypatch):
    folder = ring_path.parent / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        monkeypatch.setattr(ring_file, "free_bytes", lambda folder: 2**40)  # what it was a moment ago
        with pytest.raises(
            ReplayError, match=r"too little shared memory for the replay ring \(No space left on device\)"
        ):
            create(rows, folder / "test.ring", slots=50_000)
        assert list(folder.iterdir()) == []
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_reserved_memory_is_there_before_the_first_row(rows, ring_path):
    create(rows, ring_path, slots=10_000).close()
    status = ring_path.stat()
    assert status.st_blocks * 512 >= status.st_size > 2 * 10_000 * rows.SPEC.row_bytes


def test_columns_can_be_read_as_arrow_buffers_where_they_lie(rows, ring_path):
    import pyarrow as pa

    create(rows, ring_path).close()
    reader = RingReader(ring_path)
    for column in rows.SPEC.columns:
        view = reader.columns[column.name]
        assert view.ctypes.data % 64 == 0
        assert not view.flags.writeable
    buffer = pa.py_buffer(reader.columns["reward"])
    assert buffer.address == reader.columns["reward"].ctypes.data
    assert len(pa.Array.from_buffers(pa.float32(), 128, [None, buffer])) == 128


def test_paths_may_be_strings(rows, ring_path):
    writer, reader = create(rows, str(ring_path)), RingReader(str(ring_path))
    assert writer.path == reader.path == ring_path
    reader.close()
    writer.close()
    RingWriter.open(str(ring_path), "run").close()


def test_existing_ring_is_not_overwritten(rows, ring_path):
    create(rows, ring_path).close()
    with pytest.raises(ReplayError, match="exists already"):
        create(rows, ring_path)


def test_missing_and_foreign_files_are_told_apart_from_rings(rows, ring_path):
    with pytest.raises(ReplayError, match=r"cannot be read: No such file.*has the run's shard been started\?"):
        RingReader(ring_path)
    ring_path.write_bytes(b"PAR1" * 500)
    with pytest.raises(ReplayError, match="is not a replay ring: it begins with b'PAR1PAR1'"):
        RingReader(ring_path)
    with pytest.raises(ReplayError, match="is not a replay ring"):
        RingWriter.open(ring_path, "run")
    ring_path.write_bytes(b"")
    with pytest.raises(ReplayError, match="is not a replay ring"):
        RingReader(ring_path)


def test_any_damaged_byte_of_the_preamble_but_the_owner_is_found(rows, ring_path):
    create(rows, ring_path).close()
    good = ring_path.read_bytes()
    end = len(read_header(ring_path).layout.preamble(0, 0, bytes(16)))
    for position in range(0, end, 7):
        if 64 <= position < 72 or 116 <= position < 120:  # the owner's pid, and padding
            continue
        damaged = bytearray(good)
        damaged[position] ^= 0x40
        ring_path.write_bytes(damaged)
        with pytest.raises(ReplayError):
            RingReader(ring_path)
    ring_path.write_bytes(good)
    RingReader(ring_path)


def started_anew(ring_path):
    """Writes the preamble that the ring would have, had it been made before the machine's last start."""
    header = read_header(ring_path)
    before = bytes(byte ^ 0xFF for byte in header.boot)
    with ring_path.open("r+b") as file:
        file.write(header.layout.preamble(header.owner_pid, header.created_unix_ns, before))


def test_a_ring_on_a_disk_is_not_gone_on_with_after_the_machine_was_started_anew(rows, tmp_path):
    path = tmp_path / "disk.ring"
    create(rows, path).close()
    assert not in_memory(path)
    RingWriter.open(path, "run").close()
    started_anew(path)
    with pytest.raises(ReplayError, match="the machine was started anew since this ring was made"):
        RingWriter.open(path, "run")
    RingReader(path).close()  # to look at what there is


def test_a_ring_in_memory_cannot_have_outlived_the_machine(rows):
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="onibi-test-") as folder:
        path = Path(folder) / "memory.ring"
        create(rows, path).close()
        started_anew(path)
        RingWriter.open(path, "run").close()


def test_a_drawn_word_whose_maker_was_killed_before_it_had_a_size_is_finished(ring_path):
    drawn_path(ring_path).touch()
    DrawnWord.create(drawn_path(ring_path))
    word = DrawnWord(drawn_path(ring_path), writable=True)
    word.add(7)
    DrawnWord.create(drawn_path(ring_path))
    assert word.value == 7


def test_cut_off_file_is_refused_before_it_is_mapped(rows, ring_path):
    create(rows, ring_path).close()
    os.truncate(ring_path, ring_path.stat().st_size - 4096)
    with pytest.raises(ReplayError, match="is cut off"):
        RingReader(ring_path)


@pytest.mark.parametrize(
    ("word", "value"), [("committed", 5), ("writing", 7), ("cursor", -1), ("oldest", 9), ("open", 3)]
)
def test_words_that_contradict_each_other_are_refused_by_the_writer(rows, ring_path, word, value):
    writer = create(rows, ring_path)
    writer.register(0)
    writer._ring.words[word][...] = value
    writer.close()
    with pytest.raises(ReplayError, match="header is damaged"):
        RingWriter.open(ring_path, "run")


def test_closed_writer_says_so(rows, ring_path):
    writer = create(rows, ring_path)
    writer.close()
    with pytest.raises(ReplayError, match="this writer is closed"):
        writer.register(0)


def test_orphans_are_rings_without_a_living_writer_and_go_with_their_drawn_word(rows, ring_path):
    folder = ring_path.parent
    living = create(rows, folder / "living.ring")
    create(rows, ring_path, run_id="gone").close()
    drawn_path(ring_path).write_bytes(b"")
    (folder / "broken.ring.new").write_bytes(b"cut")
    found = orphans(folder)
    assert [(orphan.path.name, orphan.run_id) for orphan in found] == [("broken.ring.new", None), ("test.ring", "gone")]
    assert found[1].owner_pid == os.getpid()
    assert found[1].bytes == ring_path.stat().st_size
    assert [remove_orphan(orphan) for orphan in found] == [True, True]
    assert [path.name for path in folder.iterdir()] == ["living.ring"]
    living.close()
    (stale,) = orphans(folder)
    taken = RingWriter.open(folder / "living.ring", "run")
    assert not remove_orphan(stale)  # somebody took it up meanwhile
    taken.close()
    assert np.all(RingReader(folder / "living.ring").snapshot().cursor == 0)


def test_of_two_that_make_a_ring_at_once_the_later_one_leaves_the_others_alone(rows, ring_path, monkeypatch):
    exists, looks = Path.exists, []

    def exists_soon(path, **kwargs):
        there = exists(path, **kwargs)
        looks.append(path)
        if len(looks) == 1:  # another process makes the ring right after the first look at it
            create(rows, ring_path, run_id="first").close()
        return there

    monkeypatch.setattr(Path, "exists", exists_soon)
    with pytest.raises(ReplayError, match=r"test\.ring exists already"):
        create(rows, ring_path, run_id="second")
    assert looks[0] == ring_path
    assert read_header(ring_path).layout.run_id == "first"
    assert list(ring_path.parent.iterdir()) == [ring_path]


def test_a_ring_is_made_although_a_search_for_orphans_holds_its_lock_for_a_moment(rows, ring_path):
    unfinished = ring_path.with_name("test.ring.new")
    searching, held = threading.Event(), threading.Event()

    def search():
        while not unfinished.exists():
            pass
        descriptor = os.open(unfinished, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        held.set()
        searching.wait(10)
        os.close(descriptor)

    made = []
    unlocked = os.open

    def opened(path, *arguments):
        descriptor = unlocked(path, *arguments)
        if str(path) == str(unfinished) and threading.current_thread() is maker:
            held.wait(10)
        return descriptor

    seeker = threading.Thread(target=search)
    maker = threading.Thread(target=lambda: made.append(create(rows, ring_path)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ring_file.os, "open", opened)
        seeker.start(), maker.start()
        assert held.wait(10)
        maker.join(0.2)  # it waits, or it has given up
        searching.set()
        seeker.join(10), maker.join(10)
    assert [writer.path for writer in made] == [ring_path]
    made[0].close()
