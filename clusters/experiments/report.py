"""An experiment's outcome as tables for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from onibi.clusters.experiments.declaration import Experiment
from onibi.clusters.experiments.outcome import TOO_FEW, ArmOutcome, ComparisonOutcome, Threshold
from onibi.clusters.experiments.schedule import Schedule
from onibi.clusters.reports.figures import UNKNOWN, count_text, value_text
from onibi.clusters.reports.seed_statistics import Estimate


def outcome_table(experiment: Experiment, outcomes: Sequence[ArmOutcome]) -> Table:
    """A line for each arm: claim, scores over seeds, verdict."""
    tuned = any(outcome.tuned is not None for outcome in outcomes)
    columns = ["arm", "task", "score", "claim", "runs", "worst", "mean", "IQM (95%)", *["tuned"] * tuned, "verdict"]
    title = f"{experiment.name}: {experiment.summary}"
    table = _table(title, columns, right=("claim", "runs", "worst", "mean"), folded="verdict")
    for outcome in outcomes:
        scores = list(outcome.scores.values())
        worst = min(scores, default=None) if outcome.arm.higher_is_better else max(scores, default=None)
        table.add_row(
            Text(outcome.arm.name),
            Text(outcome.arm.task),
            Text(outcome.arm.figure),
            outcome.arm.claim,
            f"{len(scores)}/{len(outcome.wanted)}",
            value_text(worst),
            value_text(sum(scores) / len(scores) if scores else None),
            estimate_text(outcome.middle),
            *[UNKNOWN if outcome.tuned is None else f"{outcome.tuned:g}"] * tuned,
            Text(outcome.verdict, style=_style(outcome.verdict)),
        )
    return table


def comparison_table(outcomes: Sequence[ComparisonOutcome]) -> Table:
    """A line for each comparison: what was expected, what was found."""
    tested = any(outcome.comparison.test == "permutation" for outcome in outcomes)
    columns = ["arm", "over", "difference (95%)", *["p"] * tested, "wins", "expected", "found", ""]
    table = _table("Comparisons", columns, right=("p", "wins"), folded="")
    for outcome in outcomes:
        answer = {None: "", True: "as expected", False: "NOT as expected"}[outcome.as_expected]
        if outcome.as_expected is False and outcome.comparison.claimed:
            answer = "DOES NOT HOLD"
        if outcome.found == TOO_FEW and outcome.comparison.claimed:
            answer = "NOT shown: it takes more --seeds"
        table.add_row(
            Text(outcome.comparison.arm),
            Text(outcome.comparison.other),
            estimate_text(outcome.difference),
            *[UNKNOWN if outcome.p_value is None else f"{outcome.p_value:.2g}"] * tested,
            f"{outcome.wins}/{outcome.pairs}" if outcome.pairs else "",
            outcome.comparison.expected,
            outcome.found,
            Text(answer, style=_style(answer)),
        )
    return table


def arrival_table(outcomes: Sequence[ArmOutcome]) -> Table:
    """Env steps to 80% success, run by run; who never arrives is over the budget."""
    table = _table("Env steps to 80% success", ["arm", "arrived", "each run"], right=("arrived",), folded="each run")
    for outcome in outcomes:
        if not outcome.arrivals:
            continue
        late = f"> {count_text(outcome.budget)}"
        order = sorted(outcome.arrivals.values(), key=lambda steps: math.inf if steps is None else steps)
        arrived = sum(steps is not None for steps in order)
        each = ", ".join(late if steps is None else count_text(steps) for steps in order)
        table.add_row(Text(outcome.arm.name), f"{arrived}/{len(order)}", each)
    return table


def threshold_table(experiment: Experiment, found: Sequence[Threshold]) -> Table:
    """What the reference seeds allow to be claimed."""
    columns = ["arm", "seeds", "worst", "SD", "threshold"]
    title = f"{experiment.name}: the worst reference seed less 2 standard deviations"
    table = _table(title, columns, right=columns[1:], folded="")
    for each in found:
        figures = (each.worst, each.deviation, each.threshold)
        table.add_row(Text(each.arm), str(each.seeds), *(f"{figure:.4g}" for figure in figures))
    return table


def arms_table(schedule: Schedule) -> Table:
    """What an experiment would run."""
    columns = ["arm", "task", "group", "claim", "seeds", "missing", ""]
    title = f"{schedule.experiment.name}: {schedule.experiment.summary}"
    table = _table(title, columns, right=("claim", "missing"), folded="")
    missing = {each.arm: each.missing for each in schedule.estimates()}
    for arm in schedule.experiment.arms:
        if arm.name not in schedule.missing and arm not in schedule.arms:
            continue
        absent = schedule.missing.get(arm.name)
        note = f"not there: {absent}" if absent else ""
        seeds = _spans(schedule.seeds_of(arm))
        left = UNKNOWN if absent else str(missing.get(arm.name, 0))
        table.add_row(
            *map(Text, (arm.name, arm.task, arm.group)), arm.claim, seeds, left, Text(note, style=_style(note))
        )
    return table


def estimate_text(found: Estimate | None) -> str:
    """Value (low to high)."""
    if found is None:
        return UNKNOWN
    if not found.is_known:
        return f"{value_text(found.value)} (too few runs)"
    return f"{value_text(found.value)} ({value_text(found.low)} to {value_text(found.high)})"


def _style(text: str) -> str:
    if text.startswith(("FAILED", "DOES NOT")):
        return "red"
    return "yellow" if text.startswith(("not there", "NOT")) else "green" if text == "holds" else ""


def _spans(seeds: Sequence[int]) -> str:
    """As ``--seeds`` takes them: 1-5,8."""
    parts: list[list[int]] = []
    for seed in seeds:
        if parts and seed == parts[-1][-1] + 1:
            parts[-1][1:] = [seed]
        else:
            parts.append([seed])
    return ",".join("-".join(map(str, part)) for part in parts)


def _table(title: str, columns: Sequence[str], right: Sequence[str], folded: str) -> Table:
    # Text: names may hold what rich takes for markup, as dqn[lr=0.1].
    table = Table(title=Text(title, "bold"), title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(
            name, justify="right" if name in right else "left", no_wrap=name not in (folded, "task"), overflow="fold"
        )  # fmt: skip
    return table
