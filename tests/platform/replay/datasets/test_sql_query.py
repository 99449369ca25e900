"""SQL over a log: right figures, DuckDB's own messages, and no way out of the views."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from onibi.platform.errors import ConfigError
from onibi.platform.replay.datasets.query_output import (
    cell,
    fitting_columns,
    limited,
    write_arrow,
    write_csv,
    write_file,
    write_json,
)
from onibi.platform.replay.datasets.sql_query import log_views, query
from onibi.platform.replay.log.log_reader import ReplayLog


@pytest.fixture(scope="module")
def kept(logs):
    """One log for all that only read."""
    logs.seal("memory://sql-queries/log", logs.two_lanes(), segments=4)
    return ReplayLog("memory://sql-queries/log")


def answer(log, sql: str) -> list[dict]:
    schema, batches = query(log_views(log), sql)
    return pa.Table.from_batches(batches, schema).to_pylist()


def test_returns_by_sql_are_those_of_the_episodes(kept):
    sql = """
        select episode_id, sum(reward) as total, count(*) as length from rows
        where role = 0 and episode_id in (select episode_id from episodes) group by episode_id order by episode_id
    """
    figures = {row["episode_id"]: row for row in kept.episodes().to_pylist()}
    assert [(row["episode_id"], row["total"], row["length"]) for row in answer(kept, sql)] == [
        (number, figures[number]["episode_return"], figures[number]["length"]) for number in sorted(figures)
    ]


def test_columns_that_differ_by_case_alone_are_told_by_the_names_that_sql_has_for_them(caplog):
    twins = pa.table({"reward": [1.0], "Reward": [2.0], "other": [3.0]})
    _, batches = query({"rows": twins}, 'select "reward", "Reward", "Reward_1" from rows')
    assert [tuple(column.to_pylist()) for column in next(batches).columns] == [(1.0,), (1.0,), (2.0,)]
    assert [record.getMessage() for record in caplog.records] == [
        "SQL does not tell upper and lower case apart: of rows, 'Reward' is called 'Reward_1' there"
    ]


def test_columns_of_distinct_names_are_not_spoken_of(kept, caplog):
    answer(kept, "select 1")
    assert not caplog.records


def test_captions_join_rows_by_their_id(kept, logs):
    sql = "select text, count(*) as rows from rows join captions using (caption_id) group by text order by text"
    ids = [int(row["caption_id"]) for lane in logs.two_lanes() for row in lane.rows]
    assert answer(kept, sql) == [
        {"text": caption.text, "rows": ids.count(number)}
        for number, caption in sorted(logs.CAPTIONS.items(), key=lambda item: item[1].text)
    ]


def test_columns_of_fixed_size_are_arrays_in_sql(kept, logs):
    rows = [row for lane in logs.two_lanes() for row in lane.rows]
    sql = """
        select sum("observation.inner.image"[2]) as second, sum(list_sum("observation.inner.image")) as total,
               max(list_max(logits::float[])) as most from rows
    """
    found = answer(kept, sql)[0]
    images = np.stack([row["observation.inner.image"].reshape(-1) for row in rows]).astype(int)
    assert (int(found["second"]), int(found["total"])) == (images[:, 1].sum(), images.sum())
    assert found["most"] == max(float(row["logits"].max()) for row in rows)


def test_extra_figures_of_episodes_are_a_map(kept):
    assert answer(kept, "select extra['depth'] as depth from episodes where episode_id = 1") == [{"depth": 7.0}]


def test_a_log_on_a_disk_is_queried_as_one_behind_an_address(log, kept):
    sql = "select sum(reward) as reward, count(*) as rows from rows"
    assert answer(log, sql) == answer(kept, sql)


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("selec 1", "syntax error"),
        ("select nothing from rows", '"nothing" not found'),
        ("select * from row", "Table with name row does not exist"),
        ("select 1; select 2", "2 statements"),
        ("", "0 statements"),
        ("create table x as select 1", "CREATE is not allowed"),
        ("drop view rows", "DROP is not allowed"),
        ("select cast(episode_id || 'x' as integer) from rows", "Could not convert string"),
        ("select * from read_csv('/etc/passwd')", "disabled by configuration"),
        ("select * from 'x.parquet'", "disabled by configuration"),
        ("copy rows to 'x.csv'", "not allowed|disabled by configuration"),
        ("attach 'x.db'", "not allowed|disabled by configuration"),
        ("install httpfs", "not allowed|disabled by configuration"),
        ("set enable_external_access = true", "not allowed|locked"),
        ("select * from logs", "does not exist"),  # a variable of the caller is no table
    ],
)
def test_what_is_wrong_or_reaches_beyond_the_views_is_told_by_duckdb(kept, monkeypatch, tmp_path, sql, message):
    monkeypatch.chdir(tmp_path)
    logs = pa.table({"x": [1]})  # noqa: F841
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=message):
        answer(kept, sql)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_damaged_file_is_an_error_and_no_crash(log):
    Path(log.segments[1].rows_path).write_bytes(b"no Arrow file")
    with pytest.raises(ConfigError, match="Views: rows, captions, episodes"):
        answer(log, "select sum(reward) from rows")


def table() -> pa.Table:
    return pa.table(
        {
            "number": pa.array([1, 2, None], pa.int64()),
            "value": [0.5, float("nan"), -1.0],
            "list": pa.array([[1.0, 2.0], [float("inf"), 0.0], [3.0, 4.0]], pa.list_(pa.float32(), 2)),
            "text": ["a,b", 'say "x"', "c\nd"],
        }
    )


def test_csv_and_json_hold_every_value_of_a_table():
    text = io.StringIO()
    assert write_csv(table().schema, table().to_batches(), text) == 3
    assert text.getvalue() == (
        'number,value,list,text\n1,0.5,"[1.0, 2.0]","a,b"\n2,nan,"[null, 0.0]","say ""x"""\n,-1.0,"[3.0, 4.0]","c\nd"\n'
    )
    text = io.StringIO()
    write_json(table().schema, table().to_batches(), text)
    lines = [json.loads(line) for line in text.getvalue().splitlines()]
    assert lines[1] == {"number": 2, "value": None, "list": [None, 0.0], "text": 'say "x"'}


