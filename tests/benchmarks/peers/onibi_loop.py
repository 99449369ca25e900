"""Onibi's whole loop on Ray, as `onibi train` runs it: actors, replay shard, learner, tracking, display off.

``options``: ``actors`` rollout actors with ``envs`` environments each; ``native`` steps Gymnasium's vector environment;
``publish`` (appo) is gradient steps between two publishings of weights, ``compile`` (appo) the learner's
``acceleration.compile``, ``tolerance`` (appo) the rows that may wait for the learner (None: its default); ``ratio``
(dqn) is samples per insert. ``recipe`` is a preset's name in place of all that.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from peers.learner_cell import EPISODE_STEPS, Measured, Order, read_order, write_answer


def settings_of(order: Order) -> dict[str, Any]:
    """The run's settings, what is not the default."""
    options = order.options
    appo, nethack = order.algorithm == "appo", order.environment.startswith("NetHack")
    network = {"kind": "nethack" if nethack else "mlp", "hidden": list(order.hidden), "layer_norm": False}
    if not nethack:  # whose encoder knows no other than ReLU
        network["activation"] = order.activation
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
        learner |= {
            "rows": order.rollout,
            "batch_lanes": order.batch // order.rollout,
            "epochs": 1,
            "minibatches": 1,
            "publish_period_updates": options.get("publish", 1),
            "acceleration": {"compile": options.get("compile", "none")},
        }
    else:
        fragment = max(1, 256 // options["envs"])
        learner |= {"batch_size": order.batch, "n_steps": 1, "double": True, "dueling": False}
    return {
        "seed": order.seed,
        "environment": {
            "id": order.environment,
            "kwargs": {"max_episode_steps": EPISODE_STEPS} if nethack else {},
            "vectorization": "native" if options["native"] else "sync",
        },
        "view": {"kind": "nethack" if nethack else "leaves"},
        "captioner": {"kind": "none"},
        "rewards": {"intrinsic": None},
        "actors": {
            "count": options["actors"],
            "rollout": {
                "envs_per_actor": options["envs"],
                "fragment_steps": fragment,
                "fragment_steps_max": fragment,
                "fragment_seconds": 0.0,
                "weights_period_steps": fragment,
            },
        },
        "replay": {
            "capacity_rows": max(100_000, 16 * (order.rollout + 1) * lanes),
            "limiter": {"samples_per_insert": 1.0, "tolerance_rows": options.get("tolerance")}
            if appo
            else {"samples_per_insert": options["ratio"], "minimum_rows": 2_000},
            "log": {"enabled": False},  # the peers write none
        },
        "learner": learner,
        "placement": {"rollout_cpus": 0.2, "learner_cpus": 0.5},
        "evaluation": {"period_env_steps": None, "episodes": 1, "envs": 1},
        "budget": {"max_env_steps": 10**12, "max_seconds": None},
    }


def _preset_of(order: Order, preset: str) -> dict[str, Any]:
    """A preset's settings without what the peers do not do: evaluations beside training, a log, an end."""
    from onibi.clusters.run_settings import RunSettings
    from onibi.platform.config import read_settings, to_mapping
    from onibi.platform.presets import find_document

    overrides = [
        f"seed={order.seed}",
        "evaluation.period_env_steps=null",
        "replay.log.enabled=false",
        "budget.max_env_steps=1000000000000",
        "budget.max_seconds=null",
        "placement.rollout_cpus=0.2",
        "placement.learner_cpus=0.5",
    ]
    found = read_settings(RunSettings, find_document(preset, "onibi.clusters.presets"), overrides=overrides)
    return to_mapping(found)


class _Watch(threading.Thread):
    """Reads the run's history, and ends the run by SIGTERM when it has learned for the ordered time, or enough.

    The clock starts with the learner's first updates: its process comes up after the actors'.
    """

    def __init__(self, runs: Path, order: Order) -> None:
        super().__init__(daemon=True)
        self._history, self._order = runs / "cell" / "history.jsonl", order
        self.points: list[tuple[float, float]] = []
        self.reached_seconds: float | None = None

    def run(self) -> None:
        while not self._over():
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    def _over(self) -> bool:
        from onibi.platform.history import read_history

        rows = read_history(self._history) if self._history.exists() else []
        learned = [row for row in rows if float(row["learner/updates"]) > 0]
        self.points = [(float(row["time/seconds"]), float(row["actors/env_steps"])) for row in learned]
        until = self._order.until_return
        for row in learned:
            if until is not None and float(row.get("actors/episode_return", 0.0)) >= until:
                self.reached_seconds = float(row["time/seconds"])  # counted from the first rows, as the others' are
                return True
        limit = self._order.warm_seconds + self._order.seconds
        return bool(self.points) and self.points[-1][0] - self.points[0][0] >= limit


def train(order: Order) -> Measured:
    """Train for the ordered time."""
    from onibi.clusters import train as run

    recipe = order.options.get("recipe")
    settings = settings_of(order) if recipe is None else _preset_of(order, recipe)
    with tempfile.TemporaryDirectory() as runs:
        watch = _Watch(Path(runs), order)
        watch.start()
        result = run(settings, name="cell", runs_folder=Path(runs), display=False)
        watch.join()
    figures = {name: value for name, value in result.figures.items() if name.startswith(("learner/", "replay/"))}
    learnt = result.figures.get("actors/episode_return")
    told = {key: settings[key] for key in ("actors", "replay", "learner", "environment")}
    profile = {each.role: {"cores": round(each.cores, 2), **each.shares} for each in result.profile}
    told |= {"profile": profile, "figures": figures}
    return Measured(points=watch.points, episode_return=learnt, settings=told, reached_seconds=watch.reached_seconds)


if __name__ == "__main__":
    write_answer(train(read_order()))
