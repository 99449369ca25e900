"""How fast is the whole loop, beside the bare environment? And where does one second of each process go?

    python tests/benchmarks/throughput.py                    # CartPole and NetHack, 5 rounds each
    python tests/benchmarks/throughput.py cartpole --rounds 3

Each round steps the bare environment with random actions in one process (as many at once as one actor has), then
runs Onibi's whole loop (actors, replay, annotator, learner, tracking; display off) for some seconds, so both see the
same neighbours on the machine. `preset` is the shipped preset, whose samples-per-insert limiter holds actors back on
purpose; `free` lets actors run (1 sample per 4 steps), so the loop's own cost shows. Ratios are per round: median and
range.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from peers.spread import spread
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from onibi.clusters.run_profile import RoleProfile


@dataclass(frozen=True)
class Case:
    """One environment's whole loop in two settings."""

    preset: str
    free: tuple[str, ...]


CASES = {
    "cartpole": Case(
        "cartpole-dqn",
        (
            "environment.vectorization=native",
            "actors.rollout.envs_per_actor=128",
            "actors.rollout.fragment_steps=16",
            "actors.rollout.fragment_steps_max=64",
            "replay.capacity_rows=1000000",
            "replay.limiter.samples_per_insert=0.25",
        ),
    ),
    "nethack": Case("nethack-oni", ("replay.limiter.samples_per_insert=0.25",)),
}


def bare_steps_per_second(preset: str, overrides: tuple[str, ...], seconds: float) -> float:
    """Env steps/s of the actor's own vector environment under random actions, in this process."""
    from onibi.actors.environments.factory import make_vector_env
    from onibi.clusters.run_plan import raw_keys
    from onibi.clusters.sessions import read_run_settings

    settings = read_run_settings(preset, overrides)
    envs = settings.actors.rollout.envs_per_actor
    env = make_vector_env(settings.environment, envs, raw_keys(settings))
    env.reset(seed=1)
    env.action_space.seed(1)
    actions = [env.action_space.sample() for _ in range(1024)]
    steps, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        env.step(actions[steps // envs % len(actions)])
        steps += envs
    rate = steps / (time.perf_counter() - began)
    env.close()
    return rate


def profile_table(profiles: list[RoleProfile]) -> Table:
    """The profile for a terminal."""
    table = Table(title="Where one second of each process goes", title_justify="left", box=None, pad_edge=False)
    for column in ("process", "cores", "MiB", "of each second"):
        table.add_column(column, justify="right" if column in ("cores", "MiB") else "left")
    for each in profiles:
        shares = ", ".join(f"{part} {share:.2f} s" for part, share in each.shares.items() if share >= 0.005)
        table.add_row(each.role, f"{each.cores:.2f}", f"{each.resident_bytes / 2**20:.0f}", shares)
    return table


def main() -> int:
    """Run the rounds and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; all where left out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=15.0, help="of the whole loop in each round")
    options = parser.parse_args()
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"no case {sorted(unknown)}; there are {', '.join(CASES)}")

    from onibi.clusters import train
    from onibi.platform.threads import hold_threads

    hold_threads()
    console = Console(width=140)
    table = Table(title="Env steps per second (median of rounds, least to most)", title_justify="left")
    for column in ("environment", "setting", "bare env, one process", "whole loop", "loop / bare", "updates/s"):
        table.add_column(column)
    profiles = []
    with tempfile.TemporaryDirectory() as runs:
        for name in options.cases or CASES:
            case = CASES[name]
            for setting, changes in (("preset", ()), ("free", case.free)):
                bare, loop, updates = [], [], []
                for number in range(options.rounds):
                    bare.append(bare_steps_per_second(case.preset, changes, options.seconds / 5))
                    result = train(
                        case.preset,
                        overrides=[
                            *changes,
                            f"budget={{max_env_steps: null, max_seconds: {options.seconds}}}",
                            "evaluation.period_env_steps=null",
                            "evaluation.episodes=1",
                            "evaluation.envs=1",
                        ],
                        name=f"{name}-{setting}-{number}",
                        runs_folder=Path(runs),
                        display=False,
                    )
                    loop.append(result.env_steps / result.seconds)
                    updates.append(result.updates / result.seconds)
                ratios = [whole / alone for whole, alone in zip(loop, bare, strict=True)]
                table.add_row(name, setting, *map(spread, (bare, loop)), spread(ratios, 2), spread(updates))
                profiles.append((f"{name}, {setting}", result.profile))
    console.print(table)
    for title, profile in profiles:
        console.print(f"\n{title}, last round")
        console.print(profile_table(profile))
    return 0


if __name__ == "__main__":
    sys.exit(main())
