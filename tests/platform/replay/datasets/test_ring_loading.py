"""A log put into a ring: every window that its rows allow is drawn, and no other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onibi.platform.errors import ReplayError, SegmentError
from onibi.platform.replay.datasets.parquet_files import export_parquet, import_parquet
from onibi.platform.replay.datasets.ring_loading import load_into_ring
from onibi.platform.replay.log.log_reader import ReplayLog
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.samplers.frame_stack import FrameStack
from onibi.platform.replay.samplers.sequence_sampler import SequenceSampler
from onibi.platform.replay.samplers.trajectory_sampler import TrajectoryWeightedSampler
from onibi.platform.replay.samplers.uniform_sampler import UniformSampler
from onibi.platform.spec import ROLE_FINAL


def windows_of(lanes, n_steps: int) -> dict:
    """What a log's rows allow to draw, slowly: (episode, step) → (rewards, last observation, whether it terminated)."""
    allowed = {}
    for lane in lanes:
        for at, row in enumerate(lane.rows):
            if row["role"] == ROLE_FINAL or at == len(lane.rows) - 1:
                continue
            rewards, end = [], at
            while len(rewards) < n_steps and lane.rows[end]["role"] != ROLE_FINAL and end < len(lane.rows) - 1:
                rewards.append(float(lane.rows[end]["reward"]))
                end += 1
            last = lane.rows[end]["observation.vector"].tobytes()
            allowed[int(row["episode_id"]), int(row["step"])] = (
                rewards,
                last,
                bool(lane.rows[end - 1]["terminated"]),
            )
    return allowed


@pytest.mark.parametrize("segments", [1, 4, 10])
def test_the_windows_of_the_log_and_no_others_are_drawn(logs, tmp_path, ring_path, segments):
    lanes = logs.two_lanes()
    logs.seal(str(tmp_path / "log"), lanes, segments=segments)
    loaded = load_into_ring(ReplayLog(tmp_path / "log"), ring_path, window_rows=3, capacity_rows=400)
    reader = RingReader(ring_path)
    sampler = UniformSampler(reader, n_steps=3, batch_size=512, rng=np.random.default_rng(1))
    allowed = windows_of(lanes, 3)
    drawn = set()
    windows = sampler.draw()
    for number in range(512):
        used = int(windows.steps[number])
        at = int(windows.lane[number]) * reader.slots + int(windows.generation[number])
        key = int(reader.columns["episode_id"][at]), int(reader.columns["step"][at])
        rewards, last, terminated = allowed[key]
        assert windows.reward[number, :used].tolist() == rewards
        assert windows.bootstrap_observation["observation.vector"][number].tobytes() == last
        assert (windows.continues[number, used - 1] == 0) == terminated
        drawn.add(key)
    assert drawn == set(allowed)
    # 7 + 4 + 4 of lane 0, whose last step has no next observation; 6 + 9 of lane 1, whose last row became final.
    assert (loaded.steps, loaded.lost_steps, len(allowed)) == (30, 1, 30)
    assert loaded.lanes == ((0, 0), (0, 1))
    reader.close()


def test_rows_pass_from_log_to_parquet_to_log_to_ring_unchanged(log, logs, tmp_path, ring_path):
    export_parquet(log, str(tmp_path / "parquet"))
    import_parquet(str(tmp_path / "parquet"), str(tmp_path / "again"))
    load_into_ring(ReplayLog(tmp_path / "again"), ring_path, window_rows=1)
    reader = RingReader(ring_path)
    for lane, rows in enumerate(each.rows for each in logs.two_lanes()):
        for name, column in reader.columns.items():
            found = column[lane * reader.slots : lane * reader.slots + len(rows) - 1]
            assert found.tobytes() == np.stack([row[name] for row in rows[:-1]]).tobytes(), name
            newest = column[lane * reader.slots + len(rows) - 1]
            known = name.startswith("observation") or name in ("episode_id", "step")
            ended = np.full_like(newest, ROLE_FINAL) if name == "role" else np.zeros_like(newest)
            assert newest.tobytes() == (rows[-1][name] if known else ended).tobytes(), name
    reader.close()


@pytest.mark.parametrize("alike", [False, True])
def test_a_gap_in_the_log_ends_an_episode_in_the_ring(logs, tmp_path, ring_path, alike):
    lane = logs.Lane(0, np.random.default_rng(2))
    lane.episode(1, 20)
    if alike:  # the row after the gap looks like the one before it, and follows it no more for that
        lane.rows[14] = lane.rows[6]
    logs.seal(str(tmp_path / "log"), [lane], segments=3)
    for path in (tmp_path / "log").glob("*-00000001.*"):  # rows 7 to 13 were lost with their segment
        path.unlink()
    loaded = load_into_ring(ReplayLog(tmp_path / "log"), ring_path, window_rows=1)
    reader = RingReader(ring_path)
    assert reader.columns["step"][:14].tolist() == [*range(7), 6 if alike else 14, *range(15, 21)]
    assert reader.columns["role"][:14].tolist() == [0] * 6 + [1] + [0] * 6 + [1]
    assert (loaded.steps, loaded.lost_steps) == (12, 1)
    reader.close()


