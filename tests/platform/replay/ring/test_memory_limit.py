"""What a container's memory limit leaves for a ring, in both versions of control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from onibi.platform.errors import ReplayError
from onibi.platform.replay.ring import folder as ring_folder
from onibi.platform.replay.ring import memory_limit
from onibi.platform.replay.ring.writer import RingWriter
from onibi.platform.spec import ArraySpec, ReplaySpec

MIB = 2**20
SPEC = ReplaySpec(observation=(ArraySpec(name="observation", dtype="uint8", shape=(4096,)),), actions=2)
FILES = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}
UNLIMITED = {1: 9223372036854771712, 2: "max"}


@pytest.fixture(params=[1, 2])
def system(request, tmp_path, monkeypatch):
    """``group(path, limit, used, cache)`` makes a group; ``own(path)`` puts this process into one."""
    version = request.param
    root, own = tmp_path / "cgroup", tmp_path / "own"
    monkeypatch.setattr(memory_limit, "GROUPS", root)
    monkeypatch.setattr(memory_limit, "OWN_GROUPS", own)

    class System:
        unlimited = UNLIMITED[version]

        def group(self, path, limit, used, cache=0):
            folder = (root / "memory" if version == 1 else root) / path
            folder.mkdir(parents=True, exist_ok=True)
            for name, value in zip(FILES[version], (limit, used), strict=True):
                (folder / name).write_text(f"{value}\n")
            total = "total_" if version == 1 else ""
            # Shared memory is not among the file pages that can be dropped.
            (folder / "memory.stat").write_text(f"shmem {used}\n{total}inactive_file {cache}\n")

        def own(self, path):
            own.write_text(f"9:name=systemd:/x\n4:cpu,memory:{path}\n" if version == 1 else f"0::{path}\n")

    return System()


def test_what_is_left_is_the_limit_without_what_is_used_but_for_droppable_cache(system):
    system.own("/")
    system.group(".", 100 * MIB, 70 * MIB, cache=20 * MIB)
    assert memory_limit.headroom_bytes() == 50 * MIB


def test_the_tightest_of_the_groups_above_counts(system):
    system.own("/pod/container")
    system.group("pod", 100 * MIB, 70 * MIB)
    system.group("pod/container", 64 * MIB, 10 * MIB)
    assert memory_limit.headroom_bytes() == 30 * MIB


def test_in_a_container_that_does_not_know_its_hosts_path_the_root_is_its_own_group(system):
    system.own("/kubepods/burstable/pod123")
    system.group(".", 10 * MIB, 25 * MIB)
    assert memory_limit.headroom_bytes() == 0


def test_without_a_limit_none_is_told(system):
    assert memory_limit.headroom_bytes() is None
    system.own("/")
    assert memory_limit.headroom_bytes() is None
    system.group(".", system.unlimited, 70 * MIB)
    left = memory_limit.headroom_bytes()
    assert left is None or left > 2**60  # version 1 has a very large number for it


def test_a_ring_in_memory_that_the_limit_does_not_leave_room_for_is_refused_with_the_sums(ring_path, monkeypatch):
    monkeypatch.setattr(ring_folder, "headroom_bytes", lambda: MIB)
    assert ring_folder.free_bytes(Path("/dev/shm")) == ring_folder.available_memory_bytes() == MIB
    with pytest.raises(ReplayError, match=r"too little shared memory.* free in .* are 1\.0 MiB.*--memory"):
        RingWriter.create(ring_path, SPEC, groups=1, lanes_per_group=1, slots=1_000, window_rows=2, run_id="run")
    assert list(ring_path.parent.iterdir()) == []


def test_a_ring_on_a_disk_is_not_held_to_the_memory_limit(tmp_path, monkeypatch):
    if ring_folder.in_memory(tmp_path):
        pytest.skip("pytest's temporary folder lies in memory: choose another with --basetemp")
    monkeypatch.setattr(ring_folder, "headroom_bytes", lambda: 0)
    assert ring_folder.free_bytes(tmp_path) > 0
