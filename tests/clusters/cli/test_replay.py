"""``onibi replay`` on the log of a real serial run, as a user meets it."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import minari
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from onibi.clusters import train
from onibi.clusters.cli.main import app
from onibi.platform.replay.log.log_reader import ReplayLog

COMMANDS = ("info", "export", "import", "query", "verify")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, corridor_settings) -> Path:
    """A folder with one finished run of 600 steps, ``corridor``."""
    folder = tmp_path_factory.mktemp("cli-replay")
    (folder / "rings").mkdir()
    settings = corridor_settings(folder / "rings", replay__log__segment_bytes=16 << 10)
    train(settings, serial=True, name="corridor", runs_folder=folder / "runs", display=False)
    return folder / "runs"


@pytest.fixture
def onibi(runs, monkeypatch, tmp_path):
    """The command in this process, in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONIBI_RUNS_FOLDER", str(runs))
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str):
        result = CliRunner().invoke(app, ["replay", *arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return call


@pytest.fixture
def log(runs) -> ReplayLog:
    return ReplayLog(runs / "corridor" / "replay")


def test_info_tells_the_figures_of_the_run(onibi, log, runs):
    code, out, _ = onibi("info", "last", "--json")
    told = json.loads(out)
    record = json.loads((runs / "corridor" / "run.json").read_text())
    assert code == 0
    assert told["run_ids"] == [record["run_id"]]
    assert told["steps"] == record["results"]["env_steps"] >= 600
    assert told["rows"] == sum(segment.rows for segment in log.segments) > told["steps"]
    assert told["episodes"] == log.episodes().num_rows > 10
    assert told["captions"] == log.captions().num_rows > 0
    assert told["segments"] > 1
    assert told["lanes"] == 4
    assert "action" in [column["name"] for column in told["columns"]]
    code, out, _ = onibi("info", "corridor")
    assert code == 0
    assert f"{told['rows']:,}, of them {told['steps']:,} steps" in out


def test_verify_finds_the_run_whole(onibi):
    code, out, err = onibi("verify", "corridor")
    assert (code, err) == (0, "")
    assert out.rstrip().endswith("whole")


def test_a_log_of_which_nothing_is_sealed_is_not_called_whole(onibi, tmp_path):
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "rows-0000-00000000.arrow").write_bytes(b"cut off")
    code, out, _ = onibi("verify", "torn")
    assert code == 0
    assert out.splitlines()[-1] == "torn: 0 segments, 0 rows: nothing is sealed yet"


def test_a_log_whose_manifests_are_all_damaged_is_not_waited_for(onibi, tmp_path):
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "manifest-0000-00000000.json").write_bytes(b"{}")
    for command in (("query", "damaged", "select 1"), ("export", "damaged", "out")):
        code, _, err = onibi(*command)
        assert code == 2
        assert "no segment of this log can be read; `onibi replay verify` tells why" in err
    assert onibi("verify", "damaged")[0] == 1


def test_a_run_passes_through_parquet_and_back_bit_for_bit(onibi, log, tmp_path):
    assert onibi("export", "corridor", "out")[0] == 0
    assert onibi("import", "out", "--to", "again")[0] == 0
    assert onibi("verify", "again")[0] == 0
    assert onibi("export", "again", "out-2")[0] == 0
    for name in ("rows-0000.parquet", "captions.parquet", "episodes.parquet"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "out-2" / name).read_bytes()
    rows = pq.read_table(tmp_path / "out" / "rows-0000.parquet")
    assert rows.num_rows == log.rows


def test_a_run_passes_through_minari_and_back(onibi, log, tmp_path):
    code, *_ = onibi("export", "corridor", "corridor-v0", "--to", "minari", "--pieces", "ended")
    dataset = minari.MinariDataset(tmp_path / "corridor-v0" / "data")
    assert code == 0
    assert dataset.total_episodes == log.episodes().num_rows
    assert sum(float(episode.rewards.sum()) for episode in dataset) == pytest.approx(
        sum(log.episodes().column("episode_return").to_pylist())
    )
    assert onibi("import", "corridor-v0", "--to", "again", "--lanes", "3")[0] == 0
    assert onibi("verify", "again")[0] == 0
    again = json.loads(onibi("info", "again", "--json")[1])
    assert again["steps"] == dataset.total_steps
    assert again["lanes"] == 3


