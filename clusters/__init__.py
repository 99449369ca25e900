"""Where a run comes together. From Python::

from onibi.clusters import train

result = train("cartpole-dqn", overrides=["budget.max_seconds=60"])
print(result.summary())
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onibi.platform.threads import hold_threads

if TYPE_CHECKING:
    from onibi.clusters.judgement import EvaluationReport
    from onibi.clusters.run_journal import RunResult

__all__ = ["evaluate", "resume", "train"]


def train(
    config: str | Path | Mapping[str, Any],
    *,
    overrides: Sequence[str] = (),
    serial: bool = False,
    name: str | None = None,
    runs_folder: str | Path = "runs",
    display: bool = True,
) -> RunResult:
    """Start a run and train until its budget is used up.

    Args:
        config: a preset's name, a YAML file, or the settings as a mapping.
        overrides: ``key=value`` changes, as after ``--set``.
        serial: all roles in this process, without Ray; repeatable under a seed.
        name: of the run; made from the config's name where left out.
        runs_folder: where runs are kept.
        display: show progress on stderr.
    Raises: ConfigError before anything is started; other OnibiErrors where the run could not go on.
    """
    hold_threads()  # before the first import of NumPy, where the caller has not imported it
    from onibi.clusters.sessions import train as start

    return start(config, overrides, serial, name, Path(runs_folder), display)


def resume(
    run: str,
    *,
    runs_folder: str | Path = "runs",
    serial: bool | None = None,
    overrides: Sequence[str] = (),
    display: bool = True,
) -> RunResult:
    """Go on with a run from its last whole checkpoint, counters continued.

    Args:
        run: name, folder or ``last``.
        runs_folder: where runs are kept.
        serial: as in ``train``; None: as the run was before.
        overrides: changes from now on, most often of the budget.
        display: show progress on stderr.
    Raises: ConfigError for an unknown run, CheckpointError where it has no whole checkpoint.
    """
    hold_threads()
    from onibi.clusters.sessions import resume as go_on

    return go_on(run, Path(runs_folder), serial, overrides, display)


def evaluate(
    run: str,
    *,
    checkpoint: str = "best",
    episodes: int = 100,
    seed: int = 10_000,
    against: str | None = None,
    video: str | Path | None = None,
    video_episodes: int = 3,
    runs_folder: str | Path = "runs",
) -> EvaluationReport:
    """Play a run's policy greedily on fresh episodes, a fixed number in every lane.

    Args:
        run: name, folder or ``last``.
        checkpoint: ``best``, ``last`` or a number of env steps.
        episodes: how many at least.
        seed: chooses the games, apart from all that training and its evaluations use.
        against: ``random`` to let a uniformly random player play as many games, both paid by the checkpoint's final
            reward table; the report's ``passed`` then says whether the 95% interval of what the run's
            ``evaluation.judge`` names lies wholly above the random player's.
        video: a file that ends in .mp4, .gif or .webp: episodes of the trained player are filmed besides.
        video_episodes: how many.
        runs_folder: where runs are kept.
    Raises: ConfigError for a run, checkpoint or file that cannot be; EnvironmentFault where the environment raises, or
        draws no pictures.
    """
    hold_threads()
    from onibi.clusters.judgement import FilmOrder
    from onibi.clusters.judgement import evaluate as judge

    order = None if video is None else FilmOrder(Path(video), video_episodes)
    return judge(run, Path(runs_folder), checkpoint, episodes, seed, against, order)
