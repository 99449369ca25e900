"""What a run leaves behind shows its figures, and captions cannot write into it."""

from __future__ import annotations

import csv
import io
import math
import re
import shlex
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from rich.console import Console

from onibi.clusters.reports.run_report import RunSummary, captions_csv, captions_table, learning_curve_png, summary_text
from onibi.clusters.shell_commands import mlflow_command, typed_as
from onibi.platform.annotation.desk_report import CaptionReportRow
from onibi.platform.checkpoint import list_checkpoints

EVALUATION = {
    "env_steps": 1000.0,
    "return_mean": 0.5,
    "success_rate": 0.5,
    "intrinsic_return_mean": 0.2,
    "returns": [0.0, 1.0] * 10,
}


def history(**figures: float) -> list[dict[str, float]]:
    names = {name.replace("__", "/"): value for name, value in figures.items()}
    return [{"actors/env_steps": 100.0 * step, **{n: v * step for n, v in names.items()}} for step in range(1, 30)]


def caption(key: str, sightings: int = 1, label: str = "helpful", reply: str = "") -> CaptionReportRow:
    score = 1.0 if label else math.nan
    return CaptionReportRow(
        key=key, example=f"raw {key}", sightings=sightings, label=label, score=score, annotator="x", reply=reply
    )


def text_of(table) -> str:
    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(table)
    return console.file.getvalue()


def test_a_run_without_figures_draws_nothing(tmp_path):
    assert not learning_curve_png([], [], tmp_path / "curve.png", "none")
    assert not learning_curve_png([{"actors/env_steps": 1.0}], [], tmp_path / "curve.png", "none")
    assert list(tmp_path.iterdir()) == []


def test_the_picture_has_a_panel_for_each_group_of_figures_there(tmp_path):
    sizes = []
    for number, rows in enumerate(
        (
            history(learner__loss=1.0),
            history(learner__loss=1.0, learner__q_mean=1.0, actors__success_rate=0.01, annotation__keys=3.0),
        )
    ):
        path = tmp_path / f"{number}.png"
        assert learning_curve_png(rows, [], path, "a run")
        sizes.append(matplotlib.image.imread(path).shape[:2])
    (height, width), (height_of_four, width_of_four) = sizes
    assert width_of_four == pytest.approx(3 * width, abs=3)  # 1 panel; 4 panels stand in two rows of three
    assert height_of_four > 1.7 * height


def test_a_run_that_hears_no_captions_has_no_panels_of_them(tmp_path):
    silent = dict.fromkeys(("annotation__keys", "actors__intrinsic_return"), 0.0)
    sizes = []
    for heard in (silent, silent | {"annotation__keys": 1.0}):
        rows = history(learner__loss=1.0, learner__labelled_share=1.0, **heard)
        assert learning_curve_png(rows, [], tmp_path / "curve.png", "a run")
        sizes.append(matplotlib.image.imread(tmp_path / "curve.png").shape[1])
    assert sizes[1] == pytest.approx(3 * sizes[0], abs=3), "the loss alone, and beside it three panels of captions"


def test_evaluations_change_the_picture_and_the_same_run_gives_the_same_one(tmp_path):
    rows = history(actors__episode_return=0.1)
    pictures = []
    for number, evaluations in enumerate(([], [EVALUATION], [EVALUATION])):
        learning_curve_png(rows, evaluations, tmp_path / f"{number}.png", "a run")
        pictures.append(matplotlib.image.imread(tmp_path / f"{number}.png"))
    assert np.array_equal(pictures[1], pictures[2])
    assert pictures[0].shape != pictures[1].shape  # the evaluations bring success and intrinsic return


@pytest.mark.parametrize(
    "rows",
    [
        history(learner__loss=math.nan) + history(learner__loss=1.0)[:1],
        history(learner__loss=0.0),
        history(learner__loss=1e12),
        [{"actors/env_steps": 5.0, "learner/loss": 1.0}] * 3,  # one x
        [{"actors/env_steps": 0.0, "learner/loss": -1e-9}],
    ],
)
def test_odd_figures_are_drawn_without_a_warning(tmp_path, rows):  # warnings are errors here
    assert learning_curve_png(rows, [], tmp_path / "curve.png", "$odd_title^")