def test_the_same_question_is_answered_in_four_forms(onibi, log, tmp_path):
    sql = "select lane, count(*) as steps, sum(reward) as total from rows where role = 0 group by lane order by lane"
    _, out, _ = onibi("query", "corridor", sql, "--format", "json")
    answer = [json.loads(line) for line in out.splitlines()]
    assert [row["lane"] for row in answer] == [0, 1, 2, 3]
    assert sum(row["steps"] for row in answer) == log.dataset().count_rows(filter=pa.compute.field("role") == 0)
    _, out, _ = onibi("query", "corridor", sql, "--format", "csv")
    assert out.splitlines()[1] == ",".join(str(value) for value in answer[0].values())
    code, _, err = onibi("query", "corridor", sql, "--format", "arrow", "--output", "x.arrow")
    assert (code, err) == (0, "4 rows in x.arrow\n")
    assert pa.ipc.open_file(tmp_path / "x.arrow").read_all().to_pylist() == answer
    _, out, _ = onibi("query", "corridor", sql, "--limit", "3")
    assert "the first 3 rows; --limit shows more" in out


def test_a_table_is_whole_where_it_goes_to_a_file_and_names_what_it_leaves_out_on_a_terminal(onibi, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    code, out, _ = onibi("query", "corridor", "select * from rows", "--limit", "2")
    assert code == 0
    for name in ("generation", "caption_count", "policy_version", "observation.caption_counts"):
        assert name in out
    assert "do not fit" not in out
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the output for a terminal
    code, out, _ = onibi("query", "corridor", "select * from rows", "--limit", "2")
    table, _, note = out.partition("columns that do not fit beside these: ")
    assert "generation" in table
    assert "observation.caption_counts" in note
    assert "…" not in table.partition("generation")[0]
    plain = re.sub("\x1b[^m]*m", "", table)
    assert max(map(len, plain.splitlines())) <= 60


def test_a_table_shows_no_control_characters_and_data_keeps_them(onibi):
    told = "'The ' || chr(27) || '[2J' || chr(7) || 'door' || chr(10) || 'opens.'"
    sql = f"select {told} as told, [chr(155) || 'b'] as many"
    _, out, _ = onibi("query", "corridor", sql)
    assert "│ The [2J door opens. │ [ b] │" in out
    assert all(character.isprintable() for line in out.split("\n") for character in line)
    _, out, _ = onibi("query", "corridor", sql, "--format", "json")
    assert json.loads(out) == {"told": "The \x1b[2J\x07door\nopens.", "many": ["\x9bb"]}
    _, out, _ = onibi("query", "corridor", sql, "--format", "csv")
    assert "The \x1b[2J\x07door\nopens." in out


def test_info_breaks_no_column_name(onibi, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    for forced in ("", "1"):
        monkeypatch.setenv("FORCE_COLOR", forced)
        assert "observation.caption_counts" in onibi("info", "corridor")[1]


def test_labels_of_the_run_join_its_captions(onibi, log):
    sql = """
        select value, count(distinct key_text) as keys from labels
        where list_contains((select flatten(list(keys)) from captions), key_text) group by value
    """
    code, out, _ = onibi("query", "corridor", sql, "--format", "json")
    keys = {key for row in log.captions().to_pylist() for key in row["keys"]}
    assert code == 0
    assert [json.loads(line) for line in out.splitlines()] == [{"value": "helpful", "keys": len(keys)}]


def test_a_log_is_named_by_its_folder_and_by_an_address_as_well(onibi, log):
    expected = onibi("query", "corridor", "select count(*) from rows", "--format", "csv")
    for name in (log.location, Path(log.location).as_uri()):
        assert onibi("query", name, "select count(*) from rows", "--format", "csv") == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("info", "corridr"), "Did you mean 'corridor'?"),
        (("info", "."), "neither a run nor a folder with segments"),
        (("info", "nosuch://bucket/log"), "known neither to pyarrow nor to fsspec"),
        (("info", "memory://nothing/here"), "no segment of a replay log is here"),
        (("query", "corridor", "select nothing from rows"), '"nothing" not found'),
        (("query", "corridor", "selec"), "syntax error"),
        (("query", "corridor", "delete from rows"), "not allowed|delete"),
        (("query", "corridor", "select 1", "--format", "arrow"), "needs --output"),
        (("query", "corridor", "select 1", "--output", "x.csv"), "a table goes to the screen"),
        (("query", "corridor", "select 1", "--format", "csv", "--output", "no/such/folder/x.csv"), "not written"),
        (("query", "corridor", "select 1 from rows", "--live"), "no ring of it lies in"),
        (("import", "nothing", "--to", "again"), "is no folder"),
        (("export", "corridor", "s3x://bucket/x", "--to", "minari"), "local folders"),
    ],
)
def test_wrong_input_is_one_message_and_exit_code_2(onibi, arguments, message):
    code, out, err = onibi(*arguments)
    assert (code, out) == (2, "")
    assert re.search(message, err, re.IGNORECASE)
    assert err.startswith("onibi: ")
    assert "Traceback" not in err


