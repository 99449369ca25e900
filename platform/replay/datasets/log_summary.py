"""What a log holds, in figures."""

from __future__ import annotations

import dataclasses
import logging
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from onibi.platform.errors import ReplayError, SegmentError
from onibi.platform.replay.log.log_reader import ReplayLog
from onibi.platform.replay.ring.row_table import FLAGS
from onibi.platform.spec import ROLE_STEP, ArraySpec

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ColumnSummary:
    """One column as the run's spec has it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    unit: str
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class ReturnSummary:
    """Undiscounted returns of finished episodes, of the environment's own reward."""

    mean: float
    least: float
    most: float


@dataclass(frozen=True, kw_only=True)
class LogSummary:
    """Figures of a log. None stands for what a damaged file keeps from being told."""

    location: str
    run_ids: tuple[str, ...]
    segments: int
    shards: int
    lanes: int
    rows: int
    steps: int | None  # rows that are no final ones
    bytes: int  # of the Arrow files, compressed
    episodes: int | None
    returns: ReturnSummary | None  # None also where no episode has finished
    episode_length_mean: float | None
    captions: int | None
    texts: int | None  # of Text columns
    first_sealed: str | None  # ISO 8601, UTC
    last_sealed: str | None
    columns: tuple[ColumnSummary, ...]
    torn: tuple[str, ...]
    unreadable: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON values by name; None for a return that is not finite, which JSON has no number for."""
        told = dataclasses.asdict(self)
        if self.returns is not None:
            told["returns"] = {name: each if math.isfinite(each) else None for name, each in told["returns"].items()}
        return told


def summarize(opened: ReplayLog) -> LogSummary:
    """Read manifests, the rows' ``role``, episodes and captions. Damage is not looked for; what is met is left out."""
    faults = [damage.fault for damage in opened.unreadable]
    segments = opened.segments
    steps: int | None = 0
    columns: tuple[ColumnSummary, ...] = ()
    captions = episodes = texts = None
    try:
        captions, episodes, texts = opened.captions(), opened.episodes(), opened.texts()
    except ReplayError as error:
        faults.append(str(error))
    if segments:
        try:
            columns = tuple(map(_column, opened.spec.columns))
            steps = _steps(opened)
        except (ReplayError, pa.ArrowException, OSError) as error:
            faults.append(str(error))
            steps = None
    for fault in faults:
        log.warning("%s", fault)
    return LogSummary(
        location=opened.location,
        run_ids=tuple(sorted({segment.run_id for segment in segments})),
        segments=len(segments),
        shards=len({segment.shard for segment in segments}),
        lanes=len({(segment.shard, lane) for segment in segments for lane in segment.lanes}),
        rows=opened.rows,
        steps=steps,
        bytes=sum(segment.bytes for segment in segments),
        episodes=None if episodes is None else episodes.num_rows,
        returns=_returns(episodes),
        episode_length_mean=_mean(episodes, "length"),
        captions=None if captions is None else captions.num_rows,
        texts=None if texts is None else texts.num_rows,
        first_sealed=_moment(min((segment.created_unix_ns for segment in segments), default=None)),
        last_sealed=_moment(max((segment.created_unix_ns for segment in segments), default=None)),
        columns=columns,
        torn=opened.torn,
        unreadable=tuple(damage.name for damage in opened.unreadable),
    )


def _steps(opened: ReplayLog) -> int:
    """Rows that are no final ones. Raises: ReplayError, OSError, ArrowException."""
    from pyarrow import dataset

    paths = opened.rows_paths()
    while True:
        try:
            return int(opened.dataset().count_rows(filter=dataset.field("role") == ROLE_STEP))
        except (FileNotFoundError, SegmentError):  # a run's retention removes segments while they are counted
            before, paths = paths, opened.rows_paths()
            if paths == before:
                raise


def _column(column: ArraySpec) -> ColumnSummary:
    values = {field.name: getattr(column, field.name) for field in dataclasses.fields(ColumnSummary)}
    if column.name in FLAGS:
        values["dtype"] = "bool"  # in the log; bytes in the ring
    return ColumnSummary(**values)


def _returns(episodes: pa.Table | None) -> ReturnSummary | None:
    if episodes is None or not episodes.num_rows:
        return None
    values = episodes.column("episode_return").to_numpy()
    return ReturnSummary(mean=float(np.mean(values)), least=float(np.min(values)), most=float(np.max(values)))


def _mean(episodes: pa.Table | None, name: str) -> float | None:
    return None if episodes is None or not episodes.num_rows else float(np.mean(episodes.column(name).to_numpy()))


def _moment(unix_ns: int | None) -> str | None:
    return None if unix_ns is None else datetime.fromtimestamp(unix_ns / 1e9, UTC).isoformat(timespec="seconds")
