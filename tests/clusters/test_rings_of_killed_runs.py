"""Rings of killed runs: left for a resume while there is room, removed oldest first where there is none."""

from __future__ import annotations

import os
import subprocess

import pytest

from onibi.clusters.run_state import make_room, state_of
from onibi.platform.checkpoint import load_checkpoint
from onibi.platform.replay.ring.writer import RingWriter
from onibi.platform.spec import ArraySpec, ReplaySpec

SPEC = ReplaySpec(observation=(ArraySpec(name="observation", dtype="uint8", shape=(1024,)),), actions=2)
MIB = 2**20


def killed(folder, name):
    """A ring of about a MiB whose writer is gone."""
    path = folder / f"onibi-{name}.ring"
    shape = {"groups": 1, "lanes_per_group": 1, "slots": 1000, "window_rows": 1}
    RingWriter.create(path, SPEC, **shape, run_id=name).close()
    return path


@pytest.fixture
def small(tmp_path):
    """A memory file system of four MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], check=False).returncode
    ):
        pytest.skip("only root may mount a small memory file system")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_they_are_left_where_there_is_room_and_told_of(small, caplog):
    first, second = killed(small, "first"), killed(small, "second")
    assert make_room(small, MIB) == []
    assert first.exists() and second.exists()
    assert f"2 rings of killed runs in {small}, 2 MiB in all" in caplog.text


def test_the_oldest_make_room_and_no_more_of_them_than_are_needed(small, caplog):
    first, second, third = killed(small, "c"), killed(small, "b"), killed(small, "a")
    assert make_room(small, 3 * MIB // 2) == [first]
    assert second.exists() and third.exists()
    assert str(first) in caplog.text


def test_living_rings_and_files_of_others_are_never_removed(small):
    living = RingWriter.create(
        small / "onibi-living.ring", SPEC, groups=1, lanes_per_group=1, slots=1000, window_rows=1, run_id="living"
    )
    (small / "theirs.ring").write_bytes(b"theirs")
    assert make_room(small, 100 * MIB) == []
    assert sorted(path.name for path in small.iterdir()) == ["onibi-living.ring", "theirs.ring"]
    living.close()


def test_what_is_no_whole_ring_is_removed_in_any_case(small):
    broken = small / "onibi-cut.ring.new"
    broken.write_bytes(b"cut")
    whole = killed(small, "whole")
    assert make_room(small, 1) == [broken]
    assert whole.exists()


def test_a_killed_run_finds_its_ring_again_after_another_run(workshop):
    process = workshop.start("first", checkpoint__period_seconds=0.3, budget__max_env_steps=10**6)
    try:
        workshop.wait_for(lambda: len(workshop.checkpoints("first")) >= 2, 100, process)
    finally:
        process.kill()
        process.wait()
    (ring,) = workshop.rings.glob("*.ring")
    assert workshop.train("second").status == "finished"
    assert list(workshop.rings.glob("*.ring")) == [ring]
    steps = state_of(load_checkpoint(workshop.runs / "first" / "checkpoints")).env_steps
    result = workshop.resume(
        "first", overrides=[f"budget.max_env_steps={steps + 1000}", "checkpoint.period_seconds=1000"]
    )
    assert result.status == "finished"
    assert list(workshop.rings.glob("*.ring")) == []
