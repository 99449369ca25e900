from __future__ import annotations

import csv
import dataclasses
import io
import math
import re
import sys

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from onibi.actors.annotators.registry import ANNOTATORS
from onibi.actors.annotators.similarity import SimilarityAnnotator
from onibi.actors.captioners.nethack import ARTIFACTS, caption_of, key_text
from onibi.clusters.cli.main import app
from onibi.clusters.judging.annotator_benchmark import benchmark_table, run_benchmark
from onibi.clusters.judging.judged_captions import SHIPPED, HandLabel, read_judged_captions
from onibi.platform.annotation.annotator import AnnotationRequest
from onibi.platform.annotation.judge_scores import roc_auc
from onibi.platform.annotation.labels import LabelValue
from onibi.platform.errors import AnnotatorError, BudgetSpentError, ConfigError

GOALS = ("descend", "combat", "collect")


def test_the_shipped_set_holds_500_real_captions_and_more_with_a_verdict_for_three_goals():
    judged = read_judged_captions()
    assert tuple(judged.goals) == GOALS
    assert len(judged.captions) >= 500
    for goal in GOALS:
        kept = judged.for_goal(goal)
        assert len(kept) >= 0.85 * len(judged.captions), "what is left out is the exception"
        helpful = [caption.key for caption, is_helpful in kept if is_helpful]
        assert len(helpful) >= 35


def test_every_shipped_caption_is_one_that_the_captioner_makes_and_asks_about():
    for caption in read_judged_captions().captions:
        assert key_text(caption.caption) == caption.key
        found = caption_of(caption.caption, 4, ARTIFACTS).keys
        assert [(key.text, key.askable) for key in found] == [(caption.key, True)], caption.caption


def test_the_shipped_file_is_sorted_so_that_changes_can_be_reviewed():
    with SHIPPED.open(encoding="utf-8", newline="") as opened:
        keys = [row["key"] for row in csv.DictReader(opened)]
    assert keys == sorted(keys)


VERDICTS = [  # what nobody would judge otherwise
    ("There is a staircase down here.", "helpful", "unhelpful", "unhelpful"),
    ("You kill the newt!", "unhelpful", "helpful", "unhelpful"),
    ("$ - # gold pieces.", "unhelpful", "unhelpful", "helpful"),
    ("This door is locked.", "unhelpful", "unhelpful", "unhelpful"),
    ("You die...", "unhelpful", "unhelpful", "unhelpful"),
]


@pytest.mark.parametrize(("key", "descend", "combat", "collect"), VERDICTS)
def test_plain_cases_have_plain_verdicts(key, descend, combat, collect):
    (found,) = [caption for caption in read_judged_captions().captions if caption.key == key]
    assert tuple(found.labels[goal] for goal in GOALS) == (descend, combat, collect)


SMALL = """key,caption,loot,fight
You kill it!,You kill it!,unhelpful,helpful
You find gold.,You find gold.,helpful,unhelpful
You find a gem.,You find a gem.,helpful,unhelpful
You wait.,You wait.,unhelpful,unhelpful
You yawn.,You yawn.,leave_out,unhelpful
"""


@pytest.fixture
def small(tmp_path):
    (tmp_path / "goals.yaml").write_text("loot: Find gold and gems.\nfight: Kill it.\n", encoding="utf-8")
    path = tmp_path / "small.csv"
    path.write_text(SMALL, encoding="utf-8")
    return path


def test_an_annotator_is_asked_the_goals_of_the_set_and_left_out_captions_count_for_nobody(small):
    rows = run_benchmark("similarity", captions=small)
    assert [(row.goal, row.asked_goal, row.own_goal) for row in rows] == [
        ("loot", "Find gold and gems.", False),
        ("fight", "Kill it.", False),
    ]
    assert [row.scores.captions for row in rows] == [4, 5]
    assert [row.scores.helpful for row in rows] == [2, 1]
    assert rows[0].scores.auc.value == rows[1].scores.auc.value == 1.0
    assert rows[0].scores.unlabelled_share == 0.0
    assert rows[0].captions_per_second > 0


def test_a_goal_of_ones_own_is_asked_for_all_and_marked(small):
    (row,) = run_benchmark("similarity", ["goal=Kill it."], ["loot"], captions=small)
    assert (row.asked_goal, row.own_goal) == ("Kill it.", True)
    assert row.scores.auc.value < 0.5
    table = Console(width=200, record=True)
    table.print(benchmark_table([row]))
    shown = table.export_text()
    assert "loot *" in shown
    assert "it judges its own goal" in shown


