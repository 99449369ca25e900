"""Checkpoints are whole or absent, whatever happens while they are written or lie on disk."""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from onibi.platform.checkpoint import (
    CheckpointParts,
    best_step,
    list_checkpoints,
    load_checkpoint,
    mark_best,
    save_checkpoint,
)
from onibi.platform.errors import CheckpointError


def parts_of(step: int) -> CheckpointParts:
    """Distinct contents for each step, every kind of part among them."""
    return CheckpointParts(
        tensors={"learner": {"weight": np.full((3, 4), step, np.float32)}},
        tables={"labels": pa.table({"key": [f"key {step}"]})},
        state={"updates": step},
    )


def step_in(folder: Path, which: str | int = "last") -> int:
    """The step whose contents a load returns; all parts must agree."""
    checkpoint = load_checkpoint(folder, which)
    assert checkpoint.tensors["learner"]["weight"].tolist() == np.full((3, 4), checkpoint.step).tolist()
    assert checkpoint.tables["labels"]["key"].to_pylist() == [f"key {checkpoint.step}"]
    assert checkpoint.state == {"updates": checkpoint.step}
    return checkpoint.step


def steps_in(folder: Path) -> list[int]:
    return [entry.step for entry in list_checkpoints(folder)]


def test_every_kind_of_tensor_table_and_state_comes_back_as_it_was(tmp_path):
    labels = pa.table({"key": ["a", None], "score": pa.array([0.5, 1.0], pa.float32())})
    tensors = {
        "transposed": torch.arange(6.0).reshape(2, 3).T,  # strides that plain bytes would lose
        "scalar": torch.tensor(7, dtype=torch.int64),
        "requires_grad": torch.ones(2, requires_grad=True),
        "empty": np.zeros((0, 3), np.float16),
        "big_endian": np.array([1, 2], dtype=">i4"),
        "flags": np.array([True, False]),
    }
    save_checkpoint(
        tmp_path,
        3,
        CheckpointParts(
            tensors={"learner": tensors, "nothing": {}},
            tables={"labels": labels},
            state={
                "count": np.int64(4),
                "share": np.float32(0.5),
                "best": float("-inf"),
                "list": (1, None, "x"),
                "on": True,
            },
        ),
        keep_last=1,
    )
    loaded = load_checkpoint(tmp_path)
    found = loaded.tensors["learner"]
    assert found["transposed"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert found["scalar"].shape == () and found["scalar"] == 7 and found["scalar"].dtype == np.int64
    assert found["requires_grad"].tolist() == [1, 1]
    assert found["empty"].shape == (0, 3) and found["empty"].dtype == np.float16
    assert found["big_endian"].tolist() == [1, 2]
    assert found["flags"].tolist() == [True, False] and found["flags"].dtype == np.bool_
    assert all(array.flags.writeable for array in found.values())
    assert loaded.tensors["nothing"] == {}
    assert loaded.tables["labels"].equals(labels)
    assert loaded.state == {"count": 4, "share": 0.5, "best": float("-inf"), "list": [1, None, "x"], "on": True}


def test_a_random_generator_goes_on_from_its_saved_state_as_if_uninterrupted(tmp_path):
    rng = np.random.default_rng(5)
    rng.random(7)
    save_checkpoint(tmp_path, 1, CheckpointParts(state={"rng": rng.bit_generator.state}), keep_last=1)
    expected = rng.random(9).tolist()
    restored = np.random.default_rng(0)
    restored.bit_generator.state = load_checkpoint(tmp_path).state["rng"]
    assert restored.random(9).tolist() == expected


@pytest.mark.parametrize(
    ("parts", "place"),
    [
        (CheckpointParts(tensors={"learner": {"w": torch.ones(2, dtype=torch.bfloat16)}}), "learner.w"),
        (CheckpointParts(tensors={"learner": {"w": np.array(["text"])}}), "learner.w"),
        (CheckpointParts(tensors={"learner": {"w": np.array([object()])}}), "learner.w"),
        (CheckpointParts(tensors={"../up": {}}), "../up"),
        (CheckpointParts(state={"a": {"b": [0, {1}]}}), "state.a.b[1]"),
        (CheckpointParts(state={"a": {1: "x"}}), "state.a"),
        (CheckpointParts(state={"a": np.ones(2)}), "state.a"),
    ],
)
def test_a_part_that_cannot_be_stored_is_named_and_nothing_is_written(tmp_path, parts, place):
    save_checkpoint(tmp_path, 1, parts_of(1), keep_last=1)
    with pytest.raises(CheckpointError) as caught:
        save_checkpoint(tmp_path, 2, parts, keep_last=1)
    assert place in str(caught.value)
    assert "llowed" in str(caught.value) or "Use " in str(caught.value)
    assert step_in(tmp_path) == 1
    assert [path.name for path in tmp_path.iterdir()] == [list_checkpoints(tmp_path)[0].path.name]


@pytest.mark.parametrize(
    ("saves", "keep_last", "keep", "best", "kept"),
    [
        ([1, 2, 3, 4], 2, (), None, [3, 4]),
        ([1, 2, 3, 4], 1, (), None, [4]),
        ([1, 2, 3, 4], 1, (2,), None, [2, 4]),
        ([1, 2, 3, 4], 1, (), 1, [1, 4]),
        ([5, 9, 6], 2, (), None, [9, 6]),  # resumed from 5: 6 is younger than 9
        ([5, 9, 6], 1, (), None, [6]),
        ([5, 6, 5], 2, (), None, [6, 5]),  # 5 saved again
    ],
)
def test_the_last_saved_the_best_and_the_named_ones_are_kept(tmp_path, saves, keep_last, keep, best, kept):
    for step in saves:
        save_checkpoint(tmp_path, step, parts_of(step), keep_last, keep)
        if step == best:
            mark_best(tmp_path, step)
    assert steps_in(tmp_path) == kept
    assert step_in(tmp_path) == saves[-1]


def test_a_step_saved_again_holds_the_new_contents(tmp_path):
    save_checkpoint(tmp_path, 5, CheckpointParts(state={"take": 1}), keep_last=3)
    save_checkpoint(tmp_path, 5, CheckpointParts(state={"take": 2}), keep_last=3)
    assert load_checkpoint(tmp_path, 5).state == {"take": 2}
    assert steps_in(tmp_path) == [5]


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flip_one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


FILES = ("manifest.json", "state.json", "tensors-learner.safetensors", "tables-labels.arrow")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", [cut_short, flip_one_bit, Path.unlink])
def test_a_damaged_checkpoint_is_skipped_with_a_warning_and_the_one_before_is_used(tmp_path, caplog, file, damage):
    save_checkpoint(tmp_path, 1, parts_of(1), keep_last=3)
    damaged = save_checkpoint(tmp_path, 2, parts_of(2), keep_last=3)
    damage(damaged / file)
    with caplog.at_level(logging.WARNING):
        assert step_in(tmp_path) == 1
    assert str(damaged) in caplog.text and file in caplog.text
    with pytest.raises(CheckpointError, match=r"by step: 2, 1"):
        load_checkpoint(tmp_path, 2)  # asked for by its step: no other will do


def test_a_manifest_edited_by_hand_counts_as_damaged(tmp_path):
    path = save_checkpoint(tmp_path, 2, parts_of(2), keep_last=3) / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "step": 3}))
    with pytest.raises(CheckpointError, match="does not match its own sum"):
        load_checkpoint(tmp_path)


