"""Files mapped in step with huge pages, and joined into them where the system can."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from onibi.platform.replay.ring import file as ring_file
from onibi.platform.replay.ring import huge_pages
from onibi.platform.replay.ring.huge_pages import huge_page_bytes, join_pages, map_in_step
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.ring.writer import RingWriter

READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
HUGE = huge_page_bytes()
needs_huge_pages = pytest.mark.skipif(HUGE > 2**30, reason="this system has no huge pages")


@pytest.fixture
def descriptor(ring_path):
    found = os.open(ring_path.with_name("memory"), os.O_RDWR | os.O_CREAT)
    yield found
    os.close(found)


def mapping_of(path: Path) -> dict[str, str]:
    """What the kernel says of this process's only mapping of a file."""
    blocks, found = Path("/proc/self/smaps").read_text().splitlines(), {}
    for line in blocks:
        name, _, value = line.partition(":")
        if "-" in line.split(" ")[0]:
            wanted = line.endswith(str(path))
            if wanted:
                assert not found, f"{path} is mapped twice"
                found["begin"] = line.split("-")[0]
        elif wanted:
            found[name] = value.strip()
    return found


@needs_huge_pages
@pytest.mark.parametrize("size", [HUGE, HUGE + 4096, 3 * HUGE - 4096])
def test_file_begins_on_a_border_and_every_byte_of_it_is_there(descriptor, size):
    content = np.random.default_rng(0).integers(0, 255, size, np.uint8)
    os.write(descriptor, content.tobytes())
    memory, begin = map_in_step(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ)
    found = np.frombuffer(memory, np.uint8, size, begin)
    assert found.ctypes.data % HUGE == 0
    np.testing.assert_array_equal(found, content)
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1


@needs_huge_pages
def test_stores_reach_the_file_and_what_is_around_it_does_not(descriptor):
    os.ftruncate(descriptor, HUGE + 4096)
    memory, begin = map_in_step(descriptor, HUGE + 4096, mmap.MAP_SHARED, READ_WRITE)
    memory[0 : len(memory)] = b"\1" * len(memory)
    memory[begin : begin + 3] = b"abc"
    assert os.pread(descriptor, 4, 0) == b"abc\1"
    assert os.fstat(descriptor).st_size == HUGE + 4096


@needs_huge_pages
def test_mapping_goes_with_its_last_view(descriptor, ring_path):
    os.ftruncate(descriptor, 2 * HUGE)
    memory, begin = map_in_step(descriptor, 2 * HUGE, mmap.MAP_SHARED, READ_WRITE)
    view = np.frombuffer(memory, np.uint8, 10, begin)
    del memory
    assert mapping_of(ring_path.with_name("memory"))
    del view
    assert not mapping_of(ring_path.with_name("memory"))


def test_file_smaller_than_a_huge_page_is_mapped_as_ever(descriptor, monkeypatch):
    monkeypatch.setattr(huge_pages, "huge_page_bytes", lambda: 2**62)  # so is any file where there are none
    os.write(descriptor, b"abc" + bytes(4093))
    join_pages(descriptor, 4096)
    memory, begin = map_in_step(descriptor, 4096, mmap.MAP_SHARED, mmap.PROT_READ)
    assert (memory[:3], begin, len(memory)) == (b"abc", 0, 4096)


def test_descriptor_that_cannot_be_mapped_is_an_error(descriptor):
    with pytest.raises(OSError, match="Bad file descriptor"):
        map_in_step(10**6, 3 * HUGE if HUGE < 2**30 else 4096, mmap.MAP_SHARED, READ_WRITE)


def kilobytes_in_huge_pages(path: Path) -> int:
    return int(mapping_of(path)["ShmemPmdMapped"].removesuffix(" kB"))


@needs_huge_pages
def test_writer_and_reader_see_the_ring_in_huge_pages(rows, ring_path):
    for join in (False, True):
        with ring_path.with_name(f"probe-{join}").open("wb+") as probe:
            if join:
                join_pages(probe.fileno(), HUGE)
            os.posix_fallocate(probe.fileno(), 0, HUGE)
            memory = map_in_step(probe.fileno(), HUGE, mmap.MAP_SHARED | mmap.MAP_POPULATE, READ_WRITE)[0]
            if bool(kilobytes_in_huge_pages(Path(probe.name))) != join:
                pytest.skip("shared memory has huge pages here in any case, or never (Linux before 6.1)")
            del memory
    slots = 3 * HUGE // rows.SPEC.row_bytes
    writer = RingWriter.create(
        ring_path, rows.SPEC, groups=1, lanes_per_group=1, slots=slots, window_rows=3, run_id="run"
    )
    size = ring_path.stat().st_size
    written = kilobytes_in_huge_pages(ring_path)
    assert 0 < written <= size // 1024
    assert ring_path.stat().st_blocks * 512 >= size, "the rest is reserved, too"
    writer.close()
    del writer
    reader = RingReader(ring_path)
    assert kilobytes_in_huge_pages(ring_path) == written
    reader.close()


@needs_huge_pages
def test_ring_is_mapped_as_ever_where_data_is_limited(ring_path):
    """A process that may have little data of its own, as some batch systems limit it."""
    code = """
import resource, sys
from pathlib import Path
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.ring.writer import RingWriter
from onibi.platform.spec import ArraySpec, ReplaySpec

spec = ReplaySpec(observation=(ArraySpec(name="observation", dtype="uint8", shape=(4096,)),), actions=2)
used = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + 2**25, resource.RLIM_INFINITY))
path = Path(sys.argv[1])
writer = RingWriter.create(path, spec, groups=1, lanes_per_group=1, slots=2**14, window_rows=3, run_id="run")
writer.register(0)
print(RingReader(path).snapshot().readable_rows)
"""
    found = subprocess.run([sys.executable, "-c", code, ring_path], capture_output=True, text=True, check=False)
    assert (found.stdout, found.returncode) == ("0\n", 0), found.stderr


def test_ring_that_cannot_be_mapped_leaves_nothing(rows, ring_path, monkeypatch):
    def refused(*_):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(ring_file, "map_in_step", refused)
    with pytest.raises(OSError, match="Cannot allocate"):
        RingWriter.create(ring_path, rows.SPEC, groups=1, lanes_per_group=1, slots=99, window_rows=3, run_id="run")
    assert list(ring_path.parent.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small memory file system")
@needs_huge_pages
def test_memory_too_full_for_the_last_huge_page_is_silent_and_takes_nothing_back(ring_path):
    folder = ring_path.parent / "small"
    folder.mkdir()
    size = 2 * HUGE
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size - 4096}", "tmpfs", folder], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with (folder / "memory").open("wb+") as file:
            join_pages(file.fileno(), size)
            assert os.fstat(file.fileno()).st_size == size
            assert os.fstat(file.fileno()).st_blocks * 512 < size
            with pytest.raises(OSError, match="No space"):
                os.posix_fallocate(file.fileno(), 0, size)
    finally:
        subprocess.run(["umount", folder], check=True)