def test_the_csv_holds_every_caption_best_paid_first_and_any_text(tmp_path):
    rows = [caption("seldom", 2), caption('a "quoted", one\nin two lines', 5, reply="é"), caption("often", 9, label="")]
    captions_csv(rows, np.array([1.0, 2.5, 0.0]), tmp_path / "captions.csv")
    with (tmp_path / "captions.csv").open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["key"] for row in read] == ['a "quoted", one\nin two lines', "seldom", "often"]
    assert [(row["paid"], row["sightings"], row["label"], row["score"]) for row in read] == [
        ("2.5", "5", "helpful", "1"),
        ("1", "2", "helpful", "1"),
        ("0", "9", "", ""),
    ]
    assert read[0]["reply"] == "é" and read[0]["example"] == 'raw a "quoted", one\nin two lines'


def test_without_pay_the_captions_met_most_come_first(tmp_path):
    captions_csv([caption("a", 1), caption("b", 7)], None, tmp_path / "captions.csv")
    assert (tmp_path / "captions.csv").read_text().splitlines()[1].startswith("b,helpful,,7,")


def test_pay_for_another_number_of_captions_is_refused(tmp_path):
    with pytest.raises(ValueError, match="2 entries for 1 captions"):
        captions_csv([caption("a")], np.zeros(2), tmp_path / "captions.csv")
    assert not (tmp_path / "captions.csv").exists()


def test_the_table_shows_the_best_paid_with_their_share_and_reads_no_markup_in_captions():
    rows = [caption("[bold]a key[/bold]", 5_000), caption("b"), caption("c", label="")]
    text = text_of(captions_table(rows, np.array([3.0, 1.0, 0.0]), 2, Path("runs/a/captions.csv")))
    assert "[bold]a key[/bold]" in text and "75%" in text and "25%" in text and "5.00k" in text
    assert "1 more in runs/a/captions.csv" in text
    assert "not yet" in text_of(captions_table(rows, None, 3, Path("captions.csv")))


def test_captions_in_the_table_hold_nothing_that_a_terminal_obeys():
    text = text_of(captions_table([caption("The \x1b[2Jdoor\x07 \u202eopens.")], None, 3, Path("captions.csv")))
    assert "The [2Jdoor opens." in text
    assert not {"\x1b", "\x07", "\u202e"} & set(text)


def summary(tmp_path, **changes) -> RunSummary:
    values = {
        "name": "keyroom-2",
        "folder": tmp_path,
        "ended": "the time budget is used",
        "env_steps": 723_600,
        "updates": 57_000,
        "seconds": 301.5,
        "evaluation": EVALUATION,
        "tracking_uri": "sqlite:///runs/mlflow.db",
        "tracking_run_id": "abc",
        "figures": {},
    }
    return RunSummary(**{**values, **changes})


def test_successes_that_are_shares_have_an_interval_of_their_own(tmp_path):
    halves = {"return_mean": 1.0, "returns": [1.0] * 20, "success_rate": 0.5, "successes": [0.5] * 20}
    text = text_of(summary_text(summary(tmp_path, evaluation=halves), np.random.default_rng(0)))
    assert "success 50% (95%: 50% to 50%)" in text, "all of them were half successful: that is no toss of 20 coins"
    wins = {**halves, "successes": [1.0, 0.0] * 10}
    text = text_of(summary_text(summary(tmp_path, evaluation=wins), np.random.default_rng(0)))
    assert "success 50% (95%: 30% to 70%)" in text


def saved(folder):
    (folder / "checkpoints" / "000000723600-0001").mkdir(parents=True)
    assert list_checkpoints(folder / "checkpoints")


def test_a_run_without_a_checkpoint_is_told_to_begin_anew(tmp_path):
    text = " ".join(text_of(summary_text(summary(tmp_path), np.random.default_rng(0))).split())
    assert re.search(r"no checkpoint was saved; anew: \S*onibi train \S+config.yaml", text)
    assert "onibi resume" not in text


def test_the_summary_tells_what_was_trained_evaluated_and_how_to_go_on(tmp_path):
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "learning_curve.png").touch()
    saved(tmp_path)
    text = " ".join(text_of(summary_text(summary(tmp_path), np.random.default_rng(0))).split())
    assert "723,600 env steps (2.40k/s), 57,000 updates, 5:02" in text
    assert "success 50% (95%: 30% to 70%)" in text  # Wilson, 10 of 20: 0.299 to 0.701
    assert "; 20 episodes" in text and "intrinsic return 0.2" in text
    assert "mlflow ui --backend-store-uri sqlite:///runs/mlflow.db" in text
    assert "onibi resume keyroom-2" in text and "learning_curve.png" in text


