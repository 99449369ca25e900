"""How annotators do: latency percentiles and parse failures of their last answers, and what their workers tell."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Mapping

import numpy as np

from onibi.platform.annotation.labels import Judge, Label, LabelValue, Preference, PreferenceValue

log = logging.getLogger(__name__)

_WINDOW = 1_000  # answers
_PERCENTILES = (50, 95, 99)
_COUNTED = (
    *("asked", "answered", "failed_batches", "table_failures", "requests", "answers", "retries", "failures"),
    *("tokens", "cost", "verdicts", "invalid"),
)
"""Figures that each process counts from 0."""
_INVALID = (LabelValue.INVALID, PreferenceValue.INVALID)


class AnnotatorHealth:
    """Metrics ``annotator/NAME/…`` of each annotator, and ``annotation/…`` of all together.

    Args:
        judges: whose labels each annotator's labels are to be, by its name.
    """

    def __init__(self, judges: Mapping[str, Judge]) -> None:
        self._judges, self._strange = judges, set[str]()
        self._answers: dict[str, deque[tuple[float, bool]]] = {name: deque(maxlen=_WINDOW) for name in judges}
        self._told: dict[str, dict[int, Mapping[str, float]]] = {name: {} for name in self._answers}
        self._ended: dict[str, dict[str, float]] = {name: {} for name in judges}  # counted by processes since replaced
        self._totals = {name: {"invalid": 0.0, "tokens": 0.0, "cost": 0.0} for name in self._answers}

    def answered(self, name: str, records: Iterable[Label | Preference]) -> None:
        """Answers of an annotator; where they are another judge's than the run looks for, that is told once."""
        for record in records:
            if record.judge != self._judges[name] and name not in self._strange:
                self._strange.add(name)
                log.warning(
                    "annotator %s answers as %s, where the run was started it is %s: its answers count nowhere and "
                    "are paid again and again. Stop the run; goal, model and prompt_version must be the same in every "
                    "process and on every node (no hash() of a text, no prompt file that differs)",
                    name,
                    record.judge,
                    self._judges[name],
                )
            invalid = record.value in _INVALID
            self._answers[name].append((record.latency_seconds, invalid))
            for figure, value in (("invalid", invalid), ("tokens", record.tokens), ("cost", record.cost)):
                self._totals[name][figure] += value

    def tell(self, name: str, worker: int, figures: Mapping[str, float]) -> None:
        """The newest figures of one of its workers; what a process counted that was replaced since goes on counting."""
        former = self._told[name].get(worker, {})
        if figures.get("asked", 0.0) < former.get("asked", 0.0):
            ended = self._ended[name]
            for figure, count in former.items():
                if figure in _COUNTED or figure.startswith("failures_"):
                    ended[figure] = ended.get(figure, 0.0) + count
        self._told[name][worker] = figures

    def metrics(self) -> dict[str, float]:
        """Of several workers the sum; the highest of latencies and shares; healthy when all of them are.

        ``spent_…`` and ``budget_left_…`` are what each of them reads from the one file that they share: the worker that
        looked last, so the highest and the lowest.

        ``annotation/annotators_healthy`` counts annotators, ``annotation/latency_…`` and ``parse_failure_share`` are
        over the last 1,000 answers of each.
        """
        metrics: dict[str, float] = {}
        for name, answers in self._answers.items():
            own = {**self._totals[name], **_of_answers(answers), **_merged(self._told[name].values())}
            own |= {figure: own.get(figure, 0.0) + value for figure, value in self._ended[name].items()}
            metrics |= {f"annotator/{name}/{figure}": value for figure, value in own.items()}
        if not self._answers:
            return {}

        def all_of(figure: str) -> list[float]:
            return [metrics.get(f"annotator/{name}/{figure}", 0.0) for name in self._answers]

        together = _of_answers([answer for answers in self._answers.values() for answer in answers])
        metrics |= {f"annotation/{figure}": value for figure, value in together.items()}
        metrics["annotation/annotators"] = float(len(self._answers))
        metrics["annotation/annotators_healthy"] = float(sum(value > 0 for value in all_of("healthy")))
        metrics["annotation/annotators_spent"] = float(sum(value > 0 for value in all_of("budget_spent")))
        failing = [
            metrics.get(f"annotator/{name}/healthy") == 0 and metrics.get(f"annotator/{name}/budget_spent") == 0
            for name, told in self._told.items()
            if told
        ]
        metrics["annotation/annotators_failing"] = float(sum(failing))
        for figure in ("failed_batches", "tokens", "cost"):
            metrics[f"annotation/{figure}"] = sum(all_of(figure))
        return metrics


def _of_answers(answers: Iterable[tuple[float, bool]]) -> dict[str, float]:
    answers = list(answers)
    if not answers:
        return {}
    latency = np.percentile([seconds for seconds, _ in answers], _PERCENTILES)
    return {
        **{f"latency_p{share}_seconds": float(value) for share, value in zip(_PERCENTILES, latency, strict=True)},
        "parse_failure_share": sum(invalid for _, invalid in answers) / len(answers),
    }


def _merged(workers: Iterable[Mapping[str, float]]) -> dict[str, float]:
    merged: dict[str, list[float]] = {}
    for figures in workers:
        for figure, value in figures.items():
            merged.setdefault(figure, []).append(value)
    return {figure: _merge(figure, values) for figure, values in merged.items()}


def _merge(figure: str, values: list[float]) -> float:
    if figure in ("healthy", "budget_spent") or figure.startswith("budget_left_"):
        return min(values)
    return max(values) if figure.endswith(("_seconds", "_share")) or figure.startswith("spent_") else sum(values)
