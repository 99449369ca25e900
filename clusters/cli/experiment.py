"""``onibi experiment``: claims over many seeds, run once, resumable, told as one table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onibi.clusters.cli.frame import DEFAULT_RUNS_FOLDER, Debug, RunsFolder, show_names, told, wide_console

if TYPE_CHECKING:
    from rich.console import Console

    from onibi.clusters.experiments.declaration import Arm, Experiment
    from onibi.clusters.experiments.outcome import ComparisonOutcome
    from onibi.clusters.experiments.schedule import Schedule


_MOST_SEEDS, _MOST_DIGITS = 10_000, 18


def experiment(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Of an experiment (see --list), or module:NAME of your own.")
    ] = None,
    show_list: Annotated[
        bool, typer.Option("--list", help="List the experiments, or with NAME its arms; run nothing.")
    ] = False,
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="1-5,8", help="In place of the declared ones; not with --short.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="ARM", help="These arms; * stands for anything; may be repeated."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", dir_okay=False, help="The CSV; experiments/NAME.csv in the runs folder if left out."
        ),
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", min=1, max=256, metavar="N", help="Runs at a time, each on one core.")
    ] = 2,
    short: Annotated[
        bool,
        typer.Option(
            "--short", help="A small form that the experiment declares, by default one short run an arm. No verdicts."
        ),
    ] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Run again what failed.")] = False,
    thresholds: Annotated[
        bool, typer.Option("--thresholds", help="On the reference seeds: print the worst less 2 SD of each arm.")
    ] = False,
    figure: Annotated[
        Path | None, typer.Option("--figure", metavar="PNG", dir_okay=False, help="Draw what was found.")
    ] = None,
    runs_folder: RunsFolder = DEFAULT_RUNS_FOLDER,
    debug: Debug = False,
) -> None:
    """Run an experiment's missing runs, two at a time, and print its table. Exit code 1 where a claim does not hold.

    One run is one row of a CSV, found by the hash of its settings and its seed; rows that are there are not run again,
    so Ctrl-C and a crash cost no more than the runs they interrupt. Each run is serial, in a process of its own, with
    its budget in steps; its checkpoint named best plays fresh episodes once. What is left is estimated first.

    Examples:
      onibi experiment --list
      onibi experiment learners --output docs/results/learners.csv
      onibi experiment learners --only 'cartpole-*' --seeds 1-3
      onibi experiment learners --thresholds
      onibi experiment stop-regressing --jobs 1
      onibi experiment it-helps --short --output short.csv
      onibi experiment it-helps --figure docs/results/it_helps.png
    """
    with told(debug=debug, runs_folder=runs_folder):
        from onibi.clusters.experiments.outcome import check_comparisons
        from onibi.clusters.experiments.registry import find_experiment
        from onibi.clusters.experiments.report import arms_table
        from onibi.clusters.experiments.result_table import ResultTable, check_place
        from onibi.clusters.experiments.schedule import Schedule
        from onibi.platform.errors import ConfigError

        if name is None:
            _tell_names(show_list)
            return
        found = find_experiment(name)
        if short and seeds is not None:
            raise ConfigError("experiment: --short runs the first of the declared seeds; leave --seeds or --short out.")
        if short and thresholds:
            raise ConfigError("experiment: --thresholds is of whole runs; leave --short or --thresholds out.")
        chosen_seeds = _seeds(seeds) or (found.reference_seeds if thresholds else None)
        folder = runs_folder.expanduser() / "experiments" / found.name
        table = ResultTable(output or folder.with_name(f"{found.name}.csv"))
        schedule = Schedule(found, table, _arms(found, only, short=short), chosen_seeds, short=short, retry=retry)
        console = wide_console()
        if show_list:
            console.print(arms_table(schedule))
            return
        if figure is not None or not thresholds:  # thresholds compare nothing
            check_comparisons(schedule)
        if figure is not None:
            check_place(figure)
        _run(schedule, folder, jobs)
        is_fulfilled = _tell(console, schedule, thresholds=thresholds, figure=figure)
        print(f"rows in {table.path}, runs and logs in {folder}")
    if not is_fulfilled:
        raise typer.Exit(1)


def _tell_names(show_list: bool) -> None:
    from onibi.clusters.experiments.registry import EXPERIMENTS, find_experiment
    from onibi.platform.errors import ConfigError

    if not show_list:
        raise ConfigError(f"experiment: name one of {', '.join(EXPERIMENTS)}, or ask for --list.")
    show_names({each: find_experiment(each).summary for each in EXPERIMENTS})


def _run(schedule: Schedule, folder: Path, jobs: int) -> None:
    from onibi.clusters.experiments.booking import rebook
    from onibi.clusters.experiments.display import ExperimentDisplay, estimate_table
    from onibi.clusters.experiments.runner import ExperimentRunner

    console = wide_console(stderr=True)
    for arm, reason in schedule.missing.items():
        console.print(f"{arm} is not there: {reason}", markup=False, highlight=False)
    if changed := rebook(schedule):
        console.print(f"rows brought up to what their arms declare now: {changed}", highlight=False)
    estimates = schedule.estimates()
    if not estimates:
        return
    console.print(estimate_table(estimates, jobs))
    with ExperimentDisplay(console, schedule, jobs) as display:
        ExperimentRunner(schedule, folder, jobs, display).run()


def _tell(console: Console, schedule: Schedule, *, thresholds: bool, figure: Path | None) -> bool:
    """Print what was found; whether every claim holds."""
    from onibi.clusters.experiments import outcome, report

    arms = outcome.arm_outcomes(schedule)
    comparisons = [] if thresholds and figure is None else outcome.comparison_outcomes(schedule, arms)
    if schedule.short:
        comparisons = [
            each for each in comparisons if each.difference is not None and each.comparison.test == "permutation"
        ]
    errors = outcome.errors_of(schedule, arms)
    if thresholds:
        console.print(report.threshold_table(schedule.experiment, outcome.thresholds(arms)))
    else:
        console.print(report.outcome_table(schedule.experiment, arms))
        if comparisons:
            console.print()
            console.print(report.comparison_table(comparisons))
        if any(each.arrivals for each in arms):
            console.print()
            console.print(report.arrival_table(arms))
    if figure is not None:
        _draw(schedule, comparisons, figure)
    for line in errors:
        print(f"failed: {line}")
    if errors:
        print("once the cause is gone, --retry runs them again")
    if schedule.short:
        print("shortened runs: told, and nothing is claimed of them")
        return not errors and not schedule.missing
    if thresholds:
        return not errors
    held = [each.as_expected is True for each in comparisons if each.comparison.claimed]
    return all(each.is_claim_met for each in arms) and all(held) and not errors


def _draw(schedule: Schedule, comparisons: list[ComparisonOutcome], path: Path) -> None:
    from onibi.clusters.experiments.figure import differences_png
    from onibi.clusters.experiments.registry import imported
    from onibi.platform.errors import ConfigError

    name, picture = schedule.experiment.name, schedule.experiment.picture
    try:
        if picture:
            draw: Any = imported(picture)
            is_drawn = draw([row for arm in schedule.arms for row in schedule.final_rows(arm)], path, name)
        else:
            is_drawn = differences_png(comparisons, path, f"{name}: differences over seeds")
    except OSError as error:
        raise ConfigError(f"{path}: not written ({error}). Choose another file.") from error
    if not is_drawn:
        raise ConfigError("experiment: --figure: the runs that it needs are missing, so there is nothing to draw.")


def _arms(experiment: Experiment, patterns: list[str] | None, *, short: bool) -> list[Arm]:
    from fnmatch import fnmatchcase

    from onibi.platform.config_words import nearest
    from onibi.platform.errors import ConfigError

    if not patterns:
        return list(experiment.arms_of(short=short))
    names = [arm.name for arm in experiment.arms]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f"--only {pattern!r} is no arm.{nearest(pattern, names)} Allowed: {', '.join(names)}.")
    return [arm for arm in experiment.arms if any(fnmatchcase(arm.name, pattern) for pattern in patterns)]


def _seeds(text: str | None) -> tuple[int, ...] | None:
    from onibi.platform.errors import ConfigError

    if text is None:
        return None
    seeds: dict[int, None] = {}
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not dash:
            last = first
        if max(len(first), len(last)) > _MOST_DIGITS:
            raise ConfigError(
                f"--seeds: a seed has more than {_MOST_DIGITS} digits; allowed: numbers and spans, as 1-5,8."
            )
        if not first.isdecimal() or not last.isdecimal() or int(last) < int(first):
            raise ConfigError(f"--seeds {text!r}: {part!r} is no seed; allowed: numbers and spans, as 1-5,8.")
        span = range(int(first), int(last) + 1)
        if len(seeds) + len(span) > _MOST_SEEDS:
            raise ConfigError(
                f"--seeds {text!r}: more than {_MOST_SEEDS:,} seeds. Each is a run of every arm: name fewer."
            )
        seeds |= dict.fromkeys(span)
    return tuple(seeds)
