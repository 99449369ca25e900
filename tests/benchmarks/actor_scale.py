"""Do env steps grow with the actors, and what does one more actor cost? 1 to 64 simulated ones on this machine.

    python tests/benchmarks/actor_scale.py [--actors 1,2,4,8,16,32,64] [--seconds 15] [--quick]

An actor steps one environment that sleeps 1 ms a step, so that many fit on few cores, with a NumPy policy; it asks Ray
for no CPU. Actors, shard, learner and coordinator are those of `onibi train`; the learner draws one sample in a hundred
steps, that its own work does not drown the figures. *linear* is the share of (actors x what one actor alone makes);
it can only hold until all processes together use the machine's cores. A run is measured from when the last of its
actors has been stepping for three seconds; then it is ended. *alone* are as many processes that only collect, the same
rollout without Ray, store, learner and coordinator, measured just before: what this machine makes of so many sleepers.
*cores* are those of all a run's processes, Ray's own included. *coordination* is processor time of shard, hub and
coordinator for each fragment of the whole run. With --rounds all is measured so many times, in turns, and medians are
shown with the least and most.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers.child_environment import one_thread_environment
from peers.machine import TreeLoad, describe
from peers.spread import spread

FRAGMENT_STEPS = 500
_SETTLE_SECONDS = 3.0


@dataclass(frozen=True)
class Figures:
    """Of one run."""

    actors: int
    rate: float  # env steps a second
    alone: float  # env steps a second of as many processes that only collect
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


def settings_of(actors: int, seconds: float) -> dict[str, Any]:
    """Of a run with so many actors that is measured for so long."""
    return {
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


def collect_alone(seconds: float) -> int:
    """Of a process that only collects: it says that it is ready, waits for a line and prints its env steps a second."""
    from onibi.clusters.run_plan import plan_run
    from onibi.clusters.sessions import read_run_settings

    plan = plan_run(read_run_settings(settings_of(1, seconds), ()))
    weights = plan.make_learner().weights(0)
    rollout = plan.make_rollout(0, 1, 0)
    rollout.collect(lambda version: weights)
    print("ready", flush=True)
    sys.stdin.readline()
    steps, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds:
        steps += rollout.collect(lambda version: None).env_steps
    print(steps / passed, flush=True)
    return 0


def measure_alone(actors: int, seconds: float) -> float:
    """Env steps a second of so many processes that only collect."""
    command = [sys.executable, __file__, "--collect-alone", "--seconds", str(seconds)]
    processes = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=one_thread_environment()
        )
        for _ in range(actors)
    ]
    try:
        for each in processes:
            if each.stdout.readline() != "ready\n":
                raise SystemExit("a process that was only to collect ended before it did")
        for each in processes:
            each.stdin.write("\n")
            each.stdin.flush()
        return sum(float(each.stdout.readline()) for each in processes)
    finally:
        for each in processes:
            each.kill()
            each.wait()


def measure(actors: int, seconds: float, load: TreeLoad) -> Figures:
    """Let so many only collect, then train with so many actors until they have been measured."""
    from onibi.clusters import train

    alone = measure_alone(actors, seconds)
    with tempfile.TemporaryDirectory() as runs:
        watch = _Watch(Path(runs, "scale", "history.jsonl"), actors, seconds, load)
        watch.start()
        result = train(settings_of(actors, seconds), name="scale", runs_folder=Path(runs), display=False)
        if not watch.rate:
            raise SystemExit(f"{actors} actors: not all of them stepped within {result.seconds:.0f} s")
    stores = [each for each in result.profile if each.role in ("shard", "hub", "coordinator")]
    rollouts = [each for each in result.profile if each.role.startswith("rollout")]
    # Processor time is that of the whole run, so are the fragments.
    fragments = result.env_steps / FRAGMENT_STEPS / result.seconds
    return Figures(
        actors=actors,
        rate=watch.rate,
        alone=alone,
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
    parser.add_argument("--rounds", type=int, default=1, help="how often all of it is measured")
    parser.add_argument("--quick", action="store_true", help="to see that it runs; no figures to report")
    parser.add_argument("--collect-alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    counts = arguments.actors or ("1,4" if arguments.quick else "1,2,4,8,16,32,64")
    seconds = arguments.seconds or (4.0 if arguments.quick else 15.0)
    from onibi.platform.threads import hold_threads

    hold_threads()
    if arguments.collect_alone:
        return collect_alone(seconds)
    load = TreeLoad(os.getpid())
    rounds: list[list[Figures]] = []
    for _ in range(arguments.rounds):
        rounds.append([])
        for count in map(int, counts.split(",")):
            rounds[-1].append(measure(count, seconds, load))
            print(f"actors {count}: {rounds[-1][-1].rate:,.0f} env steps/s", file=sys.stderr, flush=True)
    print(f"`{' '.join(['python', *sys.argv])}`\n")
    print(f"{describe()}; other programs used {load.others_cores():.2f} cores meanwhile.\n")
    print(
        "| actors | env steps/s | linear | alone, linear | of alone | cores | coordination, ms a fragment | "
        "MiB an actor | MiB of the stores |\n|---|---|---|---|---|---|---|---|---|"
    )
    for place in range(len(rounds[0])):
        column, firsts = [each[place] for each in rounds], [each[0] for each in rounds]
        shares = [each.rate / first.rate for each, first in zip(column, firsts, strict=True)]
        alone = [each.alone / first.alone for each, first in zip(column, firsts, strict=True)]
        more = column[0].actors / firsts[0].actors
        print(
            f"| {column[0].actors} | {spread([each.rate for each in column])} | "
            f"{spread([each / more for each in shares], 3)} | {spread([each / more for each in alone], 3)} | "
            f"{spread([each.rate / each.alone for each in column], 3)} | "
            f"{spread([each.cores for each in column], 2)} | "
            f"{spread([each.coordination_milliseconds for each in column], 2)} | "
            f"{spread([each.actor_mebibytes for each in column])} | "
            f"{spread([each.store_mebibytes for each in column])} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
