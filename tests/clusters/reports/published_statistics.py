"""Writes published_statistics.json: what rliable, the package of the paper, gives for scores drawn here.

It brings old pins along, so it is run by hand in an environment of its own:

    python -m venv v && v/bin/pip install rliable==1.2.0 'pandas<3' && v/bin/python THIS_FILE

The tests of seed statistics compare with the file.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np

RESAMPLES = 20_000


def inputs() -> dict[str, np.ndarray]:
    """Scores [runs, tasks]; x and y share values, so that ties count."""
    rng = np.random.default_rng(20261121)
    return {
        "x": np.round(rng.normal(0.7, 0.4, (10, 4)), 1),
        "y": np.round(rng.normal(0.5, 0.4, (8, 4)), 1),
        "few": rng.random((5, 3)) * 1.5,
    }


def main() -> None:
    from rliable import library, metrics

    given = inputs()
    statistics = {
        "iqm": metrics.aggregate_iqm,
        "mean": metrics.aggregate_mean,
        "median": metrics.aggregate_median,
        "gap": metrics.aggregate_optimality_gap,
    }
    found = {}
    for name, statistic in statistics.items():
        values, intervals = library.get_interval_estimates(
            given, lambda scores, statistic=statistic: np.array([statistic(scores)]), reps=RESAMPLES
        )
        for group in given:
            found[f"{name} {group}"] = [float(values[group][0]), *map(float, intervals[group][:, 0])]
    pair = {"x,y": (given["x"], given["y"])}
    values, intervals = library.get_interval_estimates(pair, metrics.probability_of_improvement, reps=RESAMPLES // 10)
    found["improvement x y"] = [float(values["x,y"]), *map(float, np.ravel(intervals["x,y"]))]
    document = {
        "made_by": f"rliable {version('rliable')}",
        "given": {name: scores.tolist() for name, scores in given.items()},
        "found": found,
    }
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(document, separators=(",", ":")).replace('],"', '],\n"') + "\n")


if __name__ == "__main__":
    main()
