"""`onibi evaluate` over seeds: groups, tables, JSON and curves, of an experiment's CSV and of real runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from onibi.clusters.experiments.result_table import write_rows
from onibi.clusters.judgement import FIGURES
from onibi.clusters.reports import seed_curves
from onibi.clusters.reports.seed_curves import common_grid, seed_curves_png
from onibi.clusters.reports.seed_report import SeedScore, scores_of_runs, scores_of_table, seed_report
from onibi.platform.errors import ConfigError
from onibi.platform.run_folder import create_run


def row(arm, seed, score, **changes):
    made = {"arm": arm, "seed": str(seed), "score": str(score), "task": "t", "group": arm, "config_hash": "ab"}
    return made | {"status": "ok", "stage": "final", "normalized": "", "direction": "higher", "curve": ""} | changes


def onibi(*arguments, cwd):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ONIBI_")}
    return subprocess.run(
        [sys.executable, "-m", "onibi", *map(str, arguments)],
        cwd=cwd,
        text=True,
        capture_output=True,
        timeout=240,
        env={**kept, "COLUMNS": "200", "NO_COLOR": "1"},
    )


def test_a_table_is_told_by_group_with_the_chance_that_one_beats_the_other(tmp_path):
    write_rows(tmp_path / "e.csv", [row("dqn", s, s) for s in (1, 2, 3)] + [row("ppo", s, s + 1) for s in (1, 2, 3)])
    finished = onibi("evaluate", "e.csv", "--json", "--target", "3", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    report = json.loads(finished.stdout)
    dqn, ppo = report["groups"]
    assert (dqn["group"], dqn["runs"], dqn["mean"]["value"], dqn["gap"]["value"]) == ("dqn", 3, 2.0, 1.0)
    assert (ppo["group"], ppo["mean"]["value"]) == ("ppo", 3.0)
    (improvement,) = report["improvements"]
    # dqn 1 2 3 over ppo 2 3 4: one pair of nine is won, two are ties
    assert improvement["probability"]["value"] == pytest.approx((1 + 2 * 0.5) / 9)
    shown = onibi("evaluate", "e.csv", "--baseline", "dqn", cwd=tmp_path).stdout
    assert "Probability of improvement" in shown


@pytest.mark.parametrize("target", [None, 4.0])
def test_no_cell_of_a_table_is_broken_on_80_columns(target):
    groups = ("my-long-named-variant", "its-baseline")
    scores = [SeedScore(group, "LunarLander-v3", str(s), s / 30, None) for group in groups for s in (1, 2, 3)]
    shown = {}
    for width in (80, 200):
        console = Console(width=width)
        with console.capture() as captured:
            for table in seed_report(scores, target, None).tables(width):
                console.print(table)
        shown[width] = [line.rstrip() for line in captured.get().splitlines()]
    assert shown[80][:4] == [
        "Over seeds: LunarLander-v3",
        "figure  group                  runs  value (95%)",
        "IQM     my-long-named-variant     3  0.0667 (0.0333 to 0.1)",
        "        its-baseline              3  0.0667 (0.0333 to 0.1)",
    ]
    figures = ["IQM", "mean", "median", *["gap"] * (target is not None)]
    assert [line.split()[0] for line in shown[80][2 : 2 + 2 * len(figures) : 2]] == figures
    assert len(shown[80]) == 2 + 2 * len(figures) + 3, "a line each, and the chance of improvement"
    assert len(shown[200]) == 2 + 2 + 3, "where there is room, a line for each group"


def test_groups_without_a_common_task_are_told_not_to_be_compared(tmp_path):
    one = [SeedScore("wh", "warehouse", str(seed), 1.0, None) for seed in range(3)]
    other = [SeedScore("cp", "cartpole", str(seed), 500.0, None) for seed in range(3)]
    for baseline in (None, "wh"):
        report = seed_report([*one, *other], None, baseline)
        assert report.improvements == []
        assert len(report.notes) == 1
        assert "are not compared: they have no task in common" in report.notes[0]
    alone = seed_report(one, None, "wh")
    assert "nothing is compared with wh" in alone.notes[0]
    same = [SeedScore("cp", "warehouse", str(seed), 0.0, None) for seed in range(3)]
    assert seed_report([*one, *same], None, "wh").notes == []
    assert seed_report(one, None, None).notes == []
    write_rows(tmp_path / "e.csv", [row("wh", 1, 1, task="a"), row("cp", 1, 1, task="b")])
    shown = onibi("evaluate", "e.csv", "--baseline", "wh", cwd=tmp_path)
    assert "cp and wh are not compared" in shown.stdout, shown.stderr


def test_where_lower_is_better_the_lower_run_is_the_improvement():
    low = [SeedScore("a", "t", str(seed), 0.1, None, is_higher_better=False) for seed in range(3)]
    high = [SeedScore("b", "t", str(seed), 0.9, None, is_higher_better=False) for seed in range(3)]
    report = seed_report([*low, *high], None, None)
    assert report.improvements[0].probability.value == 1.0
    assert report.groups[0].mean.value == pytest.approx(0.1)


def test_where_lower_is_better_the_gap_is_how_far_runs_stay_above_the_target(tmp_path):
    rows = [row("a", seed, score, direction="lower") for seed, score in ((1, 0.01), (2, 0.03), (3, 0.08))]
    write_rows(tmp_path / "e.csv", rows)
    (told,) = seed_report(scores_of_table(tmp_path / "e.csv"), 0.02, None).groups
    assert told.gap.value == pytest.approx((0 + 0.01 + 0.06) / 3)  # 0.01 is better than the target and counts as it
    assert 0 <= told.gap.low <= told.gap.value <= told.gap.high
    assert told.mean.value == pytest.approx(0.04)


def test_a_target_of_a_task_with_two_directions_is_refused():
    scores = [SeedScore(group, "t", "1", 0.5, None, is_higher_better=group == "a") for group in "ab"]
    with pytest.raises(ConfigError, match="--target: on t higher is better for some runs"):
        seed_report(scores, 0.4, None)
    assert len(seed_report(scores, None, None).groups) == 2


def test_tasks_are_averaged_by_normalized_scores_alone():
    scores = [
        SeedScore("a", task, str(seed), 100.0, value) for task, value in (("t", 0.5), ("u", 1.0)) for seed in (1, 2)
    ]
    scores += [SeedScore("b", task, str(seed), 100.0, None) for task in ("t", "u") for seed in (1, 2)]
    wide = [each for each in seed_report(scores, None, None).groups if each.task.endswith("normalized")]
    assert [(each.task, each.group, each.runs, each.mean.value, each.gap.value) for each in wide] == [
        ("its 2 tasks, normalized", "a", 4, 0.75, 0.25)
    ]


def test_rows_that_failed_were_tuned_or_have_older_settings_do_not_count(tmp_path, caplog):
    rows = [
        row("a", 1, 5, config_hash="old"),
        row("a", 1, 1),
        row("a", 2, 2),
        row("a", 3, "", status="failed"),
        row("a", 9, 9, stage="tuning", config_hash="other"),
    ]
    write_rows(tmp_path / "e.csv", rows)
    assert [each.score for each in scores_of_table(tmp_path / "e.csv")] == [1.0, 2.0]
    assert "rows of older settings left out: 1" in caplog.text


def test_a_csv_of_two_experiments_tells_of_both_and_mixes_them_not(tmp_path):
    """The shorter one has arms of the same names, on the same task: its rows are no older ones of the longer."""
    write_rows(
        tmp_path / "e.csv",
        [row("dqn", 1, 0.9, experiment="long"), row("dqn", 1, 0.5, experiment="short", config_hash="cd")],
    )
    found = scores_of_table(tmp_path / "e.csv")
    assert [(each.task, each.score) for each in found] == [("t (long)", 0.9), ("t (short)", 0.5)]


@pytest.mark.parametrize(
    "damage", [{"score": "1.O"}, {"score": ""}, {"normalized": "x"}, {"curve": "0:1 100:"}, {"curve": "0:1 100"}]
)
def test_a_number_that_is_damaged_is_told_with_its_row(tmp_path, damage):
    write_rows(tmp_path / "e.csv", [row("a", 1, 0.5), {**row("b", 2, 0.5), **damage}])
    with pytest.raises(ConfigError, match=r"e\.csv: the row of arm b, seed 2 is damaged: .* Mend or remove it"):
        scores_of_table(tmp_path / "e.csv")


def test_points_of_a_curve_stand_in_order_and_those_without_a_number_are_left_out(tmp_path):
    write_rows(tmp_path / "e.csv", [row("a", 1, 0.5, curve="100:3 0:1 200:nan 50:2")])
    assert scores_of_table(tmp_path / "e.csv")[0].curve == ((0.0, 1.0), (50.0, 2.0), (100.0, 3.0))


@pytest.mark.parametrize("content", [None, "", "claim,seed,config_hash\na,1,b\n"])
def test_a_file_that_is_no_experiments_is_refused(tmp_path, content):
    path = tmp_path / "e.csv"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match="experiment"):
        scores_of_table(path)


def test_an_unknown_baseline_is_refused_with_the_groups_there_are():
    with pytest.raises(ConfigError, match="Allowed: a"):
        seed_report([SeedScore("a", "t", "1", 1.0, None)], None, "b")


def test_curves_meet_where_all_runs_were_evaluated():
    steps, values = common_grid([[(0, 0.0), (10, 10.0)], [(2, 0.0), (8, 6.0), (20, 6.0)]])
    assert steps.tolist() == [2, 8, 10], "every evaluation that all have reached, and nothing made up in between"
    np.testing.assert_allclose(values, [[2, 8, 10], [0, 6, 6]])


def test_curves_are_drawn_as_a_png_or_not_at_all(tmp_path):
    curve = ((1.0, 0.0), (2.0, 1.0))
    scores = [SeedScore(group, "t", str(seed), 1.0, None, curve=curve) for group in "ab" for seed in (1, 2)]
    assert seed_curves_png(scores, tmp_path / "c.png", "title")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert not seed_curves_png([SeedScore("a", "t", "1", 1.0, None)], tmp_path / "none.png", "title")
    assert not (tmp_path / "none.png").exists()


def test_a_run_named_by_its_folder_is_played_though_another_of_its_name_lies_in_the_runs_folder(workshop):
    workshop.train("a")
    shutil.copytree(workshop.runs / "a", workshop.runs.parent / "other" / "a")
    for checkpoint in (workshop.runs / "a" / "checkpoints").iterdir():  # so the one beside cannot be played
        shutil.rmtree(checkpoint) if checkpoint.is_dir() else checkpoint.unlink()
    (score,) = scores_of_runs([str(workshop.runs.parent / "other" / "a")], workshop.runs, "last", 4, 10_000)
    assert (score.run, score.task.split(" ")[0]) == ("a", "onibi.actors.environments.corridor:make")


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Makes run folders that hold settings alone; playing one tells 1 for every figure."""

    def play(*_):
        figures = {name: SimpleNamespace(mean=1.0) for name in FIGURES}
        return SimpleNamespace(players=[SimpleNamespace(**figures)])

    def record(name, *, runs="runs", seed=1, rate=0.1, judge="episode_return"):
        folder = create_run(tmp_path / runs, name)
        environment = {"id": "Toy-v0", "kwargs": {}}
        settings = {"seed": seed, "rate": rate, "environment": environment, "evaluation": {"judge": judge}}
        folder.write_config(settings)
        return str(folder.path)

    monkeypatch.setattr("onibi.clusters.reports.seed_report.evaluate", play)
    return record


