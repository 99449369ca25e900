"""One run of an experiment, in the process that is to do it: figures of a trained policy, or of a called function."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onibi.clusters.experiments.declaration import CalledTrial, TrainedTrial, evaluation_seed
from onibi.clusters.experiments.registry import imported
from onibi.clusters.experiments.success_curve import success_figures
from onibi.platform.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from onibi.clusters.judgement import PlayerReport
    from onibi.clusters.run_journal import RunResult

Figures = dict[str, Any]


def run_trial(message: Mapping[str, Any]) -> Figures:
    """Do what ``schedule.job_message`` told. Raises: whatever the trial raises."""
    seed = int(message["seed"])
    began = time.monotonic()
    if message["kind"] == "called":
        figures = _call(_called_trial(message["trial"]), seed)
    else:
        figures = _train(_trained_trial(message["trial"]), seed, str(message["run_name"]), Path(message["runs_folder"]))
    return {**figures, "wall_seconds": time.monotonic() - began}


def player_figures(player: PlayerReport) -> dict[str, tuple[float, float, float]]:
    """What a player reached: figure → (mean, low, high) of the 95% interval, infinite after too few episodes."""
    intervals = {"return": player.episode_return, "success": player.success, "intrinsic": player.intrinsic_return}
    return {name: (each.mean, each.low, each.high) for name, each in intervals.items() if each is not None}


def check_whole(result: RunResult, max_env_steps: int | None, name: str) -> None:
    """Whether a run is what its arm's row claims: all its env steps, with an evaluation of its last weights.

    Args:
        result: of the run.
        max_env_steps: its budget; None: it was declared to end by the clock.
        name: of the run, for the error.
    Raises: TrainingError where it is not.
    """
    if result.status != "finished":
        raise TrainingError(f"{name}: the run ended as {result.status}. --retry runs it anew.")
    if max_env_steps is not None and result.env_steps < max_env_steps:
        raise TrainingError(
            f"{name}: the run ended by the clock after {result.env_steps} of {max_env_steps} env steps: how much it "
            "learnt says how fast this machine is. Set budget.max_seconds=null in the arm."
        )
    evaluated = int(result.evaluations[-1]["env_steps"]) if result.evaluations else 0
    if evaluated != result.env_steps:
        raise TrainingError(
            f"{name}: its last evaluation is of env step {evaluated}, and it took {result.env_steps}: its final "
            "weights were not evaluated; the run's log says why. Once the cause is gone, --retry runs it again."
        )


def _called_trial(told: Mapping[str, Any]) -> CalledTrial:
    """As it was before it became plain values."""
    return CalledTrial(**{**told, "overrides": tuple(told["overrides"])})


def _trained_trial(told: Mapping[str, Any]) -> TrainedTrial:
    """As it was before it became plain values."""
    span = told["success_span"]
    return TrainedTrial(
        **{**told, "overrides": tuple(told["overrides"]), "success_span": None if span is None else (span[0], span[1])}
    )


def _call(trial: CalledTrial, seed: int) -> Figures:
    function = imported(trial.function)
    if not callable(function):
        raise ConfigError(f"{trial.function}: is no function; allowed: function(seed=…, **arguments) -> figures.")
    settings = {} if trial.preset is None else {"preset": trial.preset, "overrides": trial.overrides}
    figures = function(seed=seed, **settings, **trial.arguments)
    if not isinstance(figures, Mapping):
        raise ConfigError(f"{trial.function}: returned {type(figures).__name__}; allowed: figures, {{name: number}}.")
    return dict(figures)


def _train(trial: TrainedTrial, seed: int, name: str, runs_folder: Path) -> Figures:
    from onibi.clusters import evaluate, train
    from onibi.clusters.sessions import read_run_settings

    shutil.rmtree(runs_folder / name, ignore_errors=True)  # of an attempt that was cut off: it starts from nothing
    result = train(
        trial.preset,
        overrides=[*trial.overrides, "evaluation.film_episodes=0", f"seed={seed}"],
        serial=True,
        name=name,
        runs_folder=runs_folder,
        display=False,
    )
    settings = read_run_settings(trial.preset, trial.overrides)
    check_whole(result, settings.budget.max_env_steps, name)
    report = evaluate(
        result.folder.name,
        checkpoint=trial.checkpoint,
        episodes=trial.episodes,
        seed=evaluation_seed(seed),
        runs_folder=runs_folder,
    )
    figures: Figures = {
        "env_steps": result.env_steps,
        "updates": result.updates,
        "train_seconds": result.seconds,
        "checkpoint": report.checkpoint,
        "episodes": report.players[0].episodes,
    }
    for figure, (mean, low, high) in player_figures(report.players[0]).items():
        figures |= {figure: mean, f"{figure}_95": f"{low:.6g}..{high:.6g}" if math.isfinite(high - low) else ""}
    if trial.success_span is not None:
        figures |= success_figures(result.evaluations, trial.success_span)
    figures["judge"] = settings.evaluation.judge  # what the curve is of
    figures["curve"] = " ".join(f"{row['env_steps']:.0f}:{row['judged']:.6g}" for row in result.evaluations)
    return figures