def test_a_small_ring_keeps_the_newest_rows(log, logs, ring_path):
    load_into_ring(log, ring_path, window_rows=1, capacity_rows=2 * 12)
    reader = RingReader(ring_path)
    snapshot = reader.snapshot()
    assert reader.slots == 12
    assert (snapshot.cursor - snapshot.oldest).tolist() == [11, 11]
    newest = int(snapshot.cursor[1]) - 1
    assert reader.columns["step"][12 + newest % 12] == logs.two_lanes()[1].rows[-1]["step"]
    reader.close()


def test_captions_get_the_ids_of_the_runs_own_table(log, logs, ring_path):
    texts = []

    def resolve(captions):
        texts.extend(caption.text for caption in captions)
        return np.array([100 + len(caption.keys) for caption in captions], np.uint32)

    load_into_ring(log, ring_path, window_rows=1, resolve=resolve)
    reader = RingReader(ring_path)
    rows = logs.two_lanes()[0].rows
    theirs = {0: 0, 1: 101, 2: 102}
    assert texts == [logs.CAPTIONS[1].text, logs.CAPTIONS[2].text]
    assert reader.columns["caption_id"][: len(rows) - 1].tolist() == [
        theirs[int(row["caption_id"])] for row in rows[:-1]
    ]
    reader.close()


def test_a_damaged_log_leaves_no_ring(log, ring_path):
    path = Path(log.segments[1].rows_path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SegmentError):
        load_into_ring(log, ring_path, window_rows=1)
    assert not ring_path.exists()


def test_a_ring_that_is_there_is_left_alone(log, ring_path):
    load_into_ring(log, ring_path, window_rows=1)
    before = ring_path.read_bytes()
    with pytest.raises(ReplayError):
        load_into_ring(log, ring_path, window_rows=1)
    assert ring_path.read_bytes() == before


@pytest.mark.parametrize("capacity_rows", [0, -5])
def test_a_ring_without_rows_is_refused(log, ring_path, capacity_rows):
    with pytest.raises(ReplayError, match=r"capacity_rows is .*; allowed: 1 or more"):
        load_into_ring(log, ring_path, window_rows=1, capacity_rows=capacity_rows)
    assert not ring_path.exists()


@pytest.mark.parametrize(("first_step", "begin"), [(0, 0), (5, 1)])
def test_a_lane_that_the_log_knows_from_mid_episode_on_begins_no_episode_there(
    logs, tmp_path, ring_path, first_step, begin
):
    lane = logs.Lane(0, np.random.default_rng(3))
    lane.episode(1, 6, first_step=first_step)
    lane.episode(2, 4)
    lane.episode(3, 1, end="none", final=False)
    logs.seal(str(tmp_path / "log"), [lane], segments=2)
    loaded = load_into_ring(ReplayLog(tmp_path / "log"), ring_path, window_rows=6)
    assert loaded.rows == len(lane.rows)
    reader, rng = RingReader(ring_path), np.random.default_rng(0)
    common = {"n_steps": 1, "batch_size": 256, "rng": rng}
    found = TrajectoryWeightedSampler(reader, **common, temperature=0.1, by_length=False).trajectories()
    assert [int(reader.columns["step"][row]) for row in found.begin] == ([] if begin else [0]) + [0]
    stack = FrameStack(frames=3, leaves=("observation.vector",))
    windows = UniformSampler(reader, **common, stack=stack).draw()
    # With the begin known all steps are drawn, else those with two frames before them.
    known = {*range(begin + 2 if begin else 0, begin + 6), *range(begin + 7, begin + 11)}
    assert set(windows.generation.tolist()) == known
    sequences = SequenceSampler(reader, length=2, burn_in=3, batch_size=256, rng=rng).draw()
    short = {int(row) for row, burn_in in zip(sequences.generation, sequences.burn_in, strict=True) if burn_in < 3}
    assert short == {*(() if begin else (0, 1, 2)), *range(begin + 7, begin + 10)}
    reader.close()


@pytest.mark.parametrize("capacity_rows", [None, 100])
def test_a_log_without_sealed_rows_is_refused(tmp_path, ring_path, capacity_rows):
    (tmp_path / "rows-0000-00000000.arrow").write_bytes(b"torn")
    with pytest.raises(ReplayError, match=r"no rows are sealed in this log \(1 file of"):
        load_into_ring(ReplayLog(tmp_path), ring_path, window_rows=1, capacity_rows=capacity_rows)
    assert not ring_path.exists()


def test_dropped_rows_within_a_segment_take_no_memory(logs, tmp_path, ring_path):
    lanes = logs.two_lanes()
    lanes[0].gaps[8] = 10**12  # the disk did not keep up: behind the first episode
    logs.seal(str(tmp_path / "log"), lanes, segments=1)
    loaded = load_into_ring(ReplayLog(tmp_path / "log"), ring_path, window_rows=3)
    assert (loaded.rows, loaded.steps) == (35, 30)
    assert RingReader(ring_path).slots == 36  # as many rows as the segment has, and a head