def groups_of(names, tmp_path):
    return [(each.run, each.group) for each in scores_of_runs(names, tmp_path / "runs", "last", 4, 10_000)]


def test_runs_of_other_settings_never_share_a_groups_name(recorded, tmp_path):
    names = [recorded("dqn-1"), recorded("dqn-2", seed=2), recorded("dqn-3", rate=0.2)]
    names += [recorded("dqn-3", runs="other", rate=0.3), recorded("dqn-3", runs="third", rate=0.4)]
    assert groups_of(names, tmp_path) == [
        ("dqn-1", "dqn"),
        ("dqn-2", "dqn"),
        ("dqn-3", "dqn-3"),
        ("dqn-3", "dqn-3 (2)"),
        ("dqn-3", "dqn-3 (3)"),
    ]


@pytest.mark.parametrize(
    ("again", "told"), [("dqn-1", "is named twice"), ("last", "is named as 'dqn-1' and as 'last'")]
)
def test_a_run_that_is_named_twice_is_refused_and_not_counted_as_two(recorded, tmp_path, again, told):
    recorded("dqn-1")
    with pytest.raises(ConfigError, match=f"{told}; it counts once"):
        groups_of(["dqn-1", again], tmp_path)


def test_a_seed_that_a_group_has_twice_is_warned_of(recorded, tmp_path, caplog):
    groups_of([recorded("a-1"), recorded("a-2", seed=2), recorded("b-1", rate=0.2)], tmp_path)
    assert caplog.text == ""
    groups_of([recorded("a-3"), recorded("a-4")], tmp_path)
    assert "a-3 and a-4 have the same settings and seed 1" in caplog.text


