"""What a log under way tells of itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LogFigures:
    """What became of the rows of this opening, and what the log holds now."""

    rows: int  # handed to the log, rows that an earlier opening left in the ring included
    sealed_rows: int
    dropped_rows: int  # lost to the log
    segments: int  # in the log now, earlier openings' included
    stored_bytes: int  # of them
    lag_seconds: float  # age of the oldest row that is not sealed
    failure: str  # why it takes no rows now; empty while it does


def log_metrics(figures: LogFigures) -> dict[str, float]:
    """The figures as metrics."""
    return {
        "replay/log_rows": float(figures.rows),
        "replay/log_sealed_rows": float(figures.sealed_rows),
        "replay/log_dropped_rows": float(figures.dropped_rows),
        "replay/log_segments": float(figures.segments),
        "replay/log_bytes": float(figures.stored_bytes),
        "replay/log_lag_seconds": figures.lag_seconds,
        "replay/log_failed": float(bool(figures.failure)),
    }
