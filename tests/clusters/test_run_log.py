"""The replay log of whole runs: what it holds at the end, after kills, and on disks that refuse."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

import pyarrow as pa
import pytest
import yaml

from onibi.platform.history import read_history
from onibi.platform.replay.log.log_reader import ReplayLog
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.spec import ROLE_STEP


def log_of(workshop, name="run"):
    return ReplayLog(workshop.runs / name / "replay")


def rows_of(log):
    return pa.concat_tables([log.read(segment) for segment in log.segments])


def steps_of(log):
    return log.dataset().count_rows(filter=pa.compute.field("role") == ROLE_STEP)


def test_every_step_of_a_run_is_in_its_log_and_the_figures_say_so(workshop):
    result = workshop.train(budget__max_env_steps=300)
    log = log_of(workshop)
    assert log.verify() == []
    assert log.torn == ()
    assert len(log.segments) == 1, "a short run makes one small segment, at its end"
    assert steps_of(log) == result.env_steps
    episodes = log.episodes().to_pylist()
    rows = rows_of(log)
    ended = rows.filter(pa.compute.or_(rows.column("terminated"), rows.column("truncated")))
    assert {episode["episode_id"] for episode in episodes} == set(ended.column("episode_id").to_pylist())
    places = {(row["episode_id"], row["lane"]) for row in ended.select(["episode_id", "lane"]).to_pylist()}
    assert {(episode["episode_id"], episode["lane"]) for episode in episodes} == places
    row = read_history(workshop.runs / "run" / "history.jsonl")[-1]
    assert row["replay/log_rows"] >= result.env_steps
    assert (row["replay/log_dropped_rows"], row["replay/log_failed"]) == (0, 0)


def test_runs_of_one_seed_log_the_same_rows(workshop):
    tables = []
    for name in ("a", "b"):
        workshop.train(name, budget__max_env_steps=200)
        tables.append(rows_of(log_of(workshop, name)).sort_by([("lane", "ascending"), ("generation", "ascending")]))
    assert tables[0].num_rows >= 200
    assert tables[0].equals(tables[1])


def test_a_resumed_run_goes_on_in_the_same_log_behind_a_free_number(workshop):
    workshop.train(budget__max_env_steps=200)
    before = {lane: last for segment in log_of(workshop).segments for lane, (_, last) in segment.lanes.items()}
    result = workshop.resume(overrides=["budget.max_env_steps=400"])
    log = log_of(workshop)
    assert log.verify() == []
    assert steps_of(log) == result.env_steps
    for lane, (first, _) in log.segments[-1].lanes.items():
        assert first == before[lane] + 2, "the new ring's rows do not go on where the old one's ended"


def test_a_run_resumed_with_a_new_ring_goes_on_learning_from_its_log(workshop, caplog):
    first = workshop.train(budget__max_env_steps=300)
    rows = log_of(workshop).rows
    with caplog.at_level("INFO"):  # fewer steps than replay.limiter.minimum_rows: without the log's rows none is learnt
        second = workshop.resume(overrides=["budget.max_env_steps=350"])
    assert f"the replay ring is new: it begins with {rows:,} rows of the log" in caplog.text
    assert 350 <= second.env_steps < 400
    learnt = second.updates - first.updates
    ratio = 4 * (second.env_steps - first.env_steps) / 16
    assert ratio - 4 <= learnt <= ratio + 8, "samples per insert go on, and the limiter's tolerance"
    log = log_of(workshop)
    assert log.verify() == []
    assert steps_of(log) == second.env_steps


def test_a_resumed_run_that_is_killed_finds_the_log_and_the_play_in_its_ring(workshop):
    # So large that no row is overwritten before it is sealed: such rows would die with the process's buffers.
    workshop.train(budget__max_env_steps=300, replay__capacity_rows=40_000)
    process = workshop.start(
        command="resume", overrides=["budget.max_env_steps=1000000", "checkpoint.period_seconds=0.3"]
    )
    try:
        workshop.wait_for(lambda: len(workshop.checkpoints()) >= 4, 100, process)
    finally:
        process.kill()
        process.wait()
    (ring,) = workshop.rings.glob("*.ring")
    reader = RingReader(ring)
    played = reader.snapshot().inserted_rows
    reader.close()
    result = workshop.resume(overrides=[f"budget.max_env_steps={300 + played + 200}", "checkpoint.period_seconds=1000"])
    assert 0 <= result.env_steps - (300 + played + 200) < 40, "what was played is counted, the log's rows are not again"
    log = log_of(workshop)
    assert log.verify() == []
    assert steps_of(log) == result.env_steps


def test_a_learner_that_draws_rows_once_learns_from_play_alone(workshop, caplog):
    appo = {"kind": "appo", "batch_lanes": 4, "rows": 8}
    play = {"replay__limiter": {}, "learner": appo}
    workshop.train(budget__max_env_steps=200, **play)
    with caplog.at_level("INFO"):
        workshop.resume(overrides=["budget.max_env_steps=300"])
    assert "the replay ring is new: it fills from play before learning goes on" in caplog.text


def test_a_damaged_log_costs_a_resumed_run_what_is_damaged(workshop, caplog):
    workshop.train(budget__max_env_steps=400, replay__log={"segment_bytes": 4096, "seal_seconds": 0.01})
    log = log_of(workshop)
    damaged = log.segments[len(log.segments) // 2]
    path = workshop.runs / "run" / "replay" / damaged.rows_path.rsplit("/", 1)[-1]
    path.write_bytes(path.read_bytes()[:-1])
    with caplog.at_level("INFO"):
        result = workshop.resume(overrides=["budget.max_env_steps=450"])
    assert f"it begins with {log.rows - damaged.rows:,} rows of the log" in caplog.text
    assert "its rows are not in the new ring" in caplog.text
    assert result.status == "finished"
    assert [each.name for each in log_of(workshop).verify()] == [path.name]


def test_a_run_without_log_has_no_folder_for_it(workshop):
    result = workshop.train(budget__max_env_steps=200, replay__log={"enabled": False})
    assert not (workshop.runs / "run" / "replay").exists()
    assert not any(name.startswith("replay/log") for name in result.figures)


def test_a_log_at_an_address_lies_in_a_folder_of_the_runs_id(workshop, tmp_path):
    workshop.train(budget__max_env_steps=200, replay__log={"url": str(tmp_path / "logs")})
    (folder,) = (tmp_path / "logs").iterdir()
    assert folder.name == yaml.safe_load((workshop.runs / "run" / "run.json").read_text(encoding="utf-8"))["run_id"]
    assert ReplayLog(folder).verify() == []


def onibi(workshop, tmp_path, settings, name, runs, *, serial=True):
    config = tmp_path / f"{name}.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return subprocess.run(
        [
            *(sys.executable, "-m", "onibi", "train", str(config), "--name", name, "--runs-folder", str(runs)),
            *(["--serial"] if serial else []),
        ],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=200 if serial else 600,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
    )


@pytest.fixture
def small_disk(tmp_path, request):
    """A file system of its own; of 100 KiB, or as the test says."""
    folder, size = tmp_path / "disk", getattr(request, "param", "100k")
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "onibi-test", str(folder)]
    made = subprocess.run(command, capture_output=True)
    if made.returncode:
        pytest.skip("a file system can be mounted by root alone")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


DISKS = pytest.mark.parametrize(
    ("overflow", "on_error"),
    [
        ("block", "continue"),
        ("drop", "stop"),
        pytest.param("block", "stop", marks=pytest.mark.slow),
        pytest.param("drop", "continue", marks=pytest.mark.slow),
    ],
)


def fill_the_disk(workshop, disk, tmp_path, overflow, on_error, *, serial):
    """A run whose log outgrows its disk; all that was sealed before must be whole afterwards."""
    log = {
        "url": str(disk),
        "segment_bytes": 4_096,
        "seal_seconds": 0.05,
        "on_error": on_error,
        "overflow": overflow,
    }
    settings = workshop.settings(budget__max_env_steps=1_500, replay__log=log)
    finished = onibi(workshop, tmp_path, settings, "full", workshop.runs, serial=serial)
    assert "Traceback" not in finished.stderr, finished.stderr[-3_000:]
    assert finished.returncode == (0 if on_error == "continue" else 1), finished.stderr[-3_000:]
    assert "No space left on device" in finished.stderr
    (folder,) = disk.iterdir()
    sealed = ReplayLog(folder)
    assert sealed.verify() == []
    assert 0 < sealed.rows < 1_500
    assert sealed.torn == ()
    assert list(workshop.rings.iterdir()) == []
    told = [row["replay/log_segments"] for row in workshop.history("full") if "replay/log_segments" in row]
    assert len(sealed.segments) >= max(told, default=0), "a segment that was told is still there"
    return sealed


@pytest.mark.slow  # tests/platform/replay/log/test_refusing_places.py is its short form
def test_the_log_of_a_run_goes_on_where_its_full_disk_has_room_again(workshop, small_disk):
    log = {"url": str(small_disk), "segment_bytes": 4_096, "seal_seconds": 0.05}
    budget = ["budget.max_env_steps=100000000", "budget.max_seconds=100"]
    process = workshop.start(overrides=budget, replay__log=log)
    workshop.wait_for(lambda: "No space left on device" in workshop.log_of(), 60, process)
    (folder,) = small_disk.iterdir()
    before = ReplayLog(folder).rows
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    workshop.wait_for(lambda: "takes rows again" in workshop.log_of(), 60, process)
    process.terminate()
    assert process.wait(60) == 0
    after = ReplayLog(folder)
    assert (after.verify(), after.torn) == ([], ())
    assert after.rows > before
    table = rows_of(after)
    assert len(set(zip(*table.select(["lane", "generation"]).to_pydict().values(), strict=True))) == table.num_rows


@DISKS
def test_a_disk_that_fills_up_in_mid_run_loses_nothing_that_was_sealed(
    workshop, small_disk, tmp_path, overflow, on_error
):
    fill_the_disk(workshop, small_disk, tmp_path, overflow, on_error, serial=True)


@pytest.mark.slow
@pytest.mark.timeout(700)
@DISKS
def test_a_disk_that_fills_up_under_ray_loses_nothing_that_was_sealed(
    workshop, small_disk, tmp_path, overflow, on_error
):
    fill_the_disk(workshop, small_disk, tmp_path, overflow, on_error, serial=False)


@pytest.mark.slow
def test_a_run_goes_on_with_its_log_when_the_full_disk_has_space_again(workshop, small_disk, tmp_path):
    before = fill_the_disk(workshop, small_disk, tmp_path, "block", "continue", serial=True)
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    workshop.resume("full", overrides=["budget.max_env_steps=2000"])
    after = ReplayLog(before.location)
    assert after.verify() == []
    assert after.rows >= before.rows + 500
    assert [segment.number for segment in before.segments] == [
        segment.number for segment in after.segments[: len(before.segments)]
    ]


@pytest.mark.parametrize("small_disk", ["20m"], indirect=True)
@DISKS
def test_a_folder_that_turns_read_only_in_mid_run_ends_the_log_or_the_run(
    workshop, small_disk, overflow, on_error, monkeypatch
):
    from onibi.clusters.serial_run import SerialRun
    from onibi.platform.errors import ReplayError

    collect, calls, told = SerialRun._collect, [], []

    def turn_read_only(session, rollout, meter):
        calls.append(rollout)
        collect(session, rollout, meter)
        if len(calls) == 5:
            while not session._shard.log_figures().segments:
                time.sleep(0.01)
            # counted first: the writer's next seal may fail at once, and then asking raises
            told.append(session._shard.log_figures().segments)
            # Refused as busy while a segment is being written.
            command, tries = ["mount", "-o", "remount,ro", str(small_disk)], 200
            while subprocess.run(command, check=False, capture_output=True).returncode and tries:
                tries -= 1
                time.sleep(0.01)
            assert tries, "the file system did not become read-only"

    monkeypatch.setattr(SerialRun, "_collect", turn_read_only)
    log = {
        "url": str(small_disk),
        "segment_bytes": 4_096,
        "seal_seconds": 0.01,
        "on_error": on_error,
        "overflow": overflow,
    }
    changes = {"budget__max_env_steps": 400, "replay__log": log}
    if on_error == "stop":
        with pytest.raises(ReplayError, match=r"[Rr]ead-only.*replay\.log\.on_error=continue"):
            workshop.train(**changes)
    else:
        assert workshop.train(**changes).env_steps >= 400
    (folder,) = small_disk.iterdir()
    sealed = ReplayLog(folder)
    assert sealed.verify() == []
    assert len(sealed.segments) >= told[0]
    assert list(workshop.rings.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("on_error", ["continue", "stop"])
def test_a_folder_whose_rights_are_taken_away_in_mid_run_ends_the_log_or_the_run(workshop, tmp_path, on_error):
    logs = tmp_path / "logs"
    logs.mkdir()
    ordinary = []
    if os.getuid() == 0:  # who may write everywhere, unless that is taken away
        if shutil.which("setpriv") is None:
            pytest.skip("root may write everywhere, and there is no setpriv to change that")
        ordinary = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    log = {"url": str(logs), "segment_bytes": 4_096, "seal_seconds": 0.05, "on_error": on_error}
    settings = workshop.settings(budget__max_env_steps=6_000, replay__log=log)
    config = tmp_path / "rights.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    command = [*ordinary, sys.executable, "-m", "onibi", "train", str(config), "--serial", "--name", "rights"]
    process = subprocess.Popen(
        [*command, "--runs-folder", str(workshop.runs)],
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
    )
    try:
        sealed = workshop.wait_for(lambda: sorted(logs.glob("*/manifest-*.json")), 60, process)
        (folder,) = logs.iterdir()
        folder.chmod(0o555)
        _, said = process.communicate(timeout=200)
    finally:
        process.kill()
        process.wait()
        folder.chmod(0o755)
    assert "Traceback" not in said, said[-3_000:]
    assert process.returncode == (0 if on_error == "continue" else 1), said[-3_000:]
    assert "Permission denied" in said
    log = ReplayLog(folder)
    assert log.verify() == []
    assert len(log.segments) >= len(sealed)
    assert 0 < log.rows < 6_000


def test_a_log_that_cannot_be_written_is_told_before_training_and_leaves_no_run(workshop, tmp_path):
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    settings = workshop.settings(replay__log={"url": str(tmp_path / "file")})
    finished = onibi(workshop, tmp_path, settings, "nowhere", workshop.runs)
    assert finished.returncode == 1
    message = [line for line in finished.stderr.splitlines() if line.startswith("onibi: ")]
    assert len(message) == 1
    assert "replay.log.url" in message[0]
    assert "Traceback" not in finished.stderr
    assert [*workshop.runs.iterdir(), *workshop.rings.iterdir()] == []
