"""`onibi experiment` with tables that a hand or another program has written, and values that no table has room for."""

from __future__ import annotations

import csv
import math

import pytest

from onibi.clusters.experiments.booking import rebook
from onibi.clusters.experiments.declaration import Arm, CalledTrial, Experiment
from onibi.clusters.experiments.result_table import ResultTable, read_rows, write_rows
from onibi.clusters.experiments.schedule import Schedule, trial_hash
from onibi.platform.errors import ConfigError

TRIAL = CalledTrial(function="toy:measure")
ARM = Arm(name="a", task="t", group="g", trial=TRIAL, guess_seconds=9.0)
ROW = {
    "experiment": "e",
    "arm": "a",
    "task": "t",
    "group": "g",
    "status": "ok",
    "error": "",
    "score": "1.5",
    "direction": "higher",
    "stage": "final",
    "seed": "1",
    "config_hash": trial_hash(TRIAL),
    "wall_seconds": "2.5",
    "return": "1.5",
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rows.csv"


def schedule_of(path):
    experiment = Experiment(name="e", summary="s", seeds=(1, 2), arms=(ARM,))
    return Schedule(experiment, ResultTable(path), experiment.arms, None, short=False, retry=False)


@pytest.mark.parametrize(
    "spoilt",
    [
        lambda content: b"name,age\r\nbob,3\r\n",
        lambda content: content.replace(b",", b";"),
        lambda content: content.replace(b"\r\n", b"\r"),
        lambda content: content.decode().encode("utf-16"),
        lambda content: content[:20],
        lambda content: b"\x89PNG\r\n\x1a\n\x00\x00",
    ],
    ids=["another table", "semicolons", "line ends of old", "UTF-16", "torn in its first line", "no table"],
)
def test_a_file_that_is_no_experiments_table_is_refused_and_stays_as_it_is(path, spoilt):
    write_rows(path, [ROW])
    content = spoilt(path.read_bytes())
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="names no columns config_hash and seed"):
        ResultTable(path)
    assert path.read_bytes() == content


def test_a_table_with_a_byte_order_mark_and_plain_line_ends_is_read(path):
    write_rows(path, [ROW])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\r\n", b"\n"))
    assert read_rows(path) == [ROW]


def test_an_empty_file_is_a_table_without_rows(path):
    path.touch()
    assert ResultTable(path).rows == []


def test_a_value_longer_than_readers_of_csv_take_is_read_again(path):
    curve = "5000:0.25 " * 20_000
    csv.field_size_limit(131_072)  # what a process begins with
    ResultTable(path).add({**ROW, "curve": curve})
    assert read_rows(path)[0]["curve"] == curve


def test_an_error_that_names_a_file_in_no_utf_8_is_a_row(path):
    ResultTable(path).add({**ROW, "error": "no file 'caf\udce9'"})
    assert read_rows(path)[0]["error"] == r"no file 'caf\udce9'"


@pytest.mark.parametrize("damaged", ["abc", "nan", ""])
def test_a_time_that_is_no_number_leaves_the_declared_guess(path, damaged):
    write_rows(path, [{**ROW, "wall_seconds": damaged}])
    (estimate,) = schedule_of(path).estimates()
    assert (estimate.missing, estimate.seconds, estimate.measured) == (1, 9.0, 0)


def test_a_column_that_a_hand_has_removed_is_brought_back(path):
    write_rows(path, [{name: text for name, text in ROW.items() if name != "arm"}])
    assert rebook(schedule_of(path)) == 1
    assert read_rows(path)[0]["arm"] == "a"


def test_a_failed_run_keeps_its_error_beside_a_column_of_notes(path):
    failed = {**ROW, "status": "failed", "error": "RuntimeError: no luck", "score": "", "return": "", "notes": "hm"}
    write_rows(path, [failed])
    assert rebook(schedule_of(path)) == 0
    assert read_rows(path) == [failed]


def test_a_time_in_the_table_counts_where_it_is_one(path):
    write_rows(path, [ROW])
    (estimate,) = schedule_of(path).estimates()
    assert math.isclose(estimate.seconds, 2.5)