def test_runs_of_one_task_that_are_judged_by_different_figures_are_refused(recorded, tmp_path):
    names = [recorded("a-1"), recorded("b-1", judge="success")]
    with pytest.raises(ConfigError, match=r"on Toy-v0 the run a-1 is judged by return and b-1 by success .*apart"):
        groups_of(names, tmp_path)


@pytest.mark.parametrize(("runs", "bands"), [(2, 0), (3, 1)])
def test_a_band_is_drawn_of_three_runs_and_not_of_two(runs, bands):
    scores = [SeedScore("a", "t", str(seed), 1.0, None, curve=((1.0, 0.0), (2.0, seed))) for seed in range(runs)]
    axis = Figure().subplots()
    seed_curves._draw(axis, "t", scores, {"a": seed_curves._look(0)})
    assert len(axis.collections) == bands


def test_curves_of_a_task_say_what_is_drawn_and_no_two_groups_look_alike(tmp_path):
    curve, axis = ((1.0, 0.0), (2.0, 1.0)), Figure().subplots()
    score = SeedScore("a", "t", "1", 1.0, None, curve=curve, figure="success, evaluated")
    seed_curves._draw(axis, "t", [score], {"a": seed_curves._look(0)})
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("env steps", "success, evaluated")
    looks = [tuple(seed_curves._look(index).values()) for index in range(18)]
    assert len(set(looks)) == 18
    write_rows(tmp_path / "e.csv", [row("a", 1, 1, judge="success"), row("b", 1, 1)])
    assert [each.figure for each in scores_of_table(tmp_path / "e.csv")] == ["success, evaluated", "evaluated"]


