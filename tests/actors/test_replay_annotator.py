"""Recorded labels and preferences, given again: the same ones, to the same keys, and nothing made up."""

from __future__ import annotations

import math
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from onibi.actors.annotators.lexicon import LexiconAnnotator, LexiconSettings
from onibi.actors.annotators.model_server import ServerSettings
from onibi.actors.annotators.openai import OpenaiSettings
from onibi.actors.annotators.replay import ReplayAnnotator, ReplaySettings
from onibi.platform.annotation.annotator import AnnotationRequest, Interruptible, PairRequest, with_votes
from onibi.platform.annotation.estimate import NOTHING, Estimating
from onibi.platform.annotation.labels import LabelValue, PreferenceValue, labels_to_arrow, preferences_to_arrow
from onibi.platform.annotation.recorded_verdicts import read_verdicts
from onibi.platform.annotation.table import AnnotationTable
from onibi.platform.errors import CaptionError, ConfigError

DOOR, MIND, NEWT, NEW = "The door opens.", "Never mind.", "You kill the newt!", "A new thing."


def request(text, vote=0, number=0):
    return AnnotationRequest(key=number, key_text=text, raw_text=f"raw {text}", vote=vote)


def recorded(lexicon="nethack", votes=1):
    """What the lexicon says of three keys."""
    judge = LexiconAnnotator(LexiconSettings(lexicon=lexicon))
    asked = [[request(text, vote) for text in (DOOR, MIND, NEWT)] for vote in range(votes)]
    return [label for batch in asked for label in with_votes(judge.annotate(batch, judge.goal), batch)]


@pytest.fixture
def keep(tmp_path):
    def write(labels=(), preferences=()):
        table = AnnotationTable(tmp_path / "table")
        table.append([*labels, *preferences])
        table.close()
        return str(tmp_path / "table")

    return write


def ask(annotator, *texts, vote=0):
    return {label.key_text: label for label in annotator.annotate([request(t, vote) for t in texts], annotator.goal)}


def test_recorded_labels_come_back_free_of_cost_and_as_this_annotators_own(keep):
    labels = [replace(label, tokens=7, cost=0.5, latency_seconds=3.0) for label in recorded()]
    annotator = ReplayAnnotator(ReplaySettings(path=keep(labels)), clock=lambda: 9.0)
    given = ask(annotator, NEWT, DOOR)
    assert [given[text].value for text in (DOOR, NEWT)] == [LabelValue.HELPFUL] * 2
    first = given[DOOR]
    assert (first.annotator, first.tokens, first.cost, first.latency_seconds, first.time_seconds) == (
        "replay",
        0,
        0,
        0,
        9,
    )
    assert (first.reply, first.score) == (labels[0].reply, labels[0].score)
    assert (annotator.model, annotator.goal) == (labels[0].model, labels[0].goal)
    assert annotator.is_free


def test_a_key_that_was_never_judged_is_invalid_and_never_unhelpful(keep):
    annotator = ReplayAnnotator(ReplaySettings(path=keep(recorded())))
    label = ask(annotator, NEW)[NEW]
    assert label.value == LabelValue.INVALID
    assert math.isnan(label.score)
    assert "not recorded in" in label.reply
    assert annotator.statistics() == {"recorded_labels": 3.0, "unknown_keys": 1.0}


def test_a_fallback_judges_what_is_not_recorded_and_only_that(keep):
    fallback = LexiconSettings(lexicon="all_ones")
    annotator = ReplayAnnotator(ReplaySettings(path=keep(recorded()), fallback=fallback))
    given = ask(annotator, MIND, NEW)
    assert (given[MIND].value, given[NEW].value) == (LabelValue.UNHELPFUL, LabelValue.HELPFUL)
    assert {label.prompt_version for label in given.values()} == {annotator.prompt_version}
    assert {label.goal for label in given.values()} == {annotator.goal}
    assert given[NEW].raw_text == f"raw {NEW}"
    alone = ReplayAnnotator(ReplaySettings(path=annotator.settings.path))
    assert alone.prompt_version != annotator.prompt_version


def test_each_vote_is_its_own_and_one_that_was_not_given_is_unknown(keep):
    first, *others = recorded(votes=2)
    changed = [first, *(replace(o, score=0.9) if (o.key_text, o.vote) == (DOOR, 1) else o for o in others)]
    annotator = ReplayAnnotator(ReplaySettings(path=keep(changed)))
    assert ask(annotator, DOOR)[DOOR].score == first.score
    second = ask(annotator, DOOR, vote=1)[DOOR]
    assert (second.score, second.vote) == (pytest.approx(0.9), 1)
    assert ask(annotator, DOOR, vote=2)[DOOR].value == LabelValue.INVALID


def test_of_several_answers_to_one_question_the_newest_readable_one_counts(keep):
    old, *rest = recorded()
    newer = replace(old, value=LabelValue.UNHELPFUL, score=0.25)
    unread = replace(old, value=LabelValue.INVALID, score=math.nan)
    annotator = ReplayAnnotator(ReplaySettings(path=keep([old, *rest, newer, unread])))
    assert ask(annotator, DOOR)[DOOR].score == 0.25


def test_the_newest_answer_counts_whatever_the_order_of_the_files(keep):
    old, *rest = recorded()
    newer = replace(old, value=LabelValue.UNHELPFUL, score=0.25, time_seconds=old.time_seconds + 1)
    assert ask(ReplayAnnotator(ReplaySettings(path=keep([newer, old, *rest]))), DOOR)[DOOR].score == 0.25