def test_damaged_checkpoints_never_push_a_whole_one_out(tmp_path):
    save_checkpoint(tmp_path, 1, parts_of(1), keep_last=2)
    for step in (2, 3):
        cut_short(save_checkpoint(tmp_path, step, parts_of(step), keep_last=3) / "manifest.json")
    save_checkpoint(tmp_path, 4, parts_of(4), keep_last=2)
    assert steps_in(tmp_path) == [1, 4]


def test_best_is_the_marked_one_and_without_a_mark_or_when_damaged_the_last(tmp_path, caplog):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, parts_of(step), keep_last=3)
    assert step_in(tmp_path, "best") == 3
    mark_best(tmp_path, 2)
    assert step_in(tmp_path, "best") == 2
    flip_one_bit(list_checkpoints(tmp_path)[1].path / "state.json")
    with caplog.at_level(logging.WARNING):
        assert step_in(tmp_path, "best") == 3
    assert "damaged" in caplog.text
    (tmp_path / "best.json").write_text("{")
    assert best_step(tmp_path) is None


def test_a_checkpoint_that_is_not_there_cannot_be_marked_best(tmp_path):
    save_checkpoint(tmp_path, 1, parts_of(1), keep_last=1)
    with pytest.raises(CheckpointError, match="no checkpoint of step 2"):
        mark_best(tmp_path, 2)


def test_where_older_ones_cannot_be_removed_the_new_one_still_counts_as_written(tmp_path, caplog):
    with tmpfs(tmp_path / "000000000001-000001", size_bytes=1 << 20):  # what is mounted cannot be renamed
        assert save_checkpoint(tmp_path, 2, parts_of(2), keep_last=1).is_dir()
        assert step_in(tmp_path) == 2
    assert "older checkpoints could not be removed" in caplog.text


