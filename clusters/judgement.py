"""``onibi evaluate``: fresh episodes for a checkpoint, alone or against a random player."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onibi.actors.episodes import successes_of
from onibi.actors.evaluation import PlayedEpisode, play
from onibi.actors.filming.film_file import check_film_path
from onibi.clusters.reports.compare import LEAST_VALUES, Interval, bootstrap_interval, intervals_apart, success_interval
from onibi.clusters.reports.figures import share_text
from onibi.clusters.run_film import FilmReport, film
from onibi.clusters.run_plan import plan_run
from onibi.clusters.run_settings import RunSettings
from onibi.clusters.trained_player import check_checkpoint_name, trained_player
from onibi.platform.config import read_settings
from onibi.platform.counted import counted
from onibi.platform.errors import ConfigError
from onibi.platform.run_folder import find_run

FIGURES = {"episode_return": "return", "success": "success", "intrinsic_return": "intrinsic return"}
"""What ``evaluation.judge`` may name, which are fields of PlayerReport, in words."""

_EVALUATION_LANES = 8
_BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class PlayerReport:
    """How one player did. ``success`` is None where the task does not tell."""

    name: str
    episodes: int
    episode_return: Interval
    length: float
    success: Interval | None
    intrinsic_return: Interval | None

    def line(self) -> str:
        """One line for a terminal."""
        parts = [f"return {_shown(self.episode_return)}"]
        if self.success is not None:
            parts.append(f"success {_shown(self.success, share_text)}")
        if self.intrinsic_return is not None:
            parts.append(f"intrinsic return {_shown(self.intrinsic_return)}")
        return (
            f"{self.name:>8}: {counted(self.episodes, 'episode')}, "
            + ", ".join(parts)
            + f", mean length {self.length:.1f}"
        )


@dataclass(frozen=True)
class EvaluationReport:
    """What was played.

    ``which``: the checkpoint that was asked for. ``asked``: episodes wanted of each player. ``compared``: the run's
    ``evaluation.judge``, on which ``passed`` is the verdict: None where nothing was compared, False too where the task
    does not tell that figure, or the episodes are too few to tell anything by.
    """

    run: str
    checkpoint: int
    asked: int
    players: list[PlayerReport]
    compared: str
    passed: bool | None
    film: FilmReport | None = None
    which: str = ""

    def summary(self) -> str:
        """A few lines for a terminal."""
        which = f"{self.which} checkpoint, of" if self.which in ("best", "last") else "checkpoint of"
        lines = [f"{self.run}, {which} {self.checkpoint:,} env steps", *(each.line() for each in self.players)]
        lines += [] if self.film is None else [f"film in {self.film.line()}"]
        if self.passed is None:
            return "\n".join(lines)
        figure = FIGURES[self.compared]
        intervals = [getattr(each, self.compared) for each in self.players]
        if any(interval is None for interval in intervals):
            lines.append(f"no episode told the {figure}, by which this run is judged (evaluation.judge): not passed")
        elif not all(interval.is_known for interval in intervals):
            lines.append(
                f"too few episodes to tell the trained player's {figure}, by which this run is judged "
                f"(evaluation.judge), from the random player's: not passed. Play {LEAST_VALUES} or more of each, "
                "better 100 (--episodes)"
            )
        else:
            verdict = "lies above" if self.passed else "does NOT lie above"
            lines.append(
                f"the 95% interval of the trained player's {figure}, by which this run is judged (evaluation.judge), "
                f"{verdict} the random player's"
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class FilmOrder:
    """That episodes of the trained player be filmed besides: how many, and the file."""

    path: Path
    episodes: int


def evaluate(
    run: str,
    runs_folder: Path,
    which: str,
    episodes: int,
    seed: int,
    against: str | None,
    order: FilmOrder | None = None,
) -> EvaluationReport:
    """See ``onibi.clusters.evaluate``."""
    if against not in (None, "random"):
        raise ConfigError(f"--against is {against!r}; allowed: random.")
    if order is not None:
        check_film_path(order.path)
    folder = find_run(runs_folder, run)
    check_checkpoint_name(folder, which)
    settings = read_settings(RunSettings, folder.read_config(), source=str(folder.config))
    plan = plan_run(settings)
    player = trained_player(folder, plan, which)
    filmed = None if order is None else film(plan, player, order.path, order.episodes, seed)
    envs = min(_EVALUATION_LANES, episodes)
    players = []
    for name, weights in (("trained", player.weights), ("random", None))[: 2 if against else 1]:
        played = play(plan.make_evaluation(weights, envs, seed), envs, episodes, player.rewards)
        players.append(_report(name, played, player.rewards is not None))
    judge = settings.evaluation.judge
    passed = _lies_above(players[0], players[1], judge) if against else None
    return EvaluationReport(folder.name, player.env_steps, episodes, players, judge, passed, filmed, which)


def _lies_above(trained: PlayerReport, other: PlayerReport, figure: str) -> bool:
    upper: Interval | None = getattr(trained, figure)
    lower: Interval | None = getattr(other, figure)
    return upper is not None and lower is not None and intervals_apart(lower, upper)


def _report(name: str, episodes: list[PlayedEpisode], has_captions: bool) -> PlayerReport:
    rng = np.random.default_rng(_BOOTSTRAP_SEED)
    successes = successes_of([episode.figures for episode in episodes])
    return PlayerReport(
        name=name,
        episodes=len(episodes),
        episode_return=bootstrap_interval([episode.episode_return for episode in episodes], rng),
        length=float(np.mean([episode.length for episode in episodes])),
        success=success_interval(successes, rng) if successes else None,
        intrinsic_return=bootstrap_interval([each.intrinsic_return for each in episodes], rng)
        if has_captions
        else None,
    )


def _shown(interval: Interval, text: Callable[[float], str] = "{:.3g}".format) -> str:
    if not interval.is_known:
        return f"{text(interval.mean)} (too few episodes)"
    return f"{text(interval.mean)} (95%: {text(interval.low)} to {text(interval.high)})"
