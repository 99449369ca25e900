"""Onibi's whole loop on Ray, as `onibi train` runs it: actors, replay shard, learner, tracking, display off.

``options``: ``actors`` rollout actors with ``envs`` environments each; ``native`` steps Gymnasium's vector environment;
``ratio`` (dqn) is samples per insert.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from peers.learner_cell import Measured, Order, read_order, write_answer


def settings_of(order: Order) -> dict[str, Any]:
    """The run's settings, what is not the default."""
    options = order.options
    appo = order.algorithm == "appo"
    network = {
        "kind": "mlp",
        "hidden": list(order.hidden),
        "activation": order.activation,
        "layer_norm": False,
    }
    learner: dict[str, Any] = {
        "kind": order.algorithm,
        "discount": order.discount,
        "learning_rate": order.learning_rate,
        "value_loss": "mse",
        "network": network,
    }
    lanes = options["actors"] * options["envs"]
    if appo:
        fragment = order.rollout
        learner |= {"rows": order.rollout, "batch_lanes": order.batch // order.rollout, "epochs": 1, "minibatches": 1}
    else:
        fragment = max(1, 256 // options["envs"])
        learner |= {"batch_size": order.batch, "n_steps": 1, "double": True, "dueling": False}
    return {
        "seed": order.seed,
        "environment": {"id": order.environment, "vectorization": "native" if options["native"] else "sync"},
        "captioner": {"kind": "none"},
        "rewards": {"intrinsic": None},
        "actors": {
            "count": options["actors"],
            "rollout": {
                "envs_per_actor": options["envs"],
                "fragment_steps": fragment,
                "fragment_steps_max": fragment,
                "fragment_seconds": 0.0,
            },
        },
        "replay": {
            "capacity_rows": max(100_000, 16 * (order.rollout + 1) * lanes),
            "limiter": {"samples_per_insert": 1.0}
            if appo
            else {"samples_per_insert": options["ratio"], "minimum_rows": 2_000},
            "log": {"enabled": False},  # the peers write none
        },
        "learner": learner,
        "placement": {"rollout_cpus": 0.2, "learner_cpus": 0.5},
        "evaluation": {"period_env_steps": None, "episodes": 1, "envs": 1},
        "budget": {"max_env_steps": None, "max_seconds": order.warm_seconds + order.seconds + 1.0},
    }


def train(order: Order) -> Measured:
    """Train for the ordered time."""
    from onibi.clusters import train as run
    from onibi.clusters.run_profile import profile_table
    from onibi.platform.history import read_history

    settings = settings_of(order)
    with tempfile.TemporaryDirectory() as runs:
        result = run(settings, name="cell", runs_folder=Path(runs), display=False)
        rows = read_history(result.folder / "history.jsonl")
    if result.profile:
        from rich.console import Console

        Console(file=sys.stderr, width=140).print(profile_table(result.profile))
    points = [(float(row["time/seconds"]), float(row["actors/env_steps"])) for row in rows]
    figures = {name: value for name, value in result.figures.items() if name.startswith(("learner/", "replay/"))}
    learnt = result.figures.get("actors/episode_return")
    told = {key: settings[key] for key in ("actors", "replay", "learner", "environment")}
    profile = {each.role: {"cores": round(each.cores, 2), **each.shares} for each in result.profile}
    return Measured(points=points, episode_return=learnt, settings={**told, "profile": profile, "figures": figures})


if __name__ == "__main__":
    write_answer(train(read_order()))
