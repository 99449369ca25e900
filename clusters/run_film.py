"""Films of a run's player: episodes of its own, drawn step by step, written as one file."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from onibi.actors.evaluation import PlayedEpisode
from onibi.actors.filming.film import Film
from onibi.actors.filming.film_file import encoded, has_video_codec
from onibi.clusters.run_plan import RunPlan
from onibi.clusters.trained_player import TrainedPlayer, trained_player
from onibi.platform.counted import counted
from onibi.platform.durable import write_durably
from onibi.platform.errors import ConfigError, OnibiError
from onibi.platform.run_folder import RunFolder

log = logging.getLogger(__name__)

STEPS_MAX = 5_000
"""Env steps of a film at most: at NetHack's six a second a quarter of an hour."""

_OWN_SEED = 20_000  # apart from the games of evaluations and of `onibi evaluate`


@dataclass(frozen=True)
class FilmReport:
    """A film that was written: what became of its episodes, fewer than asked for where it was broken off."""

    path: str
    asked: int
    episodes: list[PlayedEpisode]

    def line(self) -> str:
        """One line for a terminal."""
        returns = ", ".join(f"{episode.episode_return:.4g}" for episode in self.episodes)
        told = f"{self.path}: {len(self.episodes)} of {counted(self.asked, 'episode')}"
        if len(self.episodes) < self.asked:
            told += f" (the film ends after {STEPS_MAX:,} env steps)"
        return f"{told}, return {returns}" if returns else told


def film(
    plan: RunPlan,
    player: TrainedPlayer,
    path: Path,
    episodes: int,
    seed: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> FilmReport:
    """Play episodes one after the other and write them as a film.

    Args:
        plan: of the run.
        player: whose weights play.
        path: of the file; ``check_film_path`` has found it good.
        episodes: how many, as far as they end within ``STEPS_MAX`` env steps.
        seed: chooses the games.
        should_stop: asked every few steps; True ends the film there.
    Raises: EnvironmentFault where the environment draws no pictures; ConfigError where the file cannot be written.
    """
    rollout, camera = plan.make_filmed_evaluation(player.weights, seed)
    shown = Film(rollout, camera, episodes, STEPS_MAX, player.rewards, should_stop)
    content = encoded(shown.frames(), shown.frames_per_second, path.suffix.lower())
    try:
        write_durably(path, content)
    except OSError as error:
        raise ConfigError(f"{path}: the film was not written ({error}). Choose another place.") from error
    return FilmReport(str(path), episodes, shown.played)


def film_best(folder: RunFolder, plan: RunPlan, should_stop: Callable[[], bool]) -> Path | None:
    """Film ``evaluation.film_episodes`` episodes of a finished run's best checkpoint among its artifacts.

    Returns: the file; None where none are asked for, or it cannot be done, which is logged: no run fails by it.
    """
    episodes = plan.settings.evaluation.film_episodes
    if episodes == 0:
        return None
    if should_stop():  # since training ended
        log.warning("the best checkpoint is not filmed: interrupted. %s", _by_hand(folder))
        return None
    path = folder.artifacts / ("film.mp4" if has_video_codec() else "film.gif")
    try:
        report = film(plan, trained_player(folder, plan, "best"), path, episodes, _OWN_SEED, should_stop)
    except KeyboardInterrupt:  # a second Ctrl-C; the run has finished before
        log.warning("the best checkpoint is not filmed: interrupted. %s", _by_hand(folder))
        return None
    except OnibiError as error:
        log.warning("the best checkpoint is not filmed: %s", error)
        return None
    except Exception as error:
        log.warning(
            "the best checkpoint is not filmed: %s: %s. %s",
            type(error).__name__,
            error,
            _by_hand(folder),
            exc_info=True,
        )
        return None
    return Path(report.path)


def _by_hand(folder: RunFolder) -> str:
    return f"The run has finished all the same; onibi evaluate {folder.name} --video FILE films it"
