"""How a run becomes a row: what the arm's declaration says of the figures that the run gave."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from onibi.clusters.experiments.declaration import Arm
from onibi.clusters.experiments.result_table import ResultRow
from onibi.clusters.experiments.schedule import Schedule

_OF_RUN = ("experiment", "arm", "task", "group", "stage", "seed", "config_hash", "date", "tuned")
_OF_SCORE = ("status", "error", "score", "direction", "normalized")
_WALL_SECONDS = "wall_seconds"
OWN_COLUMNS = (*_OF_RUN, *_OF_SCORE)
"""Of the table: no figure may be called so."""


def declared_columns(arm: Arm, figures: Mapping[str, Any], error: str) -> dict[str, Any]:
    """What a row says by the arm's declaration: names, score, and whether the run counts.

    Args:
        arm: as it is declared now.
        figures: that the run gave, numbers among them as such or as text; none of a run that failed.
        error: that the run failed of; empty where it ended well.
    """
    score = None
    if not error:
        score, error = _score_of(arm.figure, figures)
    normalized = None
    if arm.score_range is not None and score is not None:
        low, high = arm.score_range
        normalized = (score - low) / (high - low)
    return {
        "arm": arm.name,
        "task": arm.task,
        "group": arm.group,
        "status": "failed" if error else "ok",
        "error": error,
        "score": score,
        "direction": "higher" if arm.higher_is_better else "lower",
        "normalized": normalized,
    }


def misnamed_figures(figures: Mapping[str, Any]) -> str:
    """An error where a called function returns figures by names of the table's own columns; else empty."""
    taken = [name for name in OWN_COLUMNS if name in figures]
    return f"figures are called as columns of the table are: {', '.join(taken)}. Name them otherwise." if taken else ""


def rebook(schedule: Schedule) -> int:
    """Bring rows that are there up to what their arms declare now, and write them: another figure, task or range.

    Nothing is run for it, as a row holds all figures of its run. Returns: how many rows changed.
    Raises: ConfigError where the table cannot be written.
    """
    names = {arm.name for arm in schedule.experiment.arms}
    changed = 0
    for arm in schedule.arms:
        for row in (*schedule.tuning_rows(arm), *schedule.final_rows(arm)):
            if row.get("arm", arm.name) != arm.name and row["arm"] in names:
                continue  # two arms judge the same runs; the row is the other's
            figures = _figures_of(row)
            if row.get("status") == "failed" and row.get("error") and arm.figure not in figures:
                continue  # what its error tells; a column that a hand has put there is no figure
            if figures:
                columns = declared_columns(arm, figures, "")
                if _agree(row.get("normalized", ""), columns["normalized"]):
                    del columns["normalized"]
                changed += schedule.table.update(row, columns)
    return changed


def _agree(stored: str, normalized: float | None) -> bool:
    """Whether both are the same number but for digits that the table does not keep."""
    if normalized is None or not stored:
        return normalized is None and not stored
    try:
        return math.isclose(float(stored), normalized, rel_tol=1e-4, abs_tol=1e-4)
    except ValueError:  # damaged: written anew
        return False


def _figures_of(row: ResultRow) -> dict[str, str]:
    """Those of a stored row; none of a run that failed before it gave any."""
    return {name: text for name, text in row.items() if text and name not in (*OWN_COLUMNS, _WALL_SECONDS)}


def _score_of(name: str, figures: Mapping[str, Any]) -> tuple[float | None, str]:
    """The figure of this name, and an error where it is no score; where it is not finite it is both."""
    found = figures.get(name)
    if found is None:
        return None, f"the run gave no figure {name!r}, but {', '.join(sorted(figures)) or 'none at all'}"
    try:
        score = float(found)
    except (TypeError, ValueError):
        return None, f"the figure {name!r} is {found!r}; allowed: a number"
    return score, "" if math.isfinite(score) else f"{name} is {score:g}"
