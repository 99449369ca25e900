"""Labels and preferences that were recorded before: of a run, an annotation table, a Parquet or an Arrow file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from onibi.platform.annotation.labels import (
    LABEL_SCHEMA,
    PREFERENCE_SCHEMA,
    Judge,
    Label,
    Preference,
    labels_from_arrow,
    preferences_from_arrow,
)
from onibi.platform.annotation.table import AnnotationTable
from onibi.platform.checkpoint import load_checkpoint
from onibi.platform.errors import CaptionError, CheckpointError, ConfigError

_RUN_RECORD = "run.json"
_SUFFIXES = (".parquet", ".arrow")
_REPEATING = "replay"  # the annotator's kind


@dataclass(frozen=True)
class Verdicts:
    """What judges said, in the order in which it was written."""

    source: str
    labels: tuple[Label, ...]
    preferences: tuple[Preference, ...]

    def of(self, judge: Judge) -> Verdicts:
        """The verdicts of one judge."""
        return Verdicts(
            self.source,
            tuple(label for label in self.labels if label.judge == judge),
            tuple(preference for preference in self.preferences if preference.judge == judge),
        )

    @property
    def judges(self) -> list[Judge]:
        """Whose verdicts there are, the one with the most first."""
        return [judge for judge, _ in Counter(verdict.judge for verdict in self._all()).most_common()]

    def choose_judge(self, prompt_version: str | None, model: str | None, goal: str | None) -> Judge:
        """The one judge that fits what was asked for; None asks for nothing.

        One that repeated recorded verdicts itself (``replay``) counts only where no other fits: it names the same keys.

        Raises: ConfigError where none or several fit; it lists them.
        """
        asked = {"prompt_version": prompt_version, "model": model, "goal": None if goal is None else _plain(goal)}
        fitting = [
            judge
            for judge in self.judges
            if all(value is None or _plain(getattr(judge, name)) == value for name, value in asked.items())
        ]
        own = {verdict.judge for verdict in self._all() if verdict.annotator != _REPEATING}
        fitting = [judge for judge in fitting if judge in own] or fitting
        if len(fitting) == 1:
            return fitting[0]
        named = ", ".join(f"{name} {value!r}" for name, value in asked.items() if value is not None)
        found = f"{len(fitting) or 'no'} judges" + (f" with {named}" if named else "")
        counts = Counter(verdict.judge for verdict in self._all())
        lines = [
            f"  prompt_version {judge.prompt_version}, model {judge.model!r}, goal {judge.goal!r}: {count} verdicts"
            for judge, count in counts.most_common(10)
        ]
        raise ConfigError(
            f"{self.source}: verdicts of {found}, exactly one is needed. Choose one of these by prompt_version, model "
            "or goal:\n" + "\n".join(lines or ["  (there are none)"])
        )

    def _all(self) -> Iterable[Label | Preference]:
        yield from self.labels
        yield from self.preferences


def holds_verdicts(path: Path) -> bool:
    """Whether something at this path looks like what ``read_verdicts`` reads."""
    if path.is_file():
        return path.suffix in _SUFFIXES
    return path.is_dir() and ((path / _RUN_RECORD).is_file() or AnnotationTable.is_at(path) or bool(_exported(path)))


def read_verdicts(path: Path) -> Verdicts:
    """Everything that judges said at a path.

    Args:
        path: the folder of a run (its newest whole checkpoint counts), the folder of an annotation table, a folder with
            labels.parquet or preferences.parquet, or one such file (.parquet, or .arrow as in checkpoints).
    Raises: ConfigError where there is nothing of this kind; CaptionError where it is damaged.
    """
    path = path.expanduser()
    if path.is_file() and path.suffix in _SUFFIXES:
        return _of_files(str(path), [path])
    if (path / _RUN_RECORD).is_file():
        return _of_run(path)
    if path.is_dir() and AnnotationTable.is_at(path):
        table = AnnotationTable(path)
        return Verdicts(str(path), tuple(table.all_labels()), tuple(table.all_preferences()))
    if path.is_dir() and (exported := _exported(path)):
        return _of_files(str(path), exported)
    raise ConfigError(
        f"{path}: holds no labels. Allowed: the folder of a run or of an annotation table, a folder with "
        "labels.parquet or preferences.parquet, or a .parquet or .arrow file of labels or preferences."
    )


def _exported(folder: Path) -> list[Path]:
    return [path for name in ("labels", "preferences") if (path := folder / f"{name}.parquet").is_file()]


def _of_run(folder: Path) -> Verdicts:
    try:
        tables = load_checkpoint(folder / "checkpoints").tables
    except CheckpointError as error:
        raise ConfigError(f"{folder}: this run has no whole checkpoint, and so no labels: {error}") from error
    labels = labels_from_arrow(tables["labels"], source=f"{folder}, labels") if "labels" in tables else []
    preferences = (
        preferences_from_arrow(tables["preferences"], source=f"{folder}, preferences")
        if "preferences" in tables
        else []
    )
    return Verdicts(str(folder), tuple(labels), tuple(preferences))


def _of_files(source: str, paths: list[Path]) -> Verdicts:
    labels: list[Label] = []
    preferences: list[Preference] = []
    for path in paths:
        table = _read(path)
        if "first_hash" in table.column_names:
            preferences += preferences_from_arrow(table, source=str(path))
        elif "key_hash" in table.column_names:
            labels += labels_from_arrow(table, source=str(path))
        else:
            raise CaptionError(
                f"{path}: has the columns {table.column_names}; labels have {LABEL_SCHEMA.names}, preferences "
                f"{PREFERENCE_SCHEMA.names}"
            )
    return Verdicts(source, tuple(labels), tuple(preferences))


def _read(path: Path) -> pa.Table:
    from pyarrow import parquet

    try:
        if path.suffix == ".parquet":
            return parquet.read_table(path)
        with pa.OSFile(str(path)) as file:
            return pa.ipc.open_file(file).read_all()
    except (OSError, pa.ArrowException) as error:
        raise CaptionError(f"{path}: cannot be read as a table of labels ({error})") from error


def _plain(text: str) -> str:
    return " ".join(text.split())
