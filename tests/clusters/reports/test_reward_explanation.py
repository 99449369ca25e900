"""What is told of a run's caption rewards, of keys, labels and figures that are given."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from onibi.clusters.cli.rewards import _FIGURE_TEXTS, _keys_table, _lines
from onibi.clusters.reports.reward_explanation import FIGURES, Explanation, _explained
from onibi.platform.annotation.annotator import AnnotationRequest, label_for
from onibi.platform.annotation.captions import text_hash
from onibi.platform.annotation.labels import Judge, Preference, PreferenceValue

JUDGE, OTHER = Judge("v", "m", "g"), Judge("v2", "m", "g")
ROWS = [
    {"hash": text_hash(text), "text": text, "example": text, "sightings": 3, "askable": True}
    for text in ("door", "newt", "key")
]


def preference(first, second, value, judge=JUDGE, seconds=1.0):
    return Preference(
        first_hash=text_hash(first),
        second_hash=text_hash(second),
        first_text=first,
        second_text=second,
        value=value,
        annotator="custom",
        model=judge.model,
        prompt_version=judge.prompt_version,
        goal=judge.goal,
        latency_seconds=0.0,
        tokens=0,
        reply="",
        time_seconds=seconds,
    )


def explanation(keys=(), **figures):
    return Explanation(run="run", goals=("g",), env_steps=9, keys=tuple(keys), alarms=(), figures=figures)


def test_a_pair_counts_once_for_each_judge_by_its_newest_readable_answer():
    pairs = [
        preference("door", "newt", PreferenceValue.SECOND),
        preference("newt", "door", PreferenceValue.SECOND, seconds=2.0),
        preference("door", "newt", PreferenceValue.INVALID, seconds=3.0),
        preference("door", "newt", PreferenceValue.TIE, OTHER),
        preference("key", "newt", PreferenceValue.FIRST),
    ]
    door, newt, key = _explained(ROWS, None, [], pairs)
    assert [(each.won, each.lost, each.tied) for each in (door, newt, key)] == [(1, 0, 1), (0, 2, 1), (1, 0, 0)]


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("rewards/best_key_share", 0.0, "the best-paid caption has 0% of what captions were paid lately"),
        ("rewards/best_key_share", 0.384, "the best-paid caption has 38% of what captions were paid lately"),
        ("rewards/heard_share", 0.07, "has 7% of what the best-paid captions were paid lately"),
        ("rewards/discounted_total_of_failure", 0.12345, "a failed episode is paid 0.123 by environment and captions"),
        ("actors/success_rate", 0.5, "50% of the episodes in training succeed"),
    ],
)
def test_a_figure_says_what_it_is_of(name, value, told):
    assert told in "\n".join(_lines(explanation(**{name: value}), 20))


def test_each_figure_has_its_words():
    assert set(_FIGURE_TEXTS) == set(FIGURES)


def test_what_is_shown_holds_nothing_that_a_terminal_obeys():
    request = AnnotationRequest(key=0, key_text="door", raw_text="door")
    rows = [ROWS[0] | {"text": "The \x1b[2Jdoor"}]
    keys = _explained(rows, [1.0], [label_for(JUDGE, request, 1.0, reply="\x1b]0;mine\x07")], [])
    console = Console(file=io.StringIO(), width=160)
    console.print(_keys_table(explanation(keys), 20, 160))
    console.print(_keys_table(explanation(keys), 20, 80))
    shown = console.file.getvalue()
    assert shown.count("The [2Jdoor") == shown.count("]0;mine") == 2
    assert not {"\x1b", "\x07"} & set(shown)


def test_at_80_columns_caption_and_reply_stand_in_lines_of_40_characters_and_more():
    text = "The key named The Master Key of Thievery whispers something to the one who holds it."
    request = AnnotationRequest(key=0, key_text="door", raw_text="door")
    keys = _explained([ROWS[0] | {"text": text}], [1.0], [label_for(JUDGE, request, 1.0, reply="so " * 100)], [])
    console = Console(file=io.StringIO(), width=80)
    console.print(_keys_table(explanation(keys), 20, 80))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert any("The key named The Master Key of Thievery" in line for line in lines)
    told = " ".join(" ".join(lines).split())
    assert "score 1.00; votes 1 of 1; " in told
    assert told.endswith("…") and told.count("so ") < 60, "a long reply is cut"
