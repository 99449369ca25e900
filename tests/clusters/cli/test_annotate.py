"""`onibi annotate`: from a stored run to labels, to a reward model, to an agent that is paid by them."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from onibi.clusters import train
from onibi.clusters.cli.main import app
from onibi.platform.annotation.labels import LABEL_SCHEMA, LabelTable
from onibi.platform.annotation.stored_captions import read_captions
from onibi.platform.annotation.table import AnnotationTable
from onibi.platform.errors import ConfigError
from onibi.platform.run_folder import find_run

BUDGET = {"max_env_steps": 600, "max_seconds": None}
GOAL = "goal=You enter a room, the end of the corridor."


@pytest.fixture(scope="module")
def stored(tmp_path_factory, corridor_settings):
    """A run of the corridor, judged by nobody worth hearing: every caption pays. Only read here."""
    folder = tmp_path_factory.mktemp("stored")
    (folder / "rings").mkdir()
    settings = corridor_settings(folder / "rings", budget=BUDGET)
    train(settings, serial=True, name="stored", runs_folder=folder / "runs", display=False)
    return find_run(folder / "runs", "stored")


@pytest.fixture
def table(tmp_path):
    return tmp_path / "table"


@pytest.fixture
def invoke(stored, table):
    def call(*arguments, code=0):
        command = ["annotate", *map(str, arguments), "--table", str(table), "--runs-folder", str(stored.root)]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == code, result.output
        return result.output

    return call


def test_captions_of_a_run_its_log_and_its_export_are_the_same(stored, tmp_path):
    of_run = read_captions("stored", stored.root)
    (log,) = {path.parent for path in stored.path.rglob("manifest-*.json")}
    of_log = read_captions(str(log), stored.root)
    exported = CliRunner().invoke(
        app, ["replay", "export", "stored", str(tmp_path / "export"), "--runs-folder", str(stored.root)]
    )
    assert exported.exit_code == 0, exported.output
    of_export = read_captions(str(tmp_path / "export"), stored.root)
    assert {key.text: key.sightings for key in of_log.keys} == {key.text: key.sightings for key in of_export.keys}
    assert {key.text for key in of_run.keys} == {key.text for key in of_log.keys}
    assert "You enter the kitchen." in {key.text for key in of_run.keys}
    counts = [key.sightings for key in of_run.keys]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] > 0
    assert read_captions("last", stored.root).keys == of_run.keys
    (tmp_path / "x.csv").write_text("caption")
    with pytest.raises(ConfigError, match=r"x\.csv: is no file that captions are read from"):
        read_captions(str(tmp_path / "x.csv"), stored.root)


def test_an_estimate_tells_what_is_left_and_asks_nobody(invoke, table):
    told = invoke("stored", "--annotator", "similarity", "--set", GOAL, "--estimate")
    assert "labels: 4 to ask, 0 answered before" in told
    assert "no calls of a server" in told
    assert "Verdicts" not in told
    assert AnnotationTable(table).labels() == []
    assert "no calls of a server" not in invoke("stored", "--annotator", "similarity", "--set", GOAL)


def test_without_an_annotator_named_a_run_is_judged_by_its_own_and_a_log_by_auto(invoke, stored):
    told = invoke("stored", "--estimate")
    assert "captions to judge by all_ones" in told, "the run's lexicon"
    assert "by nethack" in invoke("stored", "--set", "lexicon=nethack", "--estimate"), "with another setting"
    (log,) = {path.parent for path in stored.path.rglob("manifest-*.json")}
    assert "by all_ones" not in invoke(str(log), "--estimate")


def test_labels_of_a_stored_run_pay_an_agent(workshop, invoke, tmp_path):
    file = tmp_path / "out" / "labels.parquet"
    arguments = ("stored", "--annotator", "similarity", "--set", GOAL, "--export", file)
    told = invoke(*arguments)
    assert "4 of 4 judged" in told
    assert "3 helpful, 1 unhelpful" in told
    rows = [line for line in told.splitlines() if line.startswith(("helpful", "unhelpful"))]
    assert len(rows) == 4
    assert "You bump into the wall." in rows[3]
    assert "shares: enter" in next(row for row in rows if "You enter the kitchen." in row), "the reply"
    assert "--export FILE.parquet" in told
    assert pq.read_table(file).schema.names == LABEL_SCHEMA.names
    again = invoke(*arguments)
    assert "labels: 0 to ask, 4 answered before" in again
    assert "judged" not in again
    assert "You enter the kitchen." in again, "the verdicts of before"
    result = workshop.train("paid", annotator={"kind": "replay", "path": str(file)}, budget=BUDGET)
    verdicts = {row.key: (row.label, row.annotator) for row in result.captions if row.label != ""}
    assert verdicts["You enter the kitchen."] == ("helpful", "replay")
    assert verdicts["You bump into the wall."] == ("unhelpful", "replay")
    pay = {row.key: pay for row, pay in zip(result.captions, result.paid, strict=True)}
    assert pay["You enter the kitchen."] > 0
    assert pay["You bump into the wall."] == 0


def test_a_reward_model_is_fitted_to_pairs_and_pays_an_agent(workshop, invoke, table, tmp_path):
    model = ("held_out_share=0.0", "members=2", "batch_size=2", "learning_rate=0.02")
    changes = [part for change in model for part in ("--model-set", change)]
    told = invoke(
        *("stored", "--annotator", "similarity", "--set", GOAL, "--pairs", 6),
        *("--reward-model", tmp_path / "model"),
        *changes,
    )
    assert "pairs: 6 to ask" in told
    assert "Pairs won, the best captions first" in told
    assert next(line.split()[:2] for line in told.splitlines() if "You bump into the wall." in line) == ["0%", "3"]
    assert "reward model (ranking)" in told
    intrinsic = {"kind": "ranking", "threshold": 0.0, "threshold_quantile": None, "minimum_pairs": 1}
    result = workshop.train(
        "paid",
        annotator={"kind": "replay", "path": str(table)},
        rewards={**workshop.settings()["rewards"], "intrinsic": {**intrinsic, "episode_high": 10.0}},
        reward_model={"fitted": str(tmp_path / "model"), "frozen": True, "period_env_steps": 50},
        budget=BUDGET,
    )
    pay = {row.key: float(pay) for row, pay in zip(result.captions, result.paid, strict=True)}
    assert pay["You bump into the wall."] == 0, "it lost all its pairs"
    assert pay["You enter the kitchen."] > 0


def test_a_table_of_labels_is_a_source_for_another_judge(invoke, tmp_path):
    file = tmp_path / "labels.parquet"
    invoke("stored", "--annotator", "similarity", "--set", GOAL, "--export", file)
    told = invoke(file, "--annotator", "lexicon", "--set", "lexicon=all_ones")
    assert "4 of 4 judged" in told
    assert "4 helpful" in told


def test_replay_names_the_judges_where_several_fit(invoke, table):
    invoke("stored", "--annotator", "similarity", "--set", GOAL)
    invoke("stored", "--annotator", "lexicon", "--set", "lexicon=all_ones")
    told = invoke("stored", "--annotator", "replay", "--set", f"path={table}", code=2)
    assert "verdicts of 2 judges" in told
    assert "bag of words" in told
    assert "all_ones" in told
    told = invoke("stored", "--annotator", "replay", "--set", f"path={table}", "--set", "model=all_ones")
    assert "4 helpful" in told


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (("nowhere",), "not found"),
        (("stored", "--annotator", "lexikon"), "Did you mean 'lexicon'"),
        (("stored", "--annotator", "similarity", "--set", "goel=x"), "goel"),
        (("stored", "--annotator", "similarity", "--pairs", "7"), "4 keys make 6 pairs"),
        (("stored", "--annotator", "similarity", "--pairs", "2", "--votes", "2"), "leave it out with --pairs"),
        (("stored", "--annotator", "replay"), "annotator.path is empty"),
        (("stored", "--annotator", "replay", "--set", "path=/dev/null"), "holds no labels"),
        (("stored", "--model-set", "members=3"), "--model-set does nothing without --reward-model"),
        (("stored", "--reward-model", "m", "--model-set", "members=x"), "--model-set members=x"),
        (("stored", "--reward-model", "/dev/null"), "is a file"),
        (("stored", "--estimate", "--export", "x.parquet"), "do nothing with --estimate"),
    ],
)
def test_wrong_words_are_told_with_what_is_right(invoke, arguments, found):
    assert found in invoke(*arguments, code=2)


def test_a_run_without_captions_is_told_so(workshop, invoke):
    rewards = {"extrinsic": {"coefficient": 1.0, "clip": 1.0}, "intrinsic": None}
    workshop.train(
        "silent", captioner={"kind": "none"}, rewards=rewards, budget={"max_env_steps": 200, "max_seconds": None}
    )
    assert "has no captions" in invoke(workshop.runs / "silent", code=2)


def test_labels_in_a_checkpoint_are_replayed_by_the_runs_folder(workshop, stored):
    result = workshop.train("again", annotator={"kind": "replay", "path": str(stored.path)}, budget=BUDGET)
    assert {row.label for row in result.captions} == {"helpful"}, "as all_ones judged them"
    assert yaml.safe_load(find_run(workshop.runs, "again").config.read_text())["annotator"]["kind"] == "replay"
    tables = pa.ipc.open_file(next((stored.checkpoints).rglob("tables-labels.arrow"))).read_all()
    assert len(LabelTable.from_arrow(tables)) == 4