@pytest.mark.parametrize(
    ("figures", "is_told"),
    [
        ({"learner/reward_intrinsic": 0.0, "annotation/keys": 0.0}, True),
        ({"learner/reward_intrinsic": 0.0, "annotation/keys": 3.0}, False),  # heard, and worth nothing
        ({"annotation/keys": 0.0}, False),  # captions are not to pay
    ],
)
def test_captions_that_were_to_pay_and_of_which_none_was_heard_are_told(tmp_path, figures, is_told):
    text = text_of(summary_text(summary(tmp_path, figures=figures), np.random.default_rng(0)))
    assert ("none was heard in the whole run" in text) == is_told


def test_the_command_to_go_on_names_a_runs_folder_that_onibi_would_not_look_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, told in (("runs", ""), ("my runs", " --runs-folder 'my runs'")):
        shown = summary(tmp_path, folder=Path(folder) / "run-7", name="run-7")
        saved(shown.folder)
        text = text_of(summary_text(shown, np.random.default_rng(0)))
        assert re.search(rf"onibi resume run-7{told}\s*$", text), text


@pytest.mark.parametrize(
    ("ended", "budget", "told"),
    [
        ("finished", "{max_env_steps: 723600, max_seconds: 900}", " --set budget.max_env_steps=1447200"),
        ("finished", "{max_env_steps: null, max_seconds: 300}", " --set budget.max_seconds=604"),
        ("interrupted", "{max_env_steps: 900000, max_seconds: null}", ""),
    ],
)
def test_the_command_to_go_on_raises_a_budget_that_is_used_up(tmp_path, ended, budget, told):
    saved(tmp_path)
    (tmp_path / "config.yaml").write_text(f"budget: {budget}\n")
    text = " ".join(text_of(summary_text(summary(tmp_path, ended=ended), np.random.default_rng(0))).split())
    assert re.search(rf"onibi resume keyroom-2( --runs-folder \S+)?{told}$", text), text


def test_the_summary_of_a_run_that_ended_at_once_leaves_out_what_is_not_there(tmp_path):
    changes = {"evaluation": None, "tracking_uri": None, "tracking_run_id": None, "seconds": 0.0, "env_steps": 0}
    text = text_of(summary_text(summary(tmp_path, **changes), np.random.default_rng(0)))
    assert "evaluated" not in text and "MLflow" not in text and "curve" not in text and "(–/s)" in text


def test_a_tracking_server_is_shown_by_its_address():
    assert mlflow_command("http://host:5000") == "http://host:5000"


def test_the_summary_says_so_where_an_annotator_fails_at_the_end(tmp_path):
    figures = {"annotators": 2.0, "annotators_failing": 1.0, "keys_labelled": 0.0, "keys_askable": 5.0}
    told = {f"annotation/{name}": value for name, value in figures.items()}
    text = " ".join(text_of(summary_text(summary(tmp_path, figures=told), np.random.default_rng(0))).split())
    assert "annotators 1 of 2 could not judge at the end" in text and "0 of 5 keys have a label" in text
    told["annotation/annotators_failing"] = 0.0
    text = text_of(summary_text(summary(tmp_path, figures=told), np.random.default_rng(0)))
    assert "could not judge" not in text


def test_commands_are_told_as_they_can_be_typed(tmp_path, monkeypatch):
    scripts = tmp_path / ".venv" / "bin"
    scripts.mkdir(parents=True)
    (scripts / "onibi").write_text("#!/bin/sh\n")
    (scripts / "onibi").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(scripts / "python"))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    assert typed_as("onibi") == ".venv/bin/onibi"
    assert typed_as("mlflow") == "mlflow", "what is not there has no path"
    monkeypatch.chdir("/usr")
    assert typed_as("onibi") == str(scripts / "onibi")
    monkeypatch.setenv("PATH", str(scripts))
    assert typed_as("onibi") == "onibi", "an environment that is activated"
    other = tmp_path / "another"
    other.mkdir()
    (other / "onibi").symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(other))
    assert typed_as("onibi") == str(scripts / "onibi"), "what the shell would find is another environment's"


def test_commands_of_a_path_with_blanks_can_be_pasted(tmp_path, monkeypatch):
    scripts = tmp_path / "my project" / "bin"
    scripts.mkdir(parents=True)
    (scripts / "mlflow").touch()
    monkeypatch.setattr(sys, "executable", str(scripts / "python"))
    monkeypatch.setenv("PATH", "/nowhere")
    typed = shlex.split(mlflow_command("sqlite:////my runs/mlflow.db"))
    assert typed == [str(scripts / "mlflow"), "ui", "--backend-store-uri", "sqlite:////my runs/mlflow.db"]
