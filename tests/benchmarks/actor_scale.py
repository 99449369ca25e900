"""Do env steps grow with the actors, and what does one more actor cost? 1 to 64 simulated ones on this machine.

    python tests/benchmarks/actor_scale.py [--actors 1,2,4,8,16,32,64] [--seconds 15] [--quick]

An actor steps one environment that sleeps 1 ms a step, so that many fit on few cores, with a NumPy policy; it asks Ray
for no CPU. Actors, shard, learner and coordinator are those of `onibi train`; the learner draws one sample in a hundred
steps, that its own work does not drown the figures. *linear* is the share of (actors x what one actor alone makes);
it can only hold until all processes together use the machine's cores. A run is measured from when the last of its
actors has been stepping for three seconds; then it is ended. *cores* are those of all its processes then, Ray's own
included. *coordination* is processor time of shard, hub and coordinator for each fragment of the whole run.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from peers.machine import TreeLoad, describe

FRAGMENT_STEPS = 500
_SETTLE_SECONDS = 3.0


@dataclass(frozen=True)
class Figures:
    """Of one run."""

    actors: int
    rate: float  # env steps a second
    cores: float  # of all processes, Ray's own included
    coordination_milliseconds: float  # a fragment
    actor_mebibytes: float  # each
    store_mebibytes: float  # shard, hub and coordinator


class _Watch(threading.Thread):
    """Waits until all actors step, measures, and ends the run as Ctrl-C would.

    Args:
        history: the run's.
        actors: how many are to step.
        seconds: to be measured.
        load: looked at all the time.
    """

    def __init__(self, history: Path, actors: int, seconds: float, load: TreeLoad) -> None:
        super().__init__(daemon=True)
        self._history, self._actors, self._seconds, self._load = history, actors, seconds, load
        self.rate = self.cores = 0.0

    def run(self) -> None:
        """Until the run is ended."""
        from onibi.platform.history import read_history

        begun: tuple[float, float, float] | None = None
        all_since: float | None = None
        size = 0
        while True:
            time.sleep(0.1)
            now = time.monotonic()
            before, size = size, self._history.stat().st_size if self._history.exists() else 0
            if size == before:
                continue  # only a row that is new goes with the processor time of now
            self._load.look()
            rows = read_history(self._history)
            if rows[-1].get("replay/lanes_with_rows", 0.0) < self._actors:
                continue
            all_since = all_since or now
            point = float(rows[-1]["time/seconds"]), float(rows[-1]["actors/env_steps"]), self._load.tree_seconds()
            if begun is None and now > all_since + _SETTLE_SECONDS:
                begun = point
            if begun is not None and point[0] >= begun[0] + self._seconds:
                passed = point[0] - begun[0]
                self.rate, self.cores = (point[1] - begun[1]) / passed, (point[2] - begun[2]) / passed
                os.kill(os.getpid(), signal.SIGTERM)
                return


def measure(actors: int, seconds: float, load: TreeLoad) -> Figures:
    """Train with so many actors until they have been measured."""
    from onibi.clusters import train

    settings = {
        "environment": {"id": "onibi.actors.environments.sleeping:make", "kwargs": {"step_seconds": 0.001}},
        "captioner": {"kind": "none"},
        "rewards": {"intrinsic": None},
        "actors": {
            "count": actors,
            "rollout": {
                "envs_per_actor": 1,
                "fragment_steps": FRAGMENT_STEPS,
                "fragment_steps_max": FRAGMENT_STEPS,
                "fragment_seconds": 0.0,
                "weights_period_steps": 50,
            },
        },
        "replay": {
            "capacity_rows": 4_000 * actors,
            "limiter": {"samples_per_insert": 0.01, "minimum_rows": 500},
            "log": {"enabled": False},
        },
        "learner": {"kind": "dqn", "value_loss": "mse", "n_steps": 1},
        "placement": {"rollout_cpus": 0.0, "learner_cpus": 0.5},
        "evaluation": {"period_env_steps": None, "episodes": 1, "envs": 1},
        "budget": {"max_env_steps": None, "max_seconds": 60.0 + 10.0 * actors + seconds},
    }
    with tempfile.TemporaryDirectory() as runs:
        watch = _Watch(Path(runs, "scale", "history.jsonl"), actors, seconds, load)
        watch.start()
        result = train(settings, name="scale", runs_folder=Path(runs), display=False)
        if not watch.rate:
            raise SystemExit(f"{actors} actors: not all of them stepped within {result.seconds:.0f} s")
    stores = [each for each in result.profile if each.role in ("shard", "hub", "coordinator")]
    rollouts = [each for each in result.profile if each.role.startswith("rollout")]
    # Processor time is that of the whole run, so are the fragments.
    fragments = result.env_steps / FRAGMENT_STEPS / result.seconds
    return Figures(
        actors=actors,
        rate=watch.rate,
        cores=watch.cores,
        coordination_milliseconds=1e3 * sum(each.cores for each in stores) / fragments,
        actor_mebibytes=sum(each.resident_bytes for each in rollouts) / max(1, len(rollouts)) / 2**20,
        store_mebibytes=sum(each.resident_bytes for each in stores) / 2**20,
    )


def main() -> int:
    """Run it and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", default=None, help="how many, by comma: 1,2,4,8,16,32,64; with --quick 1,4")
    parser.add_argument("--seconds", type=float, help="measured: 15, with --quick 4")
    parser.add_argument("--quick", action="store_true", help="to see that it runs; no figures to report")
    arguments = parser.parse_args()
    counts = arguments.actors or ("1,4" if arguments.quick else "1,2,4,8,16,32,64")
    seconds = arguments.seconds or (4.0 if arguments.quick else 15.0)
    from onibi.platform.threads import hold_threads

    hold_threads()
    load, found = TreeLoad(os.getpid()), []
    for count in map(int, counts.split(",")):
        found.append(measure(count, seconds, load))
        print(f"{count} actors: {found[-1].rate:,.0f} env steps/s", file=sys.stderr, flush=True)
    print(f"`{' '.join(['python', *sys.argv])}`\n")
    print(f"{describe()}; other programs used {load.others_cores():.2f} cores meanwhile.\n")
    print("| actors | env steps/s | linear | cores | coordination, ms a fragment | MiB an actor | MiB of the stores |")
    print("|---|---|---|---|---|---|---|")
    for each in found:
        linear = each.rate / (each.actors * found[0].rate / found[0].actors)
        print(
            f"| {each.actors} | {each.rate:,.0f} | {linear:.3f} | {each.cores:.2f} | "
            f"{each.coordination_milliseconds:.2f} | {each.actor_mebibytes:.0f} | {each.store_mebibytes:.0f} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
