"""What the processes of a Ray run use, asked of all at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import ray

from onibi.clusters.run_profile import profile_of
from onibi.platform.process_usage import ProcessUsage, process_usage

log = logging.getLogger(__name__)

_ANSWER_SECONDS = 5.0  # for all roles together
_LOOK_SECONDS = 1.0
_COMPUTES_CORES = 0.05  # Ray's own threads take less


def usage_of(handles: Mapping[str, Any]) -> dict[str, ProcessUsage]:
    """Usage of each role that answers, by role, the coordinator's own included.

    Args:
        handles: actors by role.
    """
    asked = {handle.usage.remote(): role for role, handle in handles.items()}
    answers = {"coordinator": process_usage()}
    # An actor that has no place in the cluster yet does not answer, nor does one that is being replaced.
    for reference in ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_SECONDS)[0]:
        try:
            answers[asked[reference]] = ray.get(reference)
        except ray.exceptions.RayError as error:
            log.debug("no usage of %s: %s", asked[reference], error)
    return answers


def signs_of_life(handles: Mapping[str, Any]) -> str:
    """Which roles compute, which wait, and which do not answer, in words; takes a second, or some."""
    began, before = time.monotonic(), usage_of(handles)
    time.sleep(_LOOK_SECONDS)
    after = usage_of(handles)
    cores = {each.role: each.cores for each in profile_of(before, after, time.monotonic() - began)}
    told = {
        "computing": [f"{role} ({cores[role]:.2f} cores)" for role in handles if cores.get(role, 0) >= _COMPUTES_CORES],
        "waiting": [role for role in handles if role in cores and cores[role] < _COMPUTES_CORES],
        "no answer from": [role for role in handles if role not in cores],
    }
    return "; ".join(f"{what} {', '.join(roles)}" for what, roles in told.items() if roles)