def test_all_ones_has_an_auc_of_a_half_and_the_precision_of_the_share(small):
    (row,) = run_benchmark("lexicon", ["lexicon=all_ones"], ["loot"], captions=small)
    scores = row.scores
    assert (scores.auc.value, scores.precision.value, scores.recall.value) == (0.5, 2 / 4, 1.0)
    assert row.own_goal, "a lexicon judges the goal that its rules were written for"


class Judging(SimilarityAnnotator):
    """Similarity with faults: unreadable replies, an empty budget, a server that is never there."""

    fault = ""

    def annotate(self, requests, goal):
        if self.fault == "gone":
            raise AnnotatorError("the server is gone")
        for number, label in enumerate(super().annotate(requests, goal)):
            if self.fault == "budget" and number == 1:
                raise BudgetSpentError("10 of 10 requests are spent")
            if self.fault == "unreadable" and label.key_text.endswith("gem."):
                yield type(label)(**{**vars(label), "value": LabelValue.INVALID, "score": math.nan, "tokens": 7})
            else:
                yield type(label)(**{**vars(label), "tokens": 5, "cost": 0.25})


@pytest.fixture
def faulty(monkeypatch):
    def use(fault):
        monkeypatch.setattr(Judging, "fault", fault)
        monkeypatch.setitem(ANNOTATORS, "similarity", f"{__name__}:Judging")

    monkeypatch.setitem(
        sys.modules, __name__, sys.modules.get(__name__) or __import__("types").SimpleNamespace(Judging=Judging)
    )
    return use


def test_what_cannot_be_read_is_asked_again_and_stays_without_a_label(small, faulty):
    faulty("unreadable")
    (row,) = run_benchmark("similarity", (), ["loot"], captions=small)
    assert row.scores.labelled == 3
    assert row.scores.recall.value == 0.5, "a helpful caption without a label is missed"
    assert row.tokens == 3 * 5 + 3 * 7, "asked three times"
    assert row.cost == pytest.approx(0.75)


def test_at_80_columns_every_figure_can_be_read(small):
    rows = run_benchmark("similarity", captions=small)
    for width, headings in ((None, 1), (200, 1), (80, 2)):
        console = Console(width=width or 200, record=True, file=io.StringIO())
        console.print(benchmark_table(rows, width))
        lines = console.export_text().splitlines()
        assert max(map(len, lines)) <= console.width
        assert not any("…" in line for line in lines)
        assert sum("goal" in line for line in lines) == headings
        words = {word for line in lines if "goal" in line for word in line.replace("┃", " ").split()}
        named = {"goal", "captions", "helpful", "AUC", "precision", "recall", "unlabelled", "captions/s", "tokens"}
        assert words >= named | {"cost"}, "no column is left out"
    assert "annotator: similarity" in "\n".join(lines)


def test_names_from_outside_hold_nothing_that_a_terminal_obeys(small):
    (row,) = run_benchmark("similarity", (), ["loot"], captions=small)
    row = dataclasses.replace(row, model="a[bold]b\x1b[2J", stopped_by="no [/] \x1b]0;mine\x07")
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(benchmark_table([row]))
    shown = console.export_text()
    assert "a[bold]b [2J" in shown and "no [/] ]0;mine" in shown


def test_a_spent_budget_ends_the_asking_and_is_told(small, faulty):
    faulty("budget")
    (row,) = run_benchmark("similarity", (), ["loot"], captions=small)
    assert row.scores.labelled == 2
    assert "10 of 10 requests are spent" in row.stopped_by
    shown = Console(width=200, record=True)
    shown.print(benchmark_table([row]))
    assert "10 of 10 requests are spent" in shown.export_text()


def test_a_judge_that_never_answers_is_an_error_that_says_why(small, faulty):
    faulty("gone")
    with pytest.raises(AnnotatorError, match="no label that can be read for any of 4 captions: the server is gone"):
        run_benchmark("similarity", (), ["loot"], captions=small)


