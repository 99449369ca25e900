"""Labels and preferences: what an annotator said about caption keys, kept whole, with the reply it came from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pyarrow as pa

from onibi.platform.annotation.captions import storable, text_hash
from onibi.platform.errors import CaptionError

_ORIGIN_FIELDS = (
    pa.field("annotator", pa.string(), nullable=False),
    pa.field("model", pa.string(), nullable=False),
    pa.field("prompt_version", pa.string(), nullable=False),
    pa.field("goal", pa.string(), nullable=False),
    pa.field("latency_seconds", pa.float64(), nullable=False),
    pa.field("tokens", pa.int64(), nullable=False),
    pa.field("reply", pa.string(), nullable=False),
    pa.field("time_seconds", pa.float64(), nullable=False, metadata={"unit": "seconds since 1970"}),
    pa.field("cost", pa.float64(), nullable=False, metadata={"unit": "money, in the annotator's currency"}),
)
LABEL_SCHEMA = pa.schema(
    [
        pa.field("key_hash", pa.uint64(), nullable=False),
        pa.field("key_text", pa.string(), nullable=False),
        pa.field("raw_text", pa.string(), nullable=False),
        pa.field("value", pa.string(), nullable=False, metadata={"allowed": "helpful, unhelpful, invalid"}),
        pa.field("score", pa.float32(), nullable=False, metadata={"unit": "0 to 1; NaN where invalid"}),
        *_ORIGIN_FIELDS,
        pa.field("vote", pa.int32(), nullable=False, metadata={"unit": "0 is a judge's first answer on the key"}),
    ]
)
"""One row per reply, the invalid ones too, in the order in which they came."""
PREFERENCE_SCHEMA = pa.schema(
    [
        pa.field("first_hash", pa.uint64(), nullable=False),
        pa.field("second_hash", pa.uint64(), nullable=False),
        pa.field("first_text", pa.string(), nullable=False),
        pa.field("second_text", pa.string(), nullable=False),
        pa.field("value", pa.string(), nullable=False, metadata={"allowed": "first, second, tie, invalid"}),
        *_ORIGIN_FIELDS,
    ]
)
"""One row per judged pair, the invalid replies too, in the order in which they came."""
_LATER_FIELDS = {"cost": 0.0, "vote": 0}  # of tables that were written before these columns were


HELPFUL_SCORE = 0.5
"""From here on a score from 0 to 1 stands for helpful."""


class LabelValue(StrEnum):
    """Verdict on a key. ``INVALID``: the reply could not be read; it is asked again and never counts as unhelpful."""

    HELPFUL = "helpful"
    UNHELPFUL = "unhelpful"
    INVALID = "invalid"

    @classmethod
    def of_score(cls, score: float) -> LabelValue:
        """The verdict that a score from 0 to 1 stands for."""
        return cls.HELPFUL if score >= HELPFUL_SCORE else cls.UNHELPFUL


class PreferenceValue(StrEnum):
    """Which of two keys helps more. ``INVALID``: the reply could not be read; it never counts as a tie."""

    FIRST = "first"
    SECOND = "second"
    TIE = "tie"
    INVALID = "invalid"


@dataclass(frozen=True)
class Judge:
    """Whose verdicts are of one kind: labels of one judge can stand for each other, those of two cannot.

    ``prompt_version`` is a hash over all that shapes a verdict: annotator kind, model, prompt or rules, and goal.
    """

    prompt_version: str
    model: str
    goal: str


@dataclass(frozen=True, kw_only=True)
class Label:
    """One annotator's verdict on one key. A judge gives a key one label for each ``vote``."""

    key_hash: int
    key_text: str
    raw_text: str
    value: LabelValue
    score: float  # 0 to 1, 0.5 or more exactly where helpful; NaN where invalid
    annotator: str  # its registry kind
    model: str
    prompt_version: str
    goal: str
    latency_seconds: float
    tokens: int  # prompt and reply together; 0 where nothing is counted
    reply: str
    time_seconds: float  # since 1970
    cost: float = 0.0  # money
    vote: int = 0  # that of the request

    def __post_init__(self) -> None:
        if self.value != LabelValue.INVALID and not 0.0 <= self.score <= 1.0:
            raise CaptionError(
                f"label of {self.key_text!r} by {self.annotator!r}: score {self.score} is outside 0 to 1; "
                "scale the annotator's score, or return the label as invalid"
            )
        # Files hold scores as float32, which may round one just below 0.5 to it.
        if self.value not in (LabelValue.INVALID, LabelValue.of_score(self.score)) and abs(self.score - 0.5) > 1e-6:
            raise CaptionError(
                f"label of {self.key_text!r} by {self.annotator!r}: {self.value.value} with score {self.score}; one "
                f"of {HELPFUL_SCORE} or more is helpful, a lower one is not. Leave one of the two to the other: "
                "LabelValue.of_score(score)"
            )
        object.__setattr__(self, "reply", storable(self.reply))  # a model's words: no file takes half a surrogate pair

    @property
    def judge(self) -> Judge:
        """Whose verdict it is."""
        return Judge(self.prompt_version, self.model, self.goal)

    @property
    def is_readable(self) -> bool:
        """Whether the reply said anything: what could not be read counts as no verdict."""
        return self.value != LabelValue.INVALID