def test_curves_that_do_not_overlap_have_no_mean():
    steps, values = common_grid([[(0, 0.0), (1, 1.0)], [(5, 0.0), (6, 1.0)]])
    assert (steps.shape, values.shape) == ((0,), (2, 0))
    curves = (((0.0, 0.0), (1.0, 1.0)), ((5.0, 0.0), (6.0, 1.0)))
    scores = [SeedScore("a", "t", str(seed), 1.0, None, curve=curve) for seed, curve in enumerate(curves)]
    axis = Figure().subplots()
    seed_curves._draw(axis, "t", scores, {"a": seed_curves._look(0)})
    assert len(axis.lines) == 3, "the two runs, and the name in the legend"


@pytest.mark.slow
def test_runs_that_differ_in_the_seed_alone_are_one_group(workshop, tmp_path):
    evaluation = {"period_env_steps": 200, "episodes": 4, "envs": 2}
    for seed, rate, name in ((1, 5e-4, "slow-1"), (2, 5e-4, "slow-2"), (1, 1e-3, "fast-1")):
        workshop.train(name, seed=seed, learner__learning_rate=rate, evaluation=evaluation)
    names = ["slow-1", "slow-2", "fast-1"]
    finished = onibi(
        "evaluate", *names, "--episodes", 4, "--json", "--curves", "c.png", "--runs-folder", workshop.runs, cwd=tmp_path
    )
    assert finished.returncode == 0, finished.stderr
    report = json.loads(finished.stdout)
    assert [(each["group"], each["runs"]) for each in report["groups"]] == [("slow", 2), ("fast", 1)]
    assert len(report["improvements"]) == 1
    assert (tmp_path / "c.png").exists()
    one = onibi("evaluate", "slow-1", "--episodes", 4, "--json", "--runs-folder", workshop.runs, cwd=tmp_path)
    assert json.loads(one.stdout)["players"][0]["episodes"] == 4


@pytest.mark.parametrize(
    "arguments",
    [("last", "--baseline", "a"), ("e.csv", "--episodes", "3"), ("a", "b", "--against", "random"), ("e.csv", "a")],
)
def test_an_option_that_would_do_nothing_is_refused(tmp_path, arguments):
    finished = onibi("evaluate", *arguments, cwd=tmp_path)
    assert finished.returncode == 2
    assert finished.stderr.startswith("onibi: evaluate: ")