def test_damage_is_told_by_file_and_exit_code_1(onibi, log, tmp_path):
    shutil.copytree(log.location, tmp_path / "damaged")
    path = tmp_path / "damaged" / Path(log.segments[1].rows_path).name
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)
    code, out, _ = onibi("verify", "damaged")
    assert code == 1
    assert [line.split(":")[0] for line in out.splitlines() if line.startswith("damage  ")] == [f"damage  {path.name}"]
    assert out.splitlines()[-1].endswith(": 1 fault")
    for arguments in (("export", "damaged", "out"), ("export", "damaged", "out-v0", "--to", "minari")):
        code, out, err = onibi(*arguments)
        assert (code, out) == (1, "")
        assert path.name in err
        assert "Traceback" not in err


def test_a_log_without_a_sealed_segment_is_told_as_such(onibi, log, tmp_path):
    shutil.copytree(log.location, tmp_path / "torn")
    for path in (tmp_path / "torn").glob("manifest-*"):
        path.unlink()
    assert onibi("info", "torn")[0] == 0
    for arguments in (("query", "torn", "select 1 from rows"), ("export", "torn", "out")):
        code, _, err = onibi(*arguments)
        assert (code, "no segment of this log is sealed yet" in err) == (2, True)


def test_a_missing_package_is_told_with_the_extra_that_brings_it(onibi, monkeypatch):
    monkeypatch.setitem(sys.modules, "duckdb", None)
    code, _, err = onibi("query", "corridor", "select 1")
    assert code == 2
    assert "pip install 'onibi[datasets]'" in err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_shows_an_example_of_it(onibi, command):
    code, out, _ = onibi(command, "--help")
    assert code == 0
    assert f"onibi replay {command}" in out.partition("Example")[2]


def test_the_live_ring_of_a_run_in_another_process_is_asked(onibi, workshop):
    process = workshop.start(budget__max_env_steps=None, budget__max_seconds=60.0, checkpoint__period_seconds=1.0)
    sql = "select count(*) as rows, max(step) as step, count(distinct lane) as lanes from rows"

    def asked():
        code, out, _ = onibi("query", "run", sql, "--live", "--format", "json", "--runs-folder", str(workshop.runs))
        answer = json.loads(out) if code == 0 else {"rows": 0}
        return answer["rows"] > 100 and answer

    try:
        found = workshop.wait_for(asked, process=process)
    finally:
        process.terminate()
        process.wait(60)
    assert found["lanes"] == 4
    assert 0 < found["step"] <= 30
