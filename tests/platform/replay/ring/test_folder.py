"""Rings on a disk (spill): mapped without being read whole, with a warning of what that costs."""

from __future__ import annotations

import logging
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from onibi.platform.errors import ReplayError
from onibi.platform.replay.ring.folder import in_memory
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.ring.writer import RingWriter
from onibi.platform.replay.samplers.uniform_sampler import UniformSampler
from onibi.platform.spec import ArraySpec, ReplaySpec

SPEC = ReplaySpec(observation=(ArraySpec(name="observation", dtype="uint8", shape=(4096,)),), actions=2)
ROWS = 32


@pytest.fixture
def disk(tmp_path):
    """A folder that is no memory file system; pytest's own unless /tmp lies in memory."""
    if in_memory(tmp_path):
        pytest.skip("pytest's temporary folder lies in memory: choose another with --basetemp")
    return tmp_path


def create(path, slots):
    return RingWriter.create(path, SPEC, groups=1, lanes_per_group=1, slots=slots, window_rows=2, run_id="run")


def insert(writer, incarnation, sequence):
    columns = {column.name: np.zeros((1, ROWS + 1, *column.shape), column.dtype) for column in SPEC.columns}
    number = sequence * ROWS + np.arange(ROWS + 1)
    columns["observation"][0] = (number % 251)[:, None]
    columns["step"][0] = number
    columns["action"][0, :ROWS] = number[:ROWS]
    writer.insert(
        0,
        incarnation=incarnation,
        sequence=sequence,
        rows_per_lane=np.array([ROWS], np.int32),
        columns=columns,
    )


def mapping_lines(path):
    """What the kernel says of this process's mappings of a file: {figure: value}."""
    blocks, inside = [], False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0] and not line.split()[0].endswith(":"):
            inside = line.endswith(str(path))
            if inside:
                blocks.append({})
        elif inside:
            name, _, value = line.partition(":")
            blocks[-1][name] = value.strip()
    return blocks


def test_memory_and_disk_are_told_apart(disk):
    assert in_memory(Path("/dev/shm"))
    assert not in_memory(disk)


def test_ring_on_a_disk_is_written_and_drawn_from_as_one_in_memory(disk):
    path = disk / "spill.ring"
    writer = create(path, slots=512)
    incarnation = writer.register(0)
    for sequence in range(40):  # more than two laps
        insert(writer, incarnation, sequence)
    sampler = UniformSampler(RingReader(path), n_steps=2, batch_size=64, rng=np.random.default_rng(0))
    for _ in range(20):
        windows = sampler.draw()
        assert (windows.action == windows.generation).all()
        expected = (windows.generation % 251).astype(np.uint8)
        assert (windows.observation["observation"] == expected[:, None]).all()
    writer.close()
    again = RingWriter.open(path, "run")
    insert(again, again.register(0), 0)
    again.close()


def test_ring_on_a_disk_is_not_read_whole_when_it_is_mapped_and_read_page_by_page(disk):
    path = disk / "spill.ring"
    create(path, slots=4_000).close()
    reader = RingReader(path)
    (mapping,) = mapping_lines(path)
    resident = int(mapping["Rss"].split()[0]) * 1024
    assert path.stat().st_size > 4_000 * 4096
    assert resident < 2**20
    assert "rr" in mapping["VmFlags"].split()  # random read advice
    assert len(reader.columns["reward"]) == 4_000


def test_ring_in_memory_is_there_when_it_is_mapped(ring_path):
    create(ring_path, slots=4_000).close()
    reader = RingReader(ring_path)
    (mapping,) = mapping_lines(ring_path)
    assert int(mapping["Rss"].split()[0]) * 1024 >= ring_path.stat().st_size
    assert "rr" not in mapping["VmFlags"].split()
    assert reader.slots == 4_000


def test_costs_of_a_ring_on_a_disk_are_told_and_those_in_memory_are_silent(disk, ring_path, caplog):
    caplog.set_level(logging.WARNING)
    create(ring_path, slots=64).close()
    assert caplog.text == ""
    create(disk / "spill.ring", slots=64).close()
    assert "spill.ring lies on a disk" in caplog.text
    assert "read from the disk at each draw" in caplog.text


def test_ring_larger_than_the_disk_is_refused_with_the_sums_and_leaves_nothing(disk):
    with pytest.raises(ReplayError, match=r"too little disk space.*1 lanes x 1000000000000 slots.*on a larger disk"):
        create(disk / "spill.ring", slots=10**12)
    assert list(disk.glob("*.ring*")) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_full_disk_during_reservation_is_an_error_that_leaves_nothing(disk, monkeypatch):
    from onibi.platform.replay.ring import file as ring_file

    image, folder = disk / "image", disk / "small"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(4 * 2**20)
    made = subprocess.run(["mkfs.ext4", "-q", image], check=False, capture_output=True).returncode
    if made or subprocess.run(["mount", "-o", "loop", image, folder], check=False, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        monkeypatch.setattr(ring_file, "free_bytes", lambda folder: 2**40)  # what it was a moment ago
        with pytest.raises(ReplayError, match=r"too little disk space .*\(No space left on device\)"):
            create(folder / "spill.ring", slots=4_000)
        assert list(folder.glob("*.ring*")) == []
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
