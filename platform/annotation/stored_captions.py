"""The captions of what is stored: of a run, a replay log, an exported dataset, or a table of labels.

Whatever the source, what comes out is what a captioner made of the steps: keys, each with a raw caption that brought
it, and in how many rows it was met where the source tells that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from onibi.platform.annotation.recorded_verdicts import holds_verdicts, read_verdicts
from onibi.platform.checkpoint import load_checkpoint
from onibi.platform.errors import CheckpointError, ConfigError, ReplayError
from onibi.platform.run_folder import RunFolder, find_run

_RUN_RECORD = "run.json"


@dataclass(frozen=True)
class StoredKey:
    """One key that was met."""

    text: str
    raw_text: str
    """A caption that brought it."""
    sightings: int
    """Rows; 0 where the source does not tell."""


@dataclass(frozen=True)
class StoredCaptions:
    """The askable keys of a source, the most met first."""

    source: str
    keys: tuple[StoredKey, ...]

    def first(self, count: int | None) -> StoredCaptions:
        """The ``count`` keys that were met most; None: all."""
        return self if count is None else StoredCaptions(self.source, self.keys[:count])


def read_captions(source: str, runs_folder: Path) -> StoredCaptions:
    """Captions of whatever the user names.

    Args:
        source: a run by name, folder or ``last``; the folder or address of a replay log; the folder that
            ``onibi replay export`` wrote, as Parquet or Minari; a table of labels (a folder, .parquet or .arrow).
        runs_folder: where runs are looked for.
    Raises: ConfigError where there is no such thing, or it has no captions.
    """
    path = Path(source).expanduser()
    if path.is_dir() and (path / "captions.parquet").is_file():
        found = _of_dataset(path)
    elif not (path / _RUN_RECORD).is_file() and holds_verdicts(path):
        verdicts = read_verdicts(path)
        told = [(label.key_text, label.raw_text) for label in verdicts.labels]
        told += [(text, text) for pair in verdicts.preferences for text in (pair.first_text, pair.second_text)]
        found = _counted((key, raw, 0) for key, raw in told)
    elif "://" in source or (path.is_dir() and not (path / _RUN_RECORD).is_file()):
        found = _of_log(source, runs_folder)
    elif path.is_file():
        raise ConfigError(
            f"{source}: is no file that captions are read from. Name a run, a replay log, a folder that `onibi replay "
            "export` wrote, or a table of labels (.parquet, .arrow)."
        )
    else:
        found = _of_run(find_run(runs_folder, source), runs_folder)
    if not found:
        raise ConfigError(f"{source}: has no captions that an annotator may be asked about; was it made with one?")
    keys = sorted(found, key=lambda key: (-key.sightings, key.text))
    return StoredCaptions(source, tuple(keys))


def _of_run(run: RunFolder, runs_folder: Path) -> list[StoredKey]:
    """Those of the newest whole checkpoint, else those of the replay log."""
    try:
        tables = load_checkpoint(run.checkpoints).tables
    except CheckpointError:
        return _of_log(str(run.path), runs_folder)
    if "keys" not in tables:
        return []
    return [
        StoredKey(row["text"], row["example"], row["sightings"]) for row in tables["keys"].to_pylist() if row["askable"]
    ]


def _of_log(location: str, runs_folder: Path) -> list[StoredKey]:
    from onibi.platform.replay.datasets.log_location import find_log

    log = find_log(runs_folder, location).open()
    met: dict[int, int] = {}
    try:
        captions = log.captions()  # before the rows that name them: a run's retention may remove segments meanwhile
        for _, rows in log.read_each():
            _count(met, rows.column("caption_id"))
        return _of_captions(captions, met)
    except ReplayError as error:
        raise ConfigError(f"{location}: {error}") from error


def _of_dataset(folder: Path) -> list[StoredKey]:
    """Of Parquet and Minari exports, which have ``captions.parquet``; sightings where rows lie beside it."""
    from pyarrow import parquet

    try:
        captions = parquet.read_table(folder / "captions.parquet")
        met: dict[int, int] = {}
        for rows in sorted(folder.glob("rows-*.parquet")):
            _count(met, parquet.read_table(rows, columns=["caption_id"]).column("caption_id"))
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"{folder}: cannot be read as an exported dataset ({error})") from error
    return _of_captions(captions, met)


def _count(met: dict[int, int], caption_ids: Any) -> None:
    counts = pc.value_counts(caption_ids)
    values, numbers = counts.field("values").to_pylist(), counts.field("counts").to_pylist()
    for caption_id, rows in zip(values, numbers, strict=True):
        met[caption_id] = met.get(caption_id, 0) + rows


def _of_captions(captions: pa.Table, met: dict[int, int]) -> list[StoredKey]:
    missing = sorted({"caption_id", "text", "keys", "askable"} - set(captions.column_names))
    if missing:
        raise ConfigError(f"table of captions: columns {missing} are missing among {captions.column_names}")
    return _counted(
        (key, row["text"], met.get(row["caption_id"], 0))
        for row in captions.to_pylist()
        for key, askable in zip(row["keys"], row["askable"], strict=True)
        if askable
    )


def _counted(met: Iterable[tuple[str, str, int]]) -> list[StoredKey]:
    """One key for each text, with its first raw text and all its rows."""
    raw: dict[str, str] = {}
    rows: dict[str, int] = {}
    for key, raw_text, count in met:
        raw.setdefault(key, raw_text)
        rows[key] = rows.get(key, 0) + count
    return [StoredKey(key, raw[key], int(np.int64(rows[key]))) for key in raw]
