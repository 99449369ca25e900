"""Where one second of each process of a run goes: processor time by role, and what the loops were doing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from onibi.platform.process_usage import ProcessUsage


@dataclass(frozen=True)
class RoleProfile:
    """Of one process, over ``seconds`` of training. ``shares`` split its loop's time; they need not sum to 1."""

    role: str
    cores: float  # processor seconds per second
    resident_bytes: int
    shares: dict[str, float]


def profile_of(
    before: Mapping[str, ProcessUsage], after: Mapping[str, ProcessUsage], seconds: float
) -> list[RoleProfile]:
    """Profiles of the roles that are in both, in the order of ``after``; a role that was replaced is left out."""
    profiles = []
    for role, usage in after.items():
        first = before.get(role)
        if first is None or first.pid != usage.pid:
            continue
        shares = {
            part: (spent - first.spent_seconds.get(part, 0.0)) / seconds for part, spent in usage.spent_seconds.items()
        }
        cores = (usage.cpu_seconds - first.cpu_seconds) / seconds
        profiles.append(RoleProfile(role, cores, usage.resident_bytes, shares))
    return profiles


def write_profile(profiles: list[RoleProfile], path: Path) -> None:
    """Keep the profile as JSON."""
    path.write_text(json.dumps([asdict(each) for each in profiles], indent=1) + "\n", encoding="utf-8")