def test_a_fallback_that_costs_keeps_its_budget_limits_and_estimate(keep, tmp_path):
    server = ServerSettings(requests_per_minute=60)
    fallback = OpenaiSettings(base_url="http://127.0.0.1:1/v1", model="m", prompt="general", server=server)
    annotator = ReplayAnnotator(ReplaySettings(path=keep(recorded()), fallback=fallback))
    annotator.keep_spending(tmp_path / "spent.json")
    annotator.share_limits(2)
    paid = annotator._fallback
    assert paid._spending_file == tmp_path / "spent.json"
    assert paid._server.requests_per_minute == 30
    assert isinstance(annotator, Estimating) and isinstance(annotator, Interruptible)
    asked = [request(DOOR), request(NEW)]
    assert annotator.estimate(asked) == paid.estimate([request(NEW)])
    pairs = [PairRequest(first=request(DOOR), second=request(other)) for other in (MIND, NEW)]
    assert annotator.estimate(pairs) == paid.estimate([request(NEW)])
    assert annotator.estimate([request(DOOR)]) == NOTHING
    alone = ReplayAnnotator(ReplaySettings(path=annotator.settings.path))
    assert alone.estimate(asked) == NOTHING
    alone.share_limits(2)
    annotator.interrupt()


def test_labels_that_a_replay_gave_itself_do_not_make_its_table_ambiguous(keep):
    path = keep(recorded())
    fallback = LexiconSettings(lexicon="all_ones")
    annotator = ReplayAnnotator(ReplaySettings(path=path, fallback=fallback))
    keep(list(ask(annotator, NEW, DOOR).values()))  # as a run does that keeps its labels there
    again = ReplayAnnotator(ReplaySettings(path=path, fallback=fallback))
    assert again.prompt_version == annotator.prompt_version


def test_a_later_vote_of_a_new_key_is_the_fallbacks(keep):
    fallback = LexiconSettings(lexicon="all_ones")
    annotator = ReplayAnnotator(ReplaySettings(path=keep(recorded(votes=2)), fallback=fallback))
    given = ask(annotator, DOOR, NEW, vote=1)
    assert {text: (label.vote, label.value) for text, label in given.items()} == {
        DOOR: (1, LabelValue.HELPFUL),
        NEW: (1, LabelValue.HELPFUL),
    }


def test_pairs_come_back_in_either_order_and_others_by_the_labels_scores(keep):
    judge = LexiconAnnotator(LexiconSettings())
    told = list(judge.prefer([PairRequest(first=request(DOOR), second=request(MIND))], judge.goal))
    odd = [replace(told[0], value=PreferenceValue.SECOND)]  # against its own labels, so that we see which one counts
    annotator = ReplayAnnotator(ReplaySettings(path=keep(recorded(), odd)))
    pairs = [(DOOR, MIND), (MIND, DOOR), (NEWT, MIND), (NEWT, NEW)]
    asked = [PairRequest(first=request(first), second=request(second)) for first, second in pairs]
    given = {(p.first_text, p.second_text): p.value for p in annotator.prefer(asked, annotator.goal)}
    assert [given[pair] for pair in pairs] == [
        PreferenceValue.SECOND,
        PreferenceValue.FIRST,
        PreferenceValue.FIRST,
        PreferenceValue.INVALID,
    ]


def test_several_judges_are_told_and_one_is_chosen_by_what_it_is(keep):
    path = keep([*recorded(), *recorded("all_ones")])
    with pytest.raises(ConfigError, match="verdicts of 2 judges, exactly one is needed") as caught:
        ReplayAnnotator(ReplaySettings(path=path))
    assert "model 'all_ones'" in str(caught.value)
    chosen = ReplayAnnotator(ReplaySettings(path=path, model="all_ones"))
    assert ask(chosen, MIND)[MIND].value == LabelValue.HELPFUL
    with pytest.raises(ConfigError, match="no judges with model 'gpt'"):
        ReplayAnnotator(ReplaySettings(path=path, model="gpt"))
    versions = {label.prompt_version for label in recorded()}
    assert ReplayAnnotator(ReplaySettings(path=path, prompt_version=versions.pop())).model == "nethack"


def test_files_of_labels_and_of_preferences_are_read_alike(tmp_path):
    judge = LexiconAnnotator(LexiconSettings())
    told = list(judge.prefer([PairRequest(first=request(DOOR), second=request(MIND))], judge.goal))
    pq.write_table(labels_to_arrow(recorded()), tmp_path / "labels.parquet")
    pq.write_table(preferences_to_arrow(told), tmp_path / "preferences.parquet")
    both, alone = read_verdicts(tmp_path), read_verdicts(tmp_path / "preferences.parquet")
    assert (len(both.labels), len(both.preferences), len(both.judges)) == (3, 1, 1)
    assert (alone.labels, len(alone.preferences)) == ((), 1)


@pytest.mark.parametrize(
    ("name", "content", "error", "found"),
    [
        ("nothing", None, ConfigError, "holds no labels"),
        ("labels.parquet", b"PAR1 or not", CaptionError, "cannot be read as a table of labels"),
        ("labels.csv", b"key,label", ConfigError, "holds no labels"),
    ],
)
def test_what_is_no_table_of_labels_is_refused_by_name(tmp_path, name, content, error, found):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=found):
        ReplayAnnotator(ReplaySettings(path=str(tmp_path / name)))
    if content == b"key,label":
        pq.write_table(labels_to_arrow(recorded()).select(["key_text"]), tmp_path / "other.parquet")
        with pytest.raises(CaptionError, match="labels have"):
            read_verdicts(tmp_path / "other.parquet")