@dataclass(frozen=True, kw_only=True)
class Preference:
    """One annotator's verdict on a pair of keys; fields as those of :class:`Label`."""

    first_hash: int
    second_hash: int
    first_text: str  # keys
    second_text: str
    value: PreferenceValue
    annotator: str
    model: str
    prompt_version: str
    goal: str
    latency_seconds: float
    tokens: int
    reply: str
    time_seconds: float
    cost: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "reply", storable(self.reply))

    @property
    def judge(self) -> Judge:
        """Whose verdict it is."""
        return Judge(self.prompt_version, self.model, self.goal)

    @property
    def is_readable(self) -> bool:
        """Whether the reply said anything: what could not be read counts as no verdict."""
        return self.value != PreferenceValue.INVALID


def prompt_hash(*parts: str) -> str:
    """16 hex digits over ordered texts; ("ab", "c") and ("a", "bc") differ."""
    return f"{text_hash(chr(0).join(f'{len(part)}:{part}' for part in parts)):016x}"


class LabelTable:
    """All labels of a run in order, and the newest valid one of each key, judge and vote."""

    def __init__(self, labels: Iterable[Label] = ()) -> None:
        self._labels: list[Label] = []
        self._valid: dict[int, dict[tuple[Judge, int], Label]] = {}  # by key; the newest last
        self.add(labels)

    def __len__(self) -> int:
        return len(self._labels)

    def __iter__(self) -> Iterator[Label]:
        return iter(self._labels)

    def add(self, labels: Iterable[Label]) -> None:
        """Append labels; a later valid one of the same key, judge and vote counts instead of an earlier one."""
        for label in labels:
            self._labels.append(label)
            if label.is_readable:
                of_key = self._valid.setdefault(label.key_hash, {})
                of_key.pop((label.judge, label.vote), None)
                of_key[label.judge, label.vote] = label

    def valid(self, key_hash: int) -> list[Label]:
        """The labels of a key that count, of all judges and votes, the newest last."""
        return list(self._valid.get(key_hash, {}).values())

    def to_arrow(self) -> pa.Table:
        """All labels in order, with ``LABEL_SCHEMA``."""
        return labels_to_arrow(self._labels)

    @classmethod
    def from_arrow(cls, table: pa.Table, *, source: str = "label table") -> LabelTable:
        """The labels that ``to_arrow`` wrote.

        Raises: CaptionError where a column is missing or of another type, a verdict is unknown, or a hash does not
            fit its text.
        """
        return cls(labels_from_arrow(table, source=source))


