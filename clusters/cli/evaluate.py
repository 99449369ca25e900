"""``onibi evaluate``: one run in fresh episodes, or many runs with the statistics of few seeds."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onibi.clusters.cli.frame import DEFAULT_RUNS_FOLDER, Debug, RunsFolder, tell, told, wide_console

if TYPE_CHECKING:
    from onibi.clusters.judgement import EvaluationReport
    from onibi.clusters.reports.seed_report import SeedReport

_DEFAULT_CHECKPOINT, _DEFAULT_EPISODES, _DEFAULT_SEED, _DEFAULT_VIDEO_EPISODES = "best", 100, 10_000, 3


def evaluate(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN…", help="Runs by name or folder, 'last', or an experiment's CSV.")
    ],
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint",
            metavar="best|last|N",
            help="Which one plays: best is the one that the run's own evaluations scored highest, by its "
            f"evaluation.judge; N a number of env steps. Default: {_DEFAULT_CHECKPOINT}.",
        ),
    ] = None,
    episodes: Annotated[
        int | None,
        typer.Option(
            "--episodes",
            min=1,
            metavar="N",
            help="Fresh episodes of each run and player, shared out over up to 8 environments. "
            f"Default: {_DEFAULT_EPISODES}.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            min=0,
            metavar="N",
            help=f"First seed of the games; keep it apart from training's. Default: {_DEFAULT_SEED}.",
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="random",
            help="One run: a policy to compare with on the same terms, by the run's evaluation.judge.",
        ),
    ] = None,
    video: Annotated[
        Path | None,
        typer.Option(
            "--video",
            metavar="FILE",
            dir_okay=False,
            help="One run: film episodes of it besides, with captions and what they pay; .mp4 (extra 'video'), .gif or "
            ".webp.",
        ),
    ] = None,
    video_episodes: Annotated[
        int | None,
        typer.Option(
            "--video-episodes", min=1, metavar="N", help=f"How many are filmed. Default: {_DEFAULT_VIDEO_EPISODES}."
        ),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option("--baseline", metavar="GROUP", help="Several: the group to compare the others with.")
    ] = None,
    target: Annotated[
        float | None, typer.Option("--target", help="Several: the score from which a run has no gap left.")
    ] = None,
    curves: Annotated[
        Path | None, typer.Option("--curves", metavar="PNG", dir_okay=False, help="Several: draw learning curves.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
    runs_folder: RunsFolder = DEFAULT_RUNS_FOLDER,
    debug: Debug = False,
) -> None:
    """Play policies greedily on fresh episodes. Exit code 1 where --against is not beaten.

    A run is compared by what its own evaluation.judge names (return, success or intrinsic return): passed where the
    trained policy's 95% interval lies wholly above the other's. Further figures stand beside it.

    Several runs, or an experiment's CSV, where nothing is played: interquartile mean, mean and median over seeds and
    tasks with 95% intervals by stratified bootstrap, and the probability that one group's run beats another's. Runs
    whose settings differ in the seed alone are one group.

    Examples:
      onibi evaluate last
      onibi evaluate last --episodes 20 --video games.gif
      onibi evaluate nethack-oni-1 --episodes 50 --against random
      onibi evaluate dqn-1 dqn-2 dqn-3 appo-1 appo-2 appo-3 --curves curves.png
      onibi evaluate docs/results/learners.csv --baseline dqn --json
    """
    with told(debug=debug, runs_folder=runs_folder):
        _check_options(
            runs,
            of_one={"--against": against, "--video": video, "--video-episodes": video_episodes},
            played={"--checkpoint": checkpoint, "--episodes": episodes, "--seed": seed},
            compared={"--baseline": baseline, "--target": target, "--curves": curves},
        )
        playing = _playing(checkpoint, episodes, seed)
        report = None
        if _is_one_run(runs):
            report = _evaluate_one(
                runs[0],
                runs_folder,
                *playing,
                against=against,
                video=video,
                video_episodes=video_episodes or _DEFAULT_VIDEO_EPISODES,
                as_json=as_json,
            )
        else:
            _evaluate_many(runs, runs_folder, playing, target, baseline, curves, as_json)
    if report is not None and report.passed is False:
        raise typer.Exit(1)


def _playing(checkpoint: str | None, episodes: int | None, seed: int | None) -> tuple[str, int, int]:
    return (
        _DEFAULT_CHECKPOINT if checkpoint is None else checkpoint,
        _DEFAULT_EPISODES if episodes is None else episodes,
        _DEFAULT_SEED if seed is None else seed,
    )


def _is_one_run(runs: list[str]) -> bool:
    return len(runs) == 1 and not runs[0].endswith(".csv")


def _check_options(
    runs: list[str], of_one: Mapping[str, object], played: Mapping[str, object], compared: Mapping[str, object]
) -> None:
    """Raises: ConfigError for an option that would do nothing."""
    from onibi.platform.errors import ConfigError

    is_table = runs[0].endswith(".csv")
    if is_table and len(runs) > 1:
        raise ConfigError("evaluate: an experiment's CSV stands alone; name it, or runs.")
    if _is_one_run(runs):
        _refuse(compared, "is for several runs or an experiment's CSV")
        if of_one["--video"] is None:
            _refuse({"--video-episodes": of_one["--video-episodes"]}, "says how many --video films")
    else:
        _refuse(of_one, "is for one run")
        if is_table:
            _refuse(played, "is for runs that are played")


def _refuse(options: Mapping[str, object], reason: str) -> None:
    from onibi.platform.errors import ConfigError

    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ConfigError(f"evaluate: {given[0]} {reason}; leave it out.")


def _evaluate_one(
    run: str,
    runs_folder: Path,
    checkpoint: str,
    episodes: int,
    seed: int,
    *,
    against: str | None,
    video: Path | None,
    video_episodes: int,
    as_json: bool,
) -> EvaluationReport:
    from onibi import clusters

    report = clusters.evaluate(
        run,
        checkpoint=checkpoint,
        episodes=episodes,
        seed=seed,
        against=against,
        video=video,
        video_episodes=video_episodes,
        runs_folder=runs_folder,
    )
    if as_json:
        print(_json_of(report))
    else:
        tell(wide_console(), report.summary())
    return report


def _evaluate_many(
    runs: list[str],
    runs_folder: Path,
    playing: tuple[str, int, int],
    target: float | None,
    baseline: str | None,
    curves: Path | None,
    as_json: bool,
) -> None:
    from onibi.clusters.reports import seed_report
    from onibi.clusters.reports.seed_curves import seed_curves_png
    from onibi.platform.errors import ConfigError
    from onibi.platform.threads import hold_threads

    hold_threads()
    if runs[0].endswith(".csv"):
        scores = seed_report.scores_of_table(Path(runs[0]))
    else:
        scores = seed_report.scores_of_runs(runs, runs_folder, *playing)
    report = seed_report.seed_report(scores, target, baseline)
    if as_json:
        print(_json_of(report))
    else:
        console = wide_console()
        for table in report.tables(console.width):
            console.print(table)
    if curves is not None:
        try:
            is_drawn = seed_curves_png(scores, curves, "Evaluations while training, over seeds")
        except OSError as error:
            raise ConfigError(f"{curves}: not written ({error}). Choose another file.") from error
        if not is_drawn:
            raise ConfigError("evaluate: --curves: no run has two evaluations of its own, so there is no curve.")


def _json_of(report: EvaluationReport | SeedReport) -> str:
    return json.dumps(_without_infinite(dataclasses.asdict(report)), indent=2, allow_nan=False)


def _without_infinite(value: Any) -> Any:
    """The same with null for numbers that are not finite, for which JSON has no word: ends of unknown intervals."""
    if isinstance(value, dict):
        return {name: _without_infinite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
