"""The history keeps whole rows, whatever cut the writer off."""

from __future__ import annotations

import json
import logging
import math
import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest

from onibi.platform.history import History, column, read_history, series


def test_rows_come_back_in_order_with_lists_and_missing_figures(tmp_path):
    history = History(tmp_path / "h.jsonl")
    history.append({"actors/env_steps": 10, "learner/loss": np.float32(0.5), "captions/on": True})
    history.append({"actors/env_steps": np.int64(20), "returns": [1, np.float64(2.5)], "array": np.array([3, 4])})
    assert read_history(history.path) == [
        {"actors/env_steps": 10, "learner/loss": 0.5, "captions/on": 1},
        {"actors/env_steps": 20, "returns": [1, 2.5], "array": [3, 4]},
    ]


def test_what_is_not_finite_is_null_in_the_file_and_nan_when_read(tmp_path):
    history = History(tmp_path / "h.jsonl")
    history.append({"a": math.nan, "b": -math.inf, "c": [1.0, math.inf]})
    assert json.loads(history.path.read_text()) == {"a": None, "b": None, "c": [1.0, None]}
    (row,) = read_history(history.path)
    assert math.isnan(row["a"]) and math.isnan(row["b"]) and math.isnan(row["c"][1])


def test_a_value_that_is_no_number_is_refused_and_the_file_unchanged(tmp_path):
    history = History(tmp_path / "h.jsonl")
    with pytest.raises(TypeError, match="'text'"):
        history.append({"a": 1, "b": "text"})
    assert read_history(history.path) == []


def test_no_file_is_no_rows(tmp_path):
    assert read_history(tmp_path / "absent.jsonl") == []


@pytest.mark.parametrize("torn_bytes", range(1, 12))
def test_a_torn_last_line_is_left_out_and_the_next_row_is_not_glued_to_it(tmp_path, caplog, torn_bytes):
    path = tmp_path / "h.jsonl"
    History(path).append({"a": 1})
    with path.open("ab") as file:
        file.write(b'{"a": 2.75}\n'[:torn_bytes])  # 11 bytes: whole but for the line feed, so not known to be whole
    assert read_history(path) == [{"a": 1}]
    with caplog.at_level(logging.WARNING):
        history = History(path)
    assert f"{torn_bytes} bytes cut off" in caplog.text
    history.append({"a": 3})
    assert read_history(path) == [{"a": 1}, {"a": 3}]


def test_lines_damaged_in_the_middle_are_counted_in_a_warning(tmp_path, caplog):
    path = tmp_path / "h.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \n[1]\n{"a": "x"}\n\xff\xfe\n{"a": 2}\n')
    with caplog.at_level(logging.WARNING):
        assert read_history(path) == [{"a": 1}, {"a": 2}]
    assert "4 damaged lines left out, 2 rows read" in caplog.text


def test_rows_written_before_kill_9_are_all_there(tmp_path):
    script = (
        "import sys; from pathlib import Path; from onibi.platform.history import History\n"
        "history = History(Path(sys.argv[1]))\n"
        "for step in range(1_000_000):\n"
        "    history.append({'step': step})\n"
        "    print(step, flush=True)\n"
    )
    path = tmp_path / "h.jsonl"
    with subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) == 200:
                break
        os.kill(writer.pid, signal.SIGKILL)
        told = 200 + sum(1 for _ in writer.stdout)
    rows = read_history(path)
    assert len(rows) > told - 1  # the last number may be cut, its row was written before
    assert [row["step"] for row in rows] == list(range(len(rows)))


def test_a_resume_from_an_older_checkpoint_cuts_the_rows_beyond_it(tmp_path):
    history = History(tmp_path / "h.jsonl")
    for step in (10, 20, 30, 40):
        history.append({"actors/env_steps": step})
    history.append({"note": 1})
    assert history.cut_after(20) == 2
    history.append({"actors/env_steps": 25})
    assert read_history(history.path) == [
        {"actors/env_steps": 10}, {"actors/env_steps": 20}, {"note": 1}, {"actors/env_steps": 25}
    ]  # fmt: skip
    assert history.cut_after(1e9) == 0


def test_a_full_disk_costs_rows_and_a_warning_but_no_half_line_and_no_error(tmp_path, caplog):
    history = History(tmp_path / "h.jsonl")
    history.append({"a": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (15, before[1]))  # 9 bytes are there, a row of 9 fits in part
    try:
        with caplog.at_level(logging.WARNING):
            history.append({"a": 2})
            history.append({"a": 3})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    history.append({"a": 4})
    assert read_history(history.path) == [{"a": 1}, {"a": 4}]
    assert history.lost_rows == 2 and caplog.text.count("a row was not written") == 1


def test_a_series_holds_the_rows_that_have_both_figures(tmp_path):
    rows = [
        {"actors/env_steps": 1.0, "y": 5.0},
        {"actors/env_steps": 2.0},
        {"y": 6.0},
        {"actors/env_steps": 3.0, "y": math.nan},
        {"actors/env_steps": 4.0, "y": [1.0]},
        {"actors/env_steps": 5.0, "y": 7.0},
    ]
    x, y = series(rows, "y")
    assert (x.tolist(), y.tolist()) == ([1, 5], [5, 7])
    assert np.isnan(column(rows, "y")).tolist() == [False, True, False, True, True, False]
