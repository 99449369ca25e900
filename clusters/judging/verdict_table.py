"""What a judge said of stored captions, as a table to look at before anything is paid by it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from onibi.clusters.reports.figures import UNKNOWN
from onibi.platform.annotation.captions import printable, text_hash
from onibi.platform.annotation.labels import Label, LabelValue, Preference, PreferenceValue
from onibi.platform.annotation.stored_captions import StoredCaptions

_SHOWN = 10  # of each verdict
_REPLY_CHARACTERS = 60
_STYLES = {LabelValue.HELPFUL: "green", LabelValue.UNHELPFUL: "red"}
_FIRST_WINS = {PreferenceValue.FIRST: 1.0, PreferenceValue.TIE: 0.5, PreferenceValue.SECOND: 0.0}


@dataclass(frozen=True)
class _Judged:
    """A caption with the mean score of its votes."""

    text: str
    sightings: int
    score: float
    reply: str  # of its last vote

    @property
    def value(self) -> LabelValue:
        return LabelValue.of_score(self.score)


def label_table(captions: StoredCaptions, labels: Iterable[Label]) -> Group | None:
    """Ten helpful and ten unhelpful captions at most, the most met ones first; None where none has a label.

    Args:
        captions: of the source, the most met first.
        labels: one judge's, in the order in which they came; those of other captions are left out.
    """
    votes: dict[int, dict[int, Label]] = {}
    for label in labels:
        if label.is_readable:
            votes.setdefault(label.key_hash, {})[label.vote] = label
    judged = [
        _Judged(key.text, key.sightings, float(np.mean([vote.score for vote in given])), given[-1].reply)
        for key in captions.keys
        if (given := list(votes.get(text_hash(key.text), {}).values()))
    ]
    if not judged:
        return None
    table = _table("label", "score", "met", "caption", "reply")
    shown = 0
    for value in (LabelValue.HELPFUL, LabelValue.UNHELPFUL):
        rows = [each for each in judged if each.value is value][:_SHOWN]
        shown += len(rows)
        for row in rows:
            table.add_row(
                Text(value.value, style=_STYLES[value]),
                f"{row.score:.2f}",
                _met(row.sightings),
                Text(printable(row.text)),
                Text(_shortened(row.reply), style="dim"),
            )
    return _framed("Verdicts, the captions met most first", table, len(judged) - shown)


def preference_table(captions: StoredCaptions, preferences: Iterable[Preference]) -> Group | None:
    """The ten captions that won the largest share of their pairs, and the ten that won the smallest; ties are half won.

    Args:
        captions: of the source, the most met first.
        preferences: one judge's, in the order in which they came; pairs with other captions are left out.
    Returns: None where no pair has a verdict.
    """
    known = {text_hash(key.text) for key in captions.keys}
    newest = {
        frozenset((each.first_hash, each.second_hash)): each
        for each in preferences
        if each.is_readable and {each.first_hash, each.second_hash} <= known
    }
    won: dict[int, list[float]] = {}
    for each in newest.values():
        won.setdefault(each.first_hash, []).append(_FIRST_WINS[each.value])
        won.setdefault(each.second_hash, []).append(1.0 - _FIRST_WINS[each.value])
    if not won:
        return None
    compared = [key for key in captions.keys if text_hash(key.text) in won]
    ranked = sorted(compared, key=lambda key: -float(np.mean(won[text_hash(key.text)])))  # of equals the most met first
    shown = ranked if len(ranked) <= 2 * _SHOWN else [*ranked[:_SHOWN], *ranked[-_SHOWN:]]
    table = _table("won", "pairs", "met", "caption")
    for key in shown:
        outcomes = won[text_hash(key.text)]
        table.add_row(f"{np.mean(outcomes):.0%}", f"{len(outcomes):,}", _met(key.sightings), Text(printable(key.text)))
    return _framed("Pairs won, the best captions first", table, len(ranked) - len(shown))


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in names:
        if name in ("caption", "reply"):
            table.add_column(name, overflow="fold")
        else:
            table.add_column(name, justify="left" if name == "label" else "right", no_wrap=True)
    return table


def _framed(title: str, table: Table, left: int) -> Group:
    hidden = f"{left:,} more. " if left else ""
    return Group(Text(title, "bold"), table, Text(f"{hidden}All of it as a table: --export FILE.parquet", "dim"))


def _met(sightings: int) -> str:
    return f"{sightings:,}" if sightings else UNKNOWN  # a table of labels does not tell


def _shortened(reply: str) -> str:
    line = printable(reply)
    return line if len(line) <= _REPLY_CHARACTERS else f"{line[: _REPLY_CHARACTERS - 1]}…"