@pytest.mark.parametrize("same_step", [False, True])
def test_a_reader_finds_a_whole_one_while_its_run_saves_and_deletes(tmp_path, caplog, same_step):
    save_checkpoint(tmp_path, 1, parts_of(1), keep_last=1)
    ended = threading.Event()

    def save():
        for count in range(2, 60):
            step = 1 if same_step else count
            save_checkpoint(tmp_path, step, parts_of(step), keep_last=1)
        ended.set()

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(save)
        found = []
        while not ended.is_set() and not writer.done():
            found.append(step_in(tmp_path))
        writer.result()
    assert found == sorted(found)
    assert found[-1] == 1 if same_step else found[-1] > 50
    assert caplog.messages == []  # what was deleted is not called damaged


def test_a_link_to_nowhere_among_them_is_one_clear_error(tmp_path):
    (tmp_path / "000000000001-000001").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        load_checkpoint(tmp_path)


def test_an_empty_folder_says_that_no_checkpoint_is_there(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        load_checkpoint(tmp_path / "absent")


def test_killed_at_every_touch_of_the_disk_no_checkpoint_is_half_and_none_that_was_kept_is_lost(tmp_path):
    # One process forks a child for each cut; the child dies by SIGKILL at its n-th open, rename, mkdir or removal.
    script = textwrap.dedent(
        """
        import os, shutil, signal, sys
        from pathlib import Path
        import numpy as np
        from onibi.platform.checkpoint import CheckpointParts, list_checkpoints, load_checkpoint, save_checkpoint

        root = Path(sys.argv[1])
        EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"}

        def parts(step):
            return CheckpointParts(tensors={"learner": {"w": np.full(9, step)}}, state={"step": step})

        def steps(folder):
            for entry in list_checkpoints(folder):
                assert load_checkpoint(folder, entry.step).state == {"step": entry.step}, entry  # raises where damaged
            return [entry.step for entry in list_checkpoints(folder)]

        before = after = 0
        for cut in range(1, 1000):
            folder = root / str(cut)
            for step in (1, 2):
                save_checkpoint(folder, step, parts(step), keep_last=2)
            child = os.fork()
            if child == 0:
                seen = 0
                def kill_at_cut(event, arguments):
                    global seen
                    if event in EVENTS:
                        seen += 1
                        if seen == cut:
                            os.kill(os.getpid(), signal.SIGKILL)
                sys.addaudithook(kill_at_cut)
                save_checkpoint(folder, 3, parts(3), keep_last=2)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            found = steps(folder)
            assert found in ([1, 2], [1, 2, 3], [2, 3]), (cut, found)
            before += 3 not in found
            after += 3 in found
            save_checkpoint(folder, 4, parts(4), keep_last=2)
            assert steps(folder)[-1] == 4, (cut, steps(folder))
            assert not list(folder.glob(".*")), list(folder.glob(".*"))
            shutil.rmtree(folder)
            if status == 0:
                break
        print(cut, before, after)
        """
    )
    result = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    cuts, before, after = map(int, result.stdout.split())
    assert cuts > 15 and before > 5 and after > 3, result.stdout  # cuts fell on both sides of the rename


@contextmanager
def tmpfs(path: Path, size_bytes: int) -> Iterator[None]:
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "onibi-test", str(path)]
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small file system can only be mounted by root")
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def refuses_large_and_keeps_small(folder: Path, reason: str) -> None:
    save_checkpoint(folder, 1, parts_of(1), keep_last=5)
    large = CheckpointParts(
        tensors={
            "a": {"small": np.ones(10)},
            "b": {"large": np.ones(1 << 18)},
        }  # 2 MiB, the second file of the checkpoint
    )
    with pytest.raises(CheckpointError, match=reason) as caught:
        save_checkpoint(folder, 2, large, keep_last=5)
    assert "2.0 MiB needed" in str(caught.value) and "Free some space" in str(caught.value)
    assert [path.name for path in folder.iterdir()] == ["000000000001-000001"]  # nothing half
    assert step_in(folder) == 1


def test_a_full_disk_is_one_clear_error_and_the_earlier_checkpoints_stay(tmp_path):
    with tmpfs(tmp_path / "small", size_bytes=1 << 20):
        refuses_large_and_keeps_small(tmp_path / "small" / "checkpoints", "No space left on device")
        save_checkpoint(tmp_path / "small" / "checkpoints", 3, parts_of(3), keep_last=5)
        assert step_in(tmp_path / "small" / "checkpoints") == 3


def test_a_write_that_the_system_refuses_is_one_clear_error_and_the_earlier_checkpoints_stay(tmp_path):
    with file_size_limit(1 << 20):
        refuses_large_and_keeps_small(tmp_path / "checkpoints", "File too large")