def test_a_sum_of_integers_is_a_number_in_json(kept):
    schema, batches = query(log_views(kept), "select sum(step) as steps from rows")
    text = io.StringIO()
    write_json(schema, batches, text)
    assert json.loads(text.getvalue()) == {"steps": kept.dataset().to_table().column("step").to_numpy().sum()}


def test_arrow_output_is_the_table(tmp_path):
    write_arrow(table().schema, table().to_batches(max_chunksize=2), tmp_path / "x.arrow")
    again = pa.ipc.open_file(tmp_path / "x.arrow").read_all()
    assert again.slice(0, 1).equals(table().slice(0, 1))
    assert again.num_rows == 3


@pytest.mark.parametrize(("limit", "sizes"), [(None, [2, 1]), (0, []), (1, [1]), (2, [2]), (3, [2, 1]), (9, [2, 1])])
def test_a_limit_takes_the_first_rows(limit, sizes):
    assert [batch.num_rows for batch in limited(table().to_batches(max_chunksize=2), limit)] == sizes


def test_a_long_value_is_shortened_for_the_screen():
    assert cell(1 / 3, 40) == "0.333333"
    assert cell([1, 2], 40) == "[1, 2]"
    assert cell(list(range(20)), 40).endswith("… 20]")
    assert len(cell("x" * 100, 40)) == 40


@pytest.mark.parametrize(
    ("widths", "room", "places"),
    [([4, 4, 4], 12, [0, 1, 2]), ([4, 4, 4], 11, [0, 1]), ([4, 60, 4], 20, [0, 2]), ([60, 4], 20, [0]), ([9], 3, [0])],
)
def test_a_column_that_does_not_fit_makes_place_for_those_behind_it(widths, room, places):
    assert fitting_columns(widths, room) == places


def test_a_log_without_text_columns_has_an_empty_view_of_texts(kept):
    assert answer(kept, "select count(*) as words from texts") == [{"words": 0}]


def test_columns_of_one_name_all_come_out_in_json():
    names = pa.schema([("a", pa.int64()), ("a", pa.int64()), ("a_1", pa.int64())])
    batch = pa.RecordBatch.from_arrays([pa.array([1]), pa.array([2]), pa.array([3])], schema=names)
    text = io.StringIO()
    write_json(names, [batch], text)
    assert json.loads(text.getvalue()) == {"a": 1, "a_2": 2, "a_1": 3}


@pytest.mark.parametrize("output_format", ["csv", "json", "arrow"])
def test_a_query_that_fails_in_the_middle_leaves_the_file_that_was_there(tmp_path, output_format):
    def broken():
        yield table().to_batches()[0]
        raise OSError("the disk is full")

    path = tmp_path / "out"
    path.write_text("before", encoding="utf-8")
    with pytest.raises(OSError, match="full"):
        write_file(table().schema, broken(), output_format, path)
    assert [each.name for each in tmp_path.iterdir()] == ["out"]
    assert path.read_text(encoding="utf-8") == "before"
    assert write_file(table().schema, table().to_batches(), output_format, path) == 3
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


INTERRUPTED = """
import os, signal, threading
from onibi.platform.replay.datasets.sql_query import query
signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Timer(1.0, os.kill, [os.getpid(), signal.SIGINT]).start()  # to the process, as a terminal sends it
try:
    _, batches = query({}, "select sum(a.range * b.range) from range(1000000000) a, range(1000000000) b")
    list(batches)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interrupted_query_is_an_interrupt():
    """DuckDB makes a RuntimeError of Ctrl-C. In a process of its own: the signal must hit nothing else."""
    ended = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=120)
    assert ended.stdout == "interrupted\n", ended.stderr
