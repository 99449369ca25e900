"""Labels: what an annotator said about a caption key, kept whole, with the reply it came from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import pyarrow as pa

from onibi.platform.captions import text_hash
from onibi.platform.errors import CaptionError

LABEL_SCHEMA = pa.schema(
    [
        pa.field("key_hash", pa.uint64(), nullable=False),
        pa.field("key_text", pa.string(), nullable=False),
        pa.field("raw_text", pa.string(), nullable=False),
        pa.field("value", pa.string(), nullable=False, metadata={"allowed": "helpful, unhelpful, invalid"}),
        pa.field("score", pa.float32(), nullable=False, metadata={"unit": "0 to 1; NaN where invalid"}),
        pa.field("annotator", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("prompt_version", pa.string(), nullable=False),
        pa.field("goal", pa.string(), nullable=False),
        pa.field("latency_seconds", pa.float64(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("reply", pa.string(), nullable=False),
        pa.field("time_seconds", pa.float64(), nullable=False, metadata={"unit": "seconds since 1970"}),
    ]
)
"""One row per reply, the invalid ones too, in the order in which they came."""


class LabelValue(StrEnum):
    """Verdict on a key. ``INVALID``: the reply could not be read; it is asked again and never counts as unhelpful."""

    HELPFUL = "helpful"
    UNHELPFUL = "unhelpful"
    INVALID = "invalid"


@dataclass(frozen=True, kw_only=True)
class Label:
    """One annotator's verdict on one key.

    ``prompt_version`` is a hash over all that shapes the verdict: annotator kind, model, prompt or rules, and goal.
    """

    key_hash: int
    key_text: str
    raw_text: str
    value: LabelValue
    score: float  # 0 to 1; NaN where invalid
    annotator: str  # its registry kind
    model: str
    prompt_version: str
    goal: str
    latency_seconds: float
    tokens: int  # prompt and reply together; 0 where nothing is counted
    reply: str
    time_seconds: float  # since 1970

    def __post_init__(self) -> None:
        if self.value != LabelValue.INVALID and not 0.0 <= self.score <= 1.0:
            raise CaptionError(
                f"label of {self.key_text!r} by {self.annotator!r}: score {self.score} is outside 0 to 1; "
                "scale the annotator's score, or return the label as invalid"
            )


def prompt_hash(*parts: str) -> str:
    """16 hex digits over ordered texts; ("ab", "c") and ("a", "bc") differ."""
    return f"{text_hash(chr(0).join(f'{len(part)}:{part}' for part in parts)):016x}"


class LabelTable:
    """All labels of a run in order, and the newest valid one of each key and prompt version."""

    def __init__(self, labels: Iterable[Label] = ()) -> None:
        self._labels: list[Label] = []
        self._newest: dict[tuple[int, str], Label] = {}
        self._newest_of_any_prompt: dict[int, Label] = {}
        self.add(labels)

    def __len__(self) -> int:
        return len(self._labels)

    def __iter__(self) -> Iterator[Label]:
        return iter(self._labels)

    def add(self, labels: Iterable[Label]) -> None:
        """Append labels; a later valid one of the same key and prompt version counts instead of an earlier one."""
        for label in labels:
            self._labels.append(label)
            if label.value != LabelValue.INVALID:
                self._newest[label.key_hash, label.prompt_version] = label
                self._newest_of_any_prompt[label.key_hash] = label

    def get(self, key_hash: int, prompt_version: str | None) -> Label | None:
        """Newest valid label of a key; None where there is none.

        Args:
            key_hash: ``text_hash`` of the key's text.
            prompt_version: only labels given under it; None takes any.
        """
        if prompt_version is None:
            return self._newest_of_any_prompt.get(key_hash)
        return self._newest.get((key_hash, prompt_version))

    def count(self, value: LabelValue) -> int:
        """Replies with this verdict, repeats included."""
        return sum(label.value == value for label in self._labels)

    def to_arrow(self) -> pa.Table:
        """All labels in order, with ``LABEL_SCHEMA``."""
        columns = {name: [getattr(label, name) for label in self._labels] for name in LABEL_SCHEMA.names}
        columns["value"] = [label.value.value for label in self._labels]
        return pa.Table.from_pydict(columns, schema=LABEL_SCHEMA)

    @classmethod
    def from_arrow(cls, table: pa.Table, *, source: str = "label table") -> LabelTable:
        """The labels that ``to_arrow`` wrote.

        Raises: CaptionError where a column is missing or of another type, a verdict is unknown, or a hash does not
            fit its text.
        """
        missing = sorted(set(LABEL_SCHEMA.names) - set(table.column_names))
        if missing:
            raise CaptionError(f"{source}: columns {missing} are missing; a label table has {LABEL_SCHEMA.names}")
        try:
            rows = table.select(LABEL_SCHEMA.names).cast(LABEL_SCHEMA).to_pylist()
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, ValueError) as error:
            raise CaptionError(
                f"{source}: {error}; a label table has the fields\n{LABEL_SCHEMA.to_string()}"
            ) from error
        allowed = {value.value for value in LabelValue}
        for number, row in enumerate(rows):
            if row["value"] not in allowed:
                raise CaptionError(
                    f"{source}, row {number}: label {row['value']!r} is unknown; allowed are {sorted(allowed)}"
                )
            if text_hash(row["key_text"]) != row["key_hash"]:
                raise CaptionError(
                    f"{source}, row {number}: hash {row['key_hash']} does not fit the key {row['key_text']!r}; the "
                    "table is damaged"
                )
            row["value"] = LabelValue(row["value"])
        return cls(Label(**row) for row in rows)

    @classmethod
    def read(cls, path: Path) -> LabelTable:
        """Labels of another run, from the Arrow IPC file in its checkpoint: money spent on labels is not spent twice.

        Raises: CaptionError where the file is missing or not such a table.
        """
        try:
            with pa.OSFile(str(path)) as file:
                table = pa.ipc.open_file(file).read_all()
        except (OSError, pa.ArrowInvalid) as error:
            raise CaptionError(f"{path}: cannot be read as an Arrow IPC file of labels ({error})") from error
        return cls.from_arrow(table, source=str(path))
