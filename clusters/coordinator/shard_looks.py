"""What several replay shards tell of themselves, as if it were one that told it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onibi.platform.rewards.pay_watch import merged_pay

_LARGEST = ("_worst_lane", "_lag_seconds", "log_failed")
"""Ends of the names of metrics of which the largest is told."""
_SUMS = ("replay/log_", "replay/lanes_with_rows", "actors/waiting_for_lanes")
"""Begins of the names of those that add up; the others are told as their mean."""


def merged_look(looks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One look of all shards, as ``ShardActor.look`` tells it.

    Counters, waits and pay are sums, the first insertion that of whoever was first, and what one of them says in words
    begins with its number.
    """
    if len(looks) == 1:
        return dict(looks[0])
    first = looks[0]
    # Counters are whole numbers at the top; seconds that were waited, fractions.
    merged: dict[str, Any] = {
        name: sum(look[name] for look in looks) for name, value in first.items() if isinstance(value, (int, float))
    }
    merged["first_insertion_age_seconds"] = max(look["first_insertion_age_seconds"] for look in looks)
    for name in ("episodes", "policy_updates"):
        merged[name] = [each for look in looks for each in look[name]]
    for name in ("pacing", "log"):
        merged[name] = _merged_metrics([look[name] for look in looks])
    told = [look["held_back"].partition(": ") for look in looks]
    merged["held_back"] = "; ".join(
        f"{who} by shard {number}: {why}" for number, (who, _, why) in enumerate(told) if who
    )
    merged["log_failure"] = "; ".join(
        f"shard {number}: {look['log_failure']}" for number, look in enumerate(looks) if look["log_failure"]
    )
    merged["pay"] = merged_pay([look["pay"] for look in looks])
    return merged


def _merged_metrics(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    told: dict[str, list[float]] = {}
    for part in parts:
        for name, value in part.items():
            told.setdefault(name, []).append(value)
    return {name: _merged(name, values) for name, values in told.items()}


def _merged(name: str, values: Sequence[float]) -> float:
    if name.endswith(_LARGEST):
        return max(values)
    return sum(values) if name.startswith(_SUMS) else sum(values) / len(values)
