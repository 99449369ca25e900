"""docs/metrics.md names every metric that runs record."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
FIRST_CELLS = re.findall(r"^\| (`.*?`) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
LISTED = [name for cell in FIRST_CELLS for name in re.findall(r"`([^`]+)`", cell)]
A_NAME = re.compile(r"(?<![A-Za-z])[A-Z]+(?![A-Za-z])")

RUNS = {
    "dqn": {
        "learner__priorities": {"exponent": 0.6},
        "learner__noisy": {"sigma": 0.5},
        "rewards__intrinsic": {"kind": "retrieval", "coefficient": 0.1, "episode_high": 3.0, "episode_cap": 2.0},
        "rewards__bonuses": {
            "distilled": {"kind": "rnd", "coefficient": {"start": 0.1, "end": 0.0, "env_steps": 400}},
            "keys": {"kind": "key_counts", "coefficient": 0.1},
            "all_keys": {"kind": "key_counts", "scope": "global", "coefficient": 0.1},
            "places": {"kind": "observation_counts", "scope": "global", "coefficient": 0.1},
            "inverse": {"kind": "e3b", "coefficient": 0.1},
        },
        "rewards__products": [["intrinsic", "distilled"]],
    },
    "heads": {
        "learner": {"kind": "dqn", "batch_size": 16, "value_loss": "mse", "heads": {"extrinsic": {}, "intrinsic": {}}},
    },
    "r2d2": {
        "learner": {
            "kind": "r2d2",
            "batch_size": 8,
            "length": 8,
            "burn_in": 4,
            "period": 4,
            "metrics_period_updates": 1,
            "support": {"low": -0.5, "high": 1.5},
        },
    },
    "pqn": {
        "learner": {"kind": "pqn", "rows": 8, "batch_lanes": 4, "support": {"low": -0.5, "high": 1.5}},
        "replay__limiter": {},
    },
    "appo": {
        "learner": {"kind": "appo", "rows": 8, "batch_lanes": 4, "value_loss": "mse", "metrics_period_updates": 1},
        "replay__limiter": {},
    },
    "classification": {
        "rewards__intrinsic": {
            "kind": "classification",
            "coefficient": 0.1,
            "episode_high": 3.0,
            "minimum_keys": 2,
        },
        "reward_model": {"period_env_steps": 100, "held_out_share": 0.4},
    },
    "ranking": {
        "annotator": {"kind": "similarity", "goal": "reach the room"},
        "rewards__intrinsic": {
            "kind": "ranking",
            "coefficient": 0.1,
            "episode_high": 3.0,
            "minimum_keys": 2,
            "minimum_pairs": 2,
        },
        "reward_model": {"period_env_steps": 100, "held_out_share": 0.4},
    },
}


def is_listed(name: str) -> bool:
    """A part in capitals stands for any name, unless it is all that a listed metric says."""
    if name in LISTED:
        return True
    families = [each for each in LISTED if A_NAME.search(each) and not each.endswith("/FIGURE")]
    return any(re.fullmatch(A_NAME.sub("[^/]+", each), name) for each in families)


def recorded(workshop, name: str) -> set[str]:
    figures = {figure for row in workshop.history(name) for figure in row}
    return figures | {f"evaluation/{figure}" for row in workshop.evaluations(name) for figure in row}


@pytest.mark.parametrize("name", RUNS)
def test_every_metric_of_a_run_stands_on_the_page(workshop, name):
    workshop.train(name, **RUNS[name])
    found = recorded(workshop, name)
    assert len(found) > 60
    assert sorted(figure for figure in found if not is_listed(figure)) == []


def test_a_name_that_the_page_lacks_is_found():
    assert is_listed("learner/loss")
    assert is_listed("annotator/my judge/asked")
    assert is_listed("learner/reward_product/intrinsic-rnd")
    assert not is_listed("learner/lost")
    assert not is_listed("actors/fun"), "an environment's own figure is not on the page by its name"
    assert not is_listed("annotator/lexicon/fun")
    assert not is_listed("bonus/fun")


def test_no_metric_stands_on_the_page_twice():
    assert len(LISTED) > 180
    assert sorted({name for name in LISTED if LISTED.count(name) > 1}) == []
