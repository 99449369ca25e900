"""What verify finds: every damaged file by name, generations that do not rise, episodes without ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onibi.platform.replay.datasets.row_check import verify_log
from onibi.platform.replay.log.log_reader import ReplayLog


def test_a_whole_log_has_no_damage_and_nothing_to_say(log):
    assert verify_log(log) == ([], [])


def test_an_episode_cut_by_a_dead_actor_is_no_damage(logs, tmp_path):
    lane = logs.Lane(0, np.random.default_rng(0))
    lane.episode(1, 4, end="cut")
    lane.episode(1, 3, first_step=9)  # after fragments that never came, the episode goes on
    logs.seal(str(tmp_path / "log"), [lane], segments=2)
    assert verify_log(ReplayLog(tmp_path / "log")) == ([], [])


@pytest.mark.parametrize(
    "suffix", ["rows-0000-00000001.arrow", "captions-0000-00000000.arrow", "episodes-0000-00000001.arrow"]
)
def test_a_flipped_bit_is_found_in_the_file_it_is_in(log, suffix):
    path = Path(log.location) / suffix
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)
    damage, _ = verify_log(ReplayLog(log.location))
    assert [found.name for found in damage] == [suffix]


def test_a_missing_file_and_a_damaged_manifest_are_damage(log):
    folder = Path(log.location)
    (folder / "rows-0000-00000000.arrow").unlink()
    manifest = folder / "manifest-0000-00000002.json"
    manifest.write_text(manifest.read_text().replace('"a-run"', '"b-run"'))
    damage, _ = verify_log(ReplayLog(log.location))
    assert sorted(found.name for found in damage) == ["manifest-0000-00000002.json", "rows-0000-00000000.arrow"]


def test_a_torn_group_is_told_and_no_damage(log):
    folder = Path(log.location)
    (folder / "manifest-0000-00000003.json").unlink()
    damage, notes = verify_log(ReplayLog(log.location))
    assert damage == []
    assert any(note.startswith("rows-0000-00000003.arrow: torn") for note in notes)


def test_rows_that_the_log_never_got_are_told(log):
    for path in Path(log.location).glob("*-00000001.*"):
        path.unlink()
    damage, notes = verify_log(ReplayLog(log.location))
    assert damage == []
    assert notes == [
        "rows-0000-00000002.arrow: lane 0: rows 4 to 8 are not in the log; no window crosses the gap",
        "rows-0000-00000002.arrow: lane 1: rows 4 to 7 are not in the log; no window crosses the gap",
    ]


def test_gaps_in_many_lanes_are_told_in_one_line(logs, tmp_path):
    lanes = [logs.Lane(lane, np.random.default_rng(lane)) for lane in range(5)]
    for lane in lanes:
        lane.episode(lane.lane, 11)
    logs.seal(str(tmp_path / "log"), lanes, segments=3)
    missing = sum(len(lane.rows) * 2 // 3 - len(lane.rows) // 3 for lane in lanes)
    for path in (tmp_path / "log").glob("*-00000001.*"):
        path.unlink()
    damage, notes = verify_log(ReplayLog(tmp_path / "log"))
    assert damage == []
    assert notes == [
        f"rows-0000-00000002.arrow: {missing} rows of 5 lanes (0 to 4) are not in the log; no window crosses the 5 gaps"
    ]


def test_whoever_asks_is_told_of_every_row_that_is_read(log):
    read = []
    log.on_rows = read.append
    verify_log(log)
    assert sum(read) == 2 * log.rows  # checksums first, then what the rows say
    assert len(read) == 2 * len(log.segments)


def spoiled(logs, tmp_path, change, segments: int = 3):
    lanes = logs.two_lanes()
    change(lanes[0].rows)
    location = f"memory://{tmp_path.name}/log"
    logs.seal(location, lanes, segments=segments)
    damage, _ = verify_log(ReplayLog(location))
    return [found.fault for found in damage]


def set_to(column: str, row: int, value: int):
    def change(rows):
        rows[row][column][...] = value

    return change


@pytest.mark.parametrize("segments", [1, 3, 18])  # within a segment, and across the border between two
@pytest.mark.parametrize(
    ("column", "row", "value", "fault"),
    [
        ("role", 7, 0, "row 7 follows an episode's end and is not final"),
        ("role", 5, 9, "row 5 has a role that is neither 0 nor 1"),
        ("terminated", 7, 1, "row 7 is final, and terminated or truncated"),
        ("episode_id", 3, 77, "row 3 is of another episode than the step before it"),
        ("step", 5, 4, "row 5 has a step that does not follow the one before it"),
        ("truncated", 9, 1, "row 10 follows an episode's end and is not final"),
    ],
)
def test_a_row_that_contradicts_its_neighbour_is_damage(logs, tmp_path, segments, column, row, value, fault):
    assert any(fault in found for found in spoiled(logs, tmp_path, set_to(column, row, value), segments))


def test_a_damaged_newest_segment_is_the_only_one_that_is_told(log):
    """The layout of the others is told by themselves."""
    newest = Path(log.segments[-1].rows_path)
    newest.write_bytes(newest.read_bytes()[:40])
    damage, _ = verify_log(ReplayLog(log.location))
    assert {found.name for found in damage} == {newest.name}
