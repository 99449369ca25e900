"""A run's figures as gauges of Ray's, which Prometheus scrapes from the driver's node (docs/monitoring.md).

    learner/loss              ray_onibi_learner_loss{run="first"}
    annotator/judge/tokens    ray_onibi_annotator_tokens{run="first", name="judge"}

Ray puts ``ray_`` before the name. Every figure is a gauge, those that only rise, too: they are read from the run's own
counters, which go on where a run is resumed, and Ray's ``Counter`` could only be added to.
"""

from __future__ import annotations

import functools
import logging
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)

RUN_ACTIVE = "run/active"
"""1 while a session of the run goes on, 0 when it has ended in order: what broke down vanishes at 1.

The alert OnibiRunBroken goes by that, so a run that failed leaves it at 1 though its process may live on.
"""

_NOT_IN_A_GAUGE = re.compile(r"[^a-zA-Z0-9_]")
_BONUS_FIGURES = (
    "loss|steps|skipped_steps|lost_rows|error_mean|error_deviation|accuracy|observations|table_share|captions"
)
_FAMILIES = tuple(
    (re.compile(pattern), gauge)
    for pattern, gauge in (
        (r"annotator/(?P<name>.+)/(?P<figure>[^/]+)", "annotator_{figure}"),
        (r"alarms/(?P<name>.+)", "alarms_up"),
        (rf"bonus/(?P<name>.+?)_(?P<figure>{_BONUS_FIGURES})", "bonus_{figure}"),
        (r"(?P<group>actors|evaluation)/return_(?!mean$)(?P<name>.+)", "{group}_return"),
        (r"learner/reward_(?!clipped_share$|deviation$)(?P<name>[^/]+)", "learner_reward"),
        (r"(?P<group>[^/]+)/(?P<figure>[^/]+)/(?P<name>.+)", "{group}_{figure}"),
    )
)
"""Metrics with a free part in their name: one gauge for all of a family, the free part in its label ``name``."""


@dataclass(frozen=True)
class GaugeSeries:
    """The gauge of a metric, as it is given to Ray, and its label ``name``; "" stands for no label."""

    gauge: str
    name: str = ""


@functools.lru_cache(maxsize=4_096)
def series_of(metric: str) -> GaugeSeries:
    """Where a metric of docs/metrics.md is found in Prometheus; defined for every text.

    Characters that Prometheus does not allow become ``_``: a figure of your own called ``my-figure`` is ``my_figure``.
    """
    for pattern, gauge in _FAMILIES:
        if match := pattern.fullmatch(metric):
            parts = match.groupdict()
            return GaugeSeries(_gauge_name(gauge.format(**parts)), parts["name"])
    return GaugeSeries(_gauge_name(metric))


def _gauge_name(metric: str) -> str:
    return "onibi_" + _NOT_IN_A_GAUGE.sub("_", metric)


class PrometheusExporter:
    """Sets gauges in this process, from where Ray fetches them every ten seconds; it waits for nobody.

    Whatever goes wrong is logged once and costs the run nothing, nor the row its other figures. Without a connection to
    Ray nothing is exported.

    Args:
        run: the run's name, the label ``run``.
        enabled: False exports nothing: switched off, or a serial run, which has no Ray.
    """

    def __init__(self, run: str, *, enabled: bool) -> None:
        self._run, self._enabled = run, enabled
        self._warned = False

    def log(self, row: Mapping[str, float]) -> None:
        """Export figures ``group/name``. What is not finite is left out: the gauge stays at its last value."""
        self._set({RUN_ACTIVE: 1.0, **row})

    def close(self) -> None:
        """Tell that the run has ended in order. Ray's own end hands the last values on."""
        self._set({RUN_ACTIVE: 0.0})

    def _set(self, row: Mapping[str, float]) -> None:
        if not (self._enabled and _is_connected()):
            return
        for metric, value in row.items():
            try:
                if math.isfinite(value):
                    series = series_of(metric)
                    _gauge(series.gauge).set(float(value), tags={"run": self._run, "name": series.name})
            except Exception as error:  # noqa: BLE001 whatever Ray raises, or a value that is no number
                if not self._warned:
                    self._warned = True
                    log.warning(
                        "Prometheus: %s is not exported (%s), perhaps others; training goes on, history.jsonl has "
                        "them. tracking.prometheus: false leaves the export out",
                        metric,
                        error,
                    )


def _is_connected() -> bool:
    """Without importing Ray: who has not imported it is not connected."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


@functools.cache
def _gauge(name: str) -> Any:
    """One object for a name in a process, whatever runs and sessions it has."""
    from ray.util.metrics import Gauge

    return Gauge(name, description="A figure of Onibi's: docs/metrics.md", tag_keys=("run", "name"))
