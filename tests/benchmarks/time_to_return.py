"""Seconds of training to a mean return of 475 on CartPole-v1: Onibi, Sample Factory, RLlib; one run, one table.

    python tests/benchmarks/time_to_return.py [--rounds 3] [--limit 120] [--rows onibi,sf-native] [--fresh]

Each system trains by a recipe of its own for this task: Onibi by its preset `cartpole-appo`, Sample Factory by the
example in its package (`sf_examples/train_gym_env.py`) and, besides, by the numbers of our preset; RLlib by its tuned
examples. The network is the same for all, 2 x 64 tanh. The clock runs from a system's first env steps, which leaves its
start-up out, to the moment when the mean return that it gives itself of its last 100 episodes while training is 475. A
run that has not got there after --limit seconds counts as "more". The seed differs from round to round. Finished runs
are kept in --cells.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from peers.environments import LEARNERS, MissingPeerError, python_of
from peers.finished_runs import add_options, finished_runs, version_of
from peers.learner_cell import Order
from peers.learner_process import CellError, run_cell
from peers.machine import describe

_RETURN = 475.0
_SHARE = 1 / 3  # of the best peer's time: what the project has set itself

_PRESETS_NUMBERS = {
    "batch_size": 512,
    "num_batches_per_epoch": 4,
    "num_epochs": 4,
    "learning_rate": 1e-3,
    "gae_lambda": 0.95,
    "ppo_clip_ratio": 0.2,
    "exploration_loss": "entropy",
    "exploration_loss_coeff": 0.005,
    "reward_scale": 0.1,
    "with_vtrace": False,
}
_SF_EXAMPLE = {
    "batch_size": 512,
    "num_batches_per_epoch": 1,
    "learning_rate": 1e-4,
    "policy_workers_per_policy": 2,
    "reward_scale": 0.1,
    "with_vtrace": False,
    "normalize_input": True,
    "normalize_returns": True,
}
_RLLIB_PPO = {
    "lr": 3e-4,
    "num_epochs": 6,
    "vf_loss_coeff": 0.01,
    "train_batch_size_per_learner": 4_000,
    "minibatch_size": 128,
}
_RLLIB_APPO = {
    "lr": 7.5e-4,
    "vf_loss_coeff": 0.05,
    "entropy_coeff": 0.01,
    "train_batch_size_per_learner": 1_000,
    "circular_buffer_iterations_per_batch": 2,
}


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    label: str
    system: str  # onibi, or one of peers.environments.LEARNERS
    algorithm: str
    options: dict[str, Any]


ROWS = {
    "onibi": Row("Onibi, preset `cartpole-appo`", "onibi", "appo", {"recipe": "cartpole-appo"}),
    "sf-example": Row(
        "Sample Factory, its example: 2 x 20 single environments",
        "sample_factory",
        "appo",
        {"mode": "asynchronous", "workers": 2, "envs": 20, "native": False, "recipe": _SF_EXAMPLE},
    ),
    "sf-single": Row(
        "Sample Factory, our preset's numbers: 2 x 16 single environments",
        "sample_factory",
        "appo",
        {"mode": "asynchronous", "workers": 2, "envs": 16, "native": False, "recipe": _PRESETS_NUMBERS},
    ),
    "sf-native": Row(
        "Sample Factory, our preset's numbers: 64 native environments",
        "sample_factory",
        "appo",
        {"mode": "batched", "workers": 1, "envs": 64, "native": True, "recipe": _PRESETS_NUMBERS},
    ),
    "rllib-ppo": Row(
        "RLlib PPO, its tuned example",
        "rllib",
        "ppo",
        {"workers": 2, "envs": 8, "native": False, "learners": 0, "compiled": False, "recipe": _RLLIB_PPO},
    ),
    "rllib-appo": Row(
        "RLlib APPO, its tuned example",
        "rllib",
        "appo",
        {"workers": 2, "envs": 8, "native": False, "learners": 0, "compiled": False, "recipe": _RLLIB_APPO},
    ),
}


def measure(row: Row, order: Order, peers_folder: Path) -> dict[str, Any]:
    """``seconds`` to the return (None: not reached), ``steps`` by then, ``others_cores``; ``error`` if it failed."""
    module = "onibi_loop" if row.system == "onibi" else LEARNERS[row.system].worker
    try:
        python = Path(sys.executable) if row.system == "onibi" else python_of(row.system, peers_folder)
        measured, others = run_cell(python, module, order)
    except MissingPeerError as error:
        return {"error": f"cannot be installed here: {error}"}
    except CellError as error:
        return {"error": str(error)}
    return {
        "seconds": measured.reached_seconds,
        "steps": measured.points[-1][1] if measured.points else None,
        "return": measured.episode_return,
        "others_cores": others,
    }


def shown(found: dict[str, Any], limit: float) -> str:
    """One run in words."""
    if "error" in found:
        return str(found["error"])
    learnt = found["return"]
    last = "" if learnt is None else f", mean return {learnt:.0f}"
    seconds = f"> {limit:.0f} s" if found["seconds"] is None else f"{found['seconds']:.1f} s"
    return f"{seconds}, {found['steps'] or 0:,.0f} env steps{last}, others used {found['others_cores']:.2f} cores"


def table(results: dict[str, list[dict[str, Any]]], limit: float) -> list[str]:
    """The table in Markdown, and whether the aim was reached."""
    lines = ["| | seconds to 475, median [least, most] | reached | env steps by then |", "|---|---|---|---|"]
    medians: dict[str, float] = {}
    for name, found in results.items():
        runs = [each for each in found if "error" not in each]
        if not runs:
            lines.append(f"| {ROWS[name].label} | missing: {found[-1]['error'] if found else 'not run'} | | |")
            continue
        seconds = [limit if each["seconds"] is None else each["seconds"] for each in runs]
        steps = [each["steps"] for each in runs if each["seconds"] is not None]
        medians[name] = statistics.median(seconds)
        middle, least, most = (
            f"> {limit:.0f}" if value >= limit else f"{value:.1f}"
            for value in (medians[name], min(seconds), max(seconds))
        )
        made = f"{statistics.median(steps):,.0f}" if steps else "–"
        lines.append(f"| {ROWS[name].label} | {middle} [{least}, {most}] | {len(steps)} of {len(runs)} | {made} |")
    others = [seconds for name, seconds in medians.items() if name != "onibi"]
    if "onibi" in medians and others:
        share = medians["onibi"] / min(others)
        verdict = "met" if share <= _SHARE else "MISSED"
        lines += ["", f"Onibi's median is {share:.2f} of the best peer's; the aim is a third at most: {verdict}."]
    return lines


def main() -> int:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds of training at most")
    parser.add_argument("--rows", default=",".join(ROWS), help="which, by comma")
    add_options(parser, "time_to_return.json")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the run under way is ended, too
    names = arguments.rows.split(",")
    if unknown := set(names) - set(ROWS):
        parser.error(f"--rows: no {sorted(unknown)}; there are {', '.join(ROWS)}")
    finished = finished_runs(arguments)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for turn in range(arguments.rounds):
        for name in names:
            row = ROWS[name]
            order = Order(
                environment="CartPole-v1",
                algorithm=row.algorithm,
                options=row.options,
                seed=1 + turn,
                warm_seconds=0.0,
                seconds=arguments.limit,
                until_return=_RETURN,
            )
            spec = {"version": version_of(row.system), "order": asdict(order)}
            found = finished.take(spec, partial(measure, row, order, arguments.peers_folder))
            results[name].append(found)
            print(f"round {turn + 1}, {name}: {shown(found, arguments.limit)}", flush=True)
    print(f"\n`{' '.join(['python', *sys.argv])}` at {version_of('onibi')}\n\n{describe()}.\n")
    print("\n".join(table(results, arguments.limit)))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
