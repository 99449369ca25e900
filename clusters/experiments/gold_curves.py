"""Gold against distance from the base policy, one curve for each proxy: the picture of `reward-noise`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onibi.clusters.experiments.proxy_optimisation import NATS, gold_column
from onibi.clusters.reports.picture import BLUE, GREEN, GREY, ORANGE, new_picture, plain_axes, write_png
from onibi.platform.counted import counted

_COLORS = {"single": ORANGE, "mean": GREY, "minimum": BLUE, "deviation": GREEN}
_OTHER_COLOR = "#3A4046"


def curves_by_arm(rows: Sequence[Mapping[str, str]]) -> dict[str, NDArray[np.float64]]:
    """Arm → gold [seeds, distances] of the runs that ended well, in the order of the rows."""
    runs: dict[str, list[list[float]]] = {}
    for row in rows:
        if row.get("status") == "ok":
            runs.setdefault(row["arm"], []).append([float(row[gold_column(nats)]) for nats in NATS])
    return {arm: np.array(curves) for arm, curves in runs.items()}


def kept_share(curves: NDArray[np.float64]) -> tuple[float, float]:
    """Of the mean over seeds: its last value as a share of its highest, and the distance of the latter."""
    mean = curves.mean(axis=0)
    peak = int(mean.argmax())
    return float(mean[-1] / mean[peak]), NATS[peak]


def draw(rows: Sequence[Mapping[str, str]], path: Path, title: str) -> bool:
    """Draw the mean over seeds with its standard error, single seeds thin, into a PNG.

    Args:
        rows: of the experiment's CSV.
        path: the file to write.
        title: over the picture.
    Returns: False, with no file written, where there is no row. Raises: OSError where the file cannot be written.
    """
    curves = curves_by_arm(rows)
    if not curves:
        return False
    figure = new_picture(7.6, 4.6, title)
    axis = figure.subplots()
    for arm, gold in curves.items():
        color = _COLORS.get(arm, _OTHER_COLOR)
        kept, peak = kept_share(gold)
        mean, error = gold.mean(axis=0), gold.std(axis=0, ddof=1 if len(gold) > 1 else 0) / np.sqrt(len(gold))
        for seed in gold:
            axis.plot(NATS, seed, color=color, linewidth=0.5, alpha=0.25)
        axis.fill_between(NATS, mean - error, mean + error, color=color, alpha=0.18, linewidth=0)
        label = f"{arm}: peak at {peak:g} nats, keeps {kept:.0%} at {NATS[-1]:g} ({counted(len(gold), 'seed')})"
        axis.plot(NATS, mean, color=color, linewidth=2.0, label=label)
    plain_axes(
        axis,
        x="nats from the base policy, optimised against the proxy",
        y="gold, in its standard deviations: mean ± standard error",
    )
    axis.set_xlim(0, NATS[-1])
    axis.legend(fontsize=8, frameon=False, loc="best")
    write_png(figure, path)
    return True
