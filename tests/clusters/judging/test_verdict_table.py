from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from onibi.clusters.judging.verdict_table import label_table, preference_table
from onibi.platform.annotation.annotator import AnnotationRequest, PairRequest, label_for, prefer_by_scores
from onibi.platform.annotation.labels import Judge, PreferenceValue
from onibi.platform.annotation.stored_captions import StoredCaptions, StoredKey

JUDGE = Judge("v", "m", "g")


def captions(*texts):
    """The first one was met most."""
    return StoredCaptions("here", tuple(StoredKey(text, text, 100 - place) for place, text in enumerate(texts)))


def label(text, score, vote=0, reply=""):
    return label_for(JUDGE, AnnotationRequest(key=0, key_text=text, raw_text=text, vote=vote), score, reply=reply)


def request_of(text):
    return AnnotationRequest(key=0, key_text=text, raw_text=text)


def lines_of(table):
    console = Console(file=io.StringIO(), width=160)
    console.print(table)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_helpful_captions_come_first_and_in_both_parts_those_met_most():
    stored = captions("wall", "door", "newt", "key", "not judged")
    labels = [label("key", 0.9), label("wall", 0.1), label("door", 0.6, reply="a door\nopens"), label("newt", 0.2)]
    labels += [label("elsewhere", 1.0), label("wall", None)]
    title, head, *rows, rest = lines_of(label_table(stored, labels))
    assert title.startswith("Verdicts")
    assert head.split() == ["label", "score", "met", "caption", "reply"]
    assert [row.split() for row in rows] == [
        ["helpful", "0.60", "99", "door", "a", "door", "opens"],
        ["helpful", "0.90", "97", "key"],
        ["unhelpful", "0.10", "100", "wall"],
        ["unhelpful", "0.20", "98", "newt"],
    ]
    assert rest == "All of it as a table: --export FILE.parquet"


def test_votes_are_averaged_and_the_newest_of_each_counts():
    labels = [label("door", 0.0), label("door", 0.9, vote=1), label("door", 0.3)]
    (row,) = [line for line in lines_of(label_table(captions("door"), labels)) if "door" in line]
    assert row.split()[:2] == ["helpful", "0.60"]  # (0.3 + 0.9) / 2


def test_ten_of_each_are_shown_and_long_replies_are_cut():
    texts = [f"caption {number}" for number in range(30)]
    given = [label(text, float(number % 2), reply="x" * 500) for number, text in enumerate(texts)]
    lines = lines_of(label_table(captions(*texts), given))
    assert sum(line.startswith("helpful") for line in lines) == 10
    assert sum(line.startswith("unhelpful") for line in lines) == 10
    assert lines[-1].startswith("10 more. All of it")
    assert not any("x" * 60 in line for line in lines)
    assert all("x" * 59 + "…" in line for line in lines if "helpful" in line)


def test_captions_are_no_markup():
    assert any(
        "[red]key[/red]" in line
        for line in lines_of(label_table(captions("[red]key[/red]"), [label("[red]key[/red]", 1.0)]))
    )


def test_without_verdicts_there_is_no_table():
    assert label_table(captions("door"), [label("door", None), label("elsewhere", 1.0)]) is None
    assert preference_table(captions("door"), []) is None


WORTH = {"key": 1.0, "door": 0.9, "newt": 0.2, "rat": 0.2}


class Scores:
    goal, model, prompt_version = "g", "m", "v"

    def annotate(self, requests, goal):
        return (label_for(self, each, WORTH[each.key_text]) for each in requests)


@pytest.fixture
def preferences():
    requests = [AnnotationRequest(key=0, key_text=text, raw_text=text) for text in WORTH]
    pairs = [PairRequest(first=a, second=b) for place, a in enumerate(requests) for b in requests[place + 1 :]]
    return list(prefer_by_scores(Scores(), pairs, "g"))


def test_captions_are_ranked_by_the_share_of_their_pairs_that_they_won(preferences):
    stored = captions("rat", "newt", "door", "key")
    _, head, *rows, _ = lines_of(preference_table(stored, preferences))
    assert head.split() == ["won", "pairs", "met", "caption"]
    assert [row.split() for row in rows] == [
        ["100%", "3", "97", "key"],
        ["67%", "3", "98", "door"],  # lost to the key alone
        ["17%", "3", "100", "rat"],  # half of one of three
        ["17%", "3", "99", "newt"],
    ]
    (turned,) = [each for each in preferences if {each.first_text, each.second_text} == {"key", "door"}]
    again = dataclasses.replace(turned, value=PreferenceValue.SECOND)
    assert lines_of(preference_table(stored, [*preferences, again]))[2].split() == ["100%", "3", "98", "door"]


def test_no_caption_and_no_reply_reaches_the_terminal_as_more_than_text():
    key, reply = "The door \x1b[2Jopens.", "yes \x1b]0;mine\x07"
    shown = "\n".join(lines_of(label_table(captions(key), [label(key, 1.0, reply=reply)])))
    assert "The door [2Jopens." in shown and "yes ]0;mine" in shown
    pair = PairRequest(first=request_of(key), second=request_of("newt"))
    told = [label(key, 1.0), label("newt", 0.0)]
    judge = type("Told", (), {"annotate": lambda self, requests, goal: told})()
    preferred = "\n".join(lines_of(preference_table(captions(key, "newt"), prefer_by_scores(judge, [pair], "g"))))
    assert "The door [2Jopens." in preferred
    assert not {"\x1b", "\x07"} & set(shown + preferred)