class PreferenceTable:
    """All preferences of a run in order, and the newest valid one of each pair and judge, whichever key came first."""

    def __init__(self, preferences: Iterable[Preference] = ()) -> None:
        self._preferences: list[Preference] = []
        self._newest: dict[tuple[frozenset[int], Judge], Preference] = {}
        self.add(preferences)

    def __len__(self) -> int:
        return len(self._preferences)

    def __iter__(self) -> Iterator[Preference]:
        return iter(self._preferences)

    def add(self, preferences: Iterable[Preference]) -> None:
        """Append preferences; a later valid one of a pair counts instead of an earlier one of the same judge."""
        for preference in preferences:
            self._preferences.append(preference)
            if preference.is_readable:
                self._newest[frozenset((preference.first_hash, preference.second_hash)), preference.judge] = preference

    def valid(self, judges: Iterable[Judge]) -> list[Preference]:
        """The preferences of these judges that count, in the order in which their pairs were first judged."""
        wanted = set(judges)
        return [preference for (_, judge), preference in self._newest.items() if judge in wanted]

    def to_arrow(self) -> pa.Table:
        """All preferences in order, with ``PREFERENCE_SCHEMA``."""
        return preferences_to_arrow(self._preferences)

    @classmethod
    def from_arrow(cls, table: pa.Table, *, source: str = "preference table") -> PreferenceTable:
        """The preferences that ``to_arrow`` wrote. Raises: CaptionError as ``LabelTable.from_arrow``."""
        return cls(preferences_from_arrow(table, source=source))


def labels_to_arrow(labels: Iterable[Label]) -> pa.Table:
    """Labels in order, with ``LABEL_SCHEMA``."""
    return _to_arrow(labels, LABEL_SCHEMA)


def preferences_to_arrow(preferences: Iterable[Preference]) -> pa.Table:
    """Preferences in order, with ``PREFERENCE_SCHEMA``."""
    return _to_arrow(preferences, PREFERENCE_SCHEMA)


def labels_from_arrow(table: pa.Table, *, source: str) -> list[Label]:
    """The labels of a table in order. Raises: CaptionError as ``LabelTable.from_arrow``."""
    rows = _rows(table, LABEL_SCHEMA, LabelValue, {"key_hash": "key_text"}, source, "label")
    labels = []
    for number, row in enumerate(rows):
        try:
            labels.append(Label(**row))
        except CaptionError as error:
            raise CaptionError(f"{source}, row {number}: {error}") from error
    return labels


def preferences_from_arrow(table: pa.Table, *, source: str) -> list[Preference]:
    """The preferences of a table in order. Raises: CaptionError as ``LabelTable.from_arrow``."""
    hashes = {"first_hash": "first_text", "second_hash": "second_text"}
    return [Preference(**row) for row in _rows(table, PREFERENCE_SCHEMA, PreferenceValue, hashes, source, "preference")]


def conformed(table: pa.Table, schema: pa.Schema, *, source: str) -> pa.Table:
    """A table with the columns of ``schema``: later ones filled in, others left out, types cast.

    Raises: CaptionError where a column is missing, of another type, or has nulls.
    """
    for name, value in _LATER_FIELDS.items():
        if name in schema.names and name not in table.column_names:
            table = table.append_column(schema.field(name), pa.array([value] * len(table), schema.field(name).type))
    missing = sorted(set(schema.names) - set(table.column_names))
    if missing:
        raise CaptionError(f"{source}: columns {missing} are missing; it needs {schema.names}")
    try:
        return table.select(schema.names).cast(schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, ValueError) as error:
        fields = schema.to_string(show_field_metadata=False)
        raise CaptionError(f"{source}: {error}; it needs the fields\n{fields}") from error


def _to_arrow(records: Iterable[Label] | Iterable[Preference], schema: pa.Schema) -> pa.Table:
    rows: list[Label | Preference] = list(records)
    columns = {name: [getattr(row, name) for row in rows] for name in schema.names}
    columns["value"] = [row.value.value for row in rows]
    return pa.Table.from_pydict(columns, schema=schema)


def _rows(
    table: pa.Table,
    schema: pa.Schema,
    values: type[LabelValue] | type[PreferenceValue],
    texts: Mapping[str, str],
    source: str,
    noun: str,
) -> list[dict[str, Any]]:
    """Checked rows; ``texts`` names the text column of each hash column."""
    rows: list[dict[str, Any]] = conformed(table, schema, source=source).to_pylist()
    allowed = {value.value for value in values}
    for number, row in enumerate(rows):
        if row["value"] not in allowed:
            raise CaptionError(
                f"{source}, row {number}: {noun} {row['value']!r} is unknown; allowed are {sorted(allowed)}"
            )
        for hash_name, text_name in texts.items():
            if text_hash(row[text_name]) != row[hash_name]:
                raise CaptionError(
                    f"{source}, row {number}: hash {row[hash_name]} does not fit the key {row[text_name]!r}; the "
                    "table is damaged"
                )
        row["value"] = values(row["value"])
    return rows
