"""Experiments by name, imported when used. A new one is one file and one line here."""

from __future__ import annotations

import importlib

from onibi.clusters.experiments.declaration import Experiment
from onibi.platform.config_words import nearest
from onibi.platform.errors import ConfigError
from onibi.platform.user_code import raised_at

EXPERIMENTS = {
    "it-helps": "onibi.clusters.experiments.it_helps:EXPERIMENT",
    "keyroom-150k": "onibi.clusters.experiments.it_helps:KEYROOM_150K",
    "learners": "onibi.clusters.experiments.learners:EXPERIMENT",
    "relabelling": "onibi.clusters.experiments.relabelling:EXPERIMENT",
    "reward-noise": "onibi.clusters.experiments.reward_noise:EXPERIMENT",
    "stop-regressing": "onibi.clusters.experiments.stop_regressing:EXPERIMENT",
}


def find_experiment(name: str) -> Experiment:
    """The experiment of a name in the registry, or of an import path ``module:NAME``.

    Raises: ConfigError where there is none, or the path leads to something else.
    """
    path = EXPERIMENTS.get(name, name)
    if ":" not in path:
        raise ConfigError(
            f"experiment {name!r} is unknown.{nearest(name, EXPERIMENTS)} Allowed: {', '.join(EXPERIMENTS)}, or one of "
            "your own as my_package.my_module:EXPERIMENT."
        )
    found = imported(path)
    if not isinstance(found, Experiment):
        raise ConfigError(f"{path}: is a {type(found).__name__}; allowed: an Experiment, see declaration.py.")
    return found


def imported(path: str) -> object:
    """What ``module:name`` names; ``cli.main`` sees to it that modules in the current folder are found too.

    Raises: ConfigError where the module or the name is not there.
    """
    module_name, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except ImportError as error:
        raise ConfigError(f"{path}: not importable ({error}). Check the path, or install what it needs.") from error
    # Whatever the user's module does when it is imported: a wrong declaration, a script's sys.exit().
    except (Exception, SystemExit) as error:
        place = raised_at(error)
        if isinstance(error, AttributeError) and not place:  # of the path itself
            raise ConfigError(f"{path}: not importable ({error}). Check the path.") from error
        raise ConfigError(f"{path}: {type(error).__name__}: {error}{place}.") from error