def test_a_limit_draws_of_both_kinds_and_the_same_ones_again():
    first, again = (run_benchmark("similarity", (), ["combat"], limit=60, seed=5)[0].scores for _ in range(2))
    assert (first.auc, first.recall) == (again.auc, again.recall)
    assert first.captions == 60
    kept = read_judged_captions().for_goal("combat")
    assert first.helpful == round(60 * sum(is_helpful for _, is_helpful in kept) / len(kept))
    with pytest.raises(ConfigError, match="--limit 1"):
        run_benchmark("similarity", (), ["combat"], limit=1)


def test_the_table_says_what_a_plain_count_says():
    (row,) = run_benchmark("similarity", (), ["collect"])
    judged = read_judged_captions()
    annotator = SimilarityAnnotator(SimilarityAnnotator.Settings(goal=judged.goals["collect"]))
    kept = judged.for_goal("collect")
    requests = [AnnotationRequest(key=0, key_text=caption.key, raw_text=caption.caption) for caption, _ in kept]
    labels = {label.key_text: label for label in annotator.annotate(requests, annotator.goal)}
    truth = np.array([is_helpful for _, is_helpful in kept])
    score = np.array([labels[caption.key].score for caption, _ in kept])
    assert row.scores.auc.value == pytest.approx(roc_auc(truth, score))


FAULTS = [
    ("key,loot\na,helpful\n", "it needs key, caption, and one for each goal"),
    ("key,caption,loot,luck\na,a,helpful,helpful\n", "not known: luck"),
    ("key,caption,loot\na,a,good\n", "line 2: loot is 'good'; allowed: helpful, unhelpful, leave_out"),
    ("key,caption,loot\na,a,helpful\na,b,helpful\n", "line 3: the key 'a' stands in line 2, too"),
    ("key,caption,loot\na,,helpful\n", "line 2: caption is empty"),
    ("key,caption,loot\n", "it holds no captions"),
]


@pytest.mark.parametrize(("text", "message"), FAULTS)
def test_a_set_at_fault_is_told_with_its_line(small, text, message):
    small.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_judged_captions(small)


def test_a_set_that_a_spreadsheet_saved_is_read(small):
    plain = read_judged_captions(small)
    small.write_text(small.read_text(encoding="utf-8").replace("\n", "\r\n"), encoding="utf-8-sig")
    assert read_judged_captions(small) == plain


def test_a_missing_set_and_an_unknown_goal_are_told(small, tmp_path):
    with pytest.raises(ConfigError, match=r"has no goal 'win'; it was judged for loot, fight"):
        run_benchmark("similarity", (), ["win"], captions=small)
    (tmp_path / "goals.yaml").unlink()
    with pytest.raises(ConfigError, match=r"captions judged by hand: .*no\.csv cannot be read .* name a CSV file"):
        read_judged_captions(tmp_path / "no.csv")
    with pytest.raises(ConfigError, match=r"goals of captions .* cannot be read .* beside the captions"):
        read_judged_captions(small)
    (tmp_path / "goals.yaml").write_text("- a\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="must map names of goals"):
        read_judged_captions(small)
    assert HandLabel("helpful") is HandLabel.HELPFUL


def annotate(*arguments):
    found = CliRunner().invoke(app, ["annotate", *arguments])
    return found.exit_code, found.output + (found.stderr if found.stderr_bytes is not None else "")


def test_the_command_prints_a_row_for_each_goal(small):
    code, shown = annotate("--benchmark", "--annotator", "similarity", "--captions", str(small))
    assert code == 0
    assert "loot: asked 'Find gold and gems.'" in shown
    assert "fight: asked 'Kill it.'" in shown
    assert "AUC" in shown


def test_one_goal_that_is_asked_for_all_is_told_once(small):
    code, shown = annotate("--benchmark", "--annotator", "lexicon", "--captions", str(small))
    assert code == 0
    assert shown.count("Make progress") == 1, shown
    assert re.search(
        r"^loot, fight: asked 'Make progress.*'; first label after \d+\.\d s, \d+\.\d s$", shown, re.MULTILINE
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name a SOURCE"),
        (("last", "--benchmark"), "captions of its own, not about last"),
        (("last", "--goal", "combat"), "--goal does nothing without --benchmark"),
        (("--benchmark", "--pairs", "3", "--estimate"), "--pairs, --estimate does nothing with --benchmark"),
        (("--benchmark", "--goal", "win"), "has no goal 'win'"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments, message):
    code, shown = annotate(*arguments)
    assert code == 2
    assert message in shown
