"""Env steps per second of whole training loops, Onibi beside Sample Factory and RLlib: one run, one table.

    python tests/benchmarks/learner_peers.py [--rounds 5] [--quick] [--rows onibi-native,sf-native] [--fresh]

Every system trains CartPole-v1 with the same network (2 x 64 tanh), rollout length, batch of a gradient step and loss
(mse), one pass over the data, on all cores of this machine; rows *-nethack train NetHackScore-v0, seen through Onibi's
view and read by its encoder (2 x 128) on both sides. RLlib's and Sample Factory's figures are those that they give
themselves. First each row of the table is *scanned*: every candidate of workers x environments (and mode) is run
once, and printed. The best one is then run --rounds times, the rows in turn. Each run is a process of its own with
threads of BLAS and OpenMP held to one, the peers in virtual environments of their own, which the first run makes
(several GB, minutes). Finished runs are kept in --cells and not made again: stop and start it as you like.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import statistics
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from peers.environments import LEARNERS, MissingPeerError, python_of
from peers.finished_runs import FinishedRuns, add_options, finished_runs, version_of
from peers.learner_cell import Order
from peers.learner_process import CellError, run_cell
from peers.machine import BUSY_CORES, describe
from peers.spread import spread

_REPLAY_RATIO = 8.0  # dqn: drawn rows per env step
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Row:
    """One line of the table: a system, what it trains, and the candidates that are scanned for it."""

    label: str
    system: str  # onibi, or one of peers.environments.LEARNERS
    algorithm: str
    candidates: tuple[dict[str, Any], ...]
    changes: tuple[tuple[str, Any], ...] = ()  # to the order


@dataclass(frozen=True)
class Target:
    """What the project has set itself: ``ours`` at ``at_least`` times the best of ``others``."""

    text: str
    ours: str
    others: tuple[str, ...]
    at_least: float


def _candidates(**choices: Iterable[Any]) -> tuple[dict[str, Any], ...]:
    return tuple(dict(zip(choices, chosen, strict=True)) for chosen in product(*choices.values()))


_SF_SINGLE = (
    *_candidates(mode=["asynchronous", "batched"], workers=[2, 1], envs=[16, 32], native=[False]),
    *_candidates(mode=["serial"], workers=[1], envs=[16, 64], native=[False]),
)
_SF_NATIVE = (
    *_candidates(mode=["batched"], workers=[1, 2], envs=[64, 256, 512], native=[True]),
    *_candidates(mode=["serial"], workers=[1], envs=[64, 256, 512], native=[True]),
)
_RLLIB = (
    *_candidates(workers=[2, 1], envs=[32, 8], native=[False], learners=[0], compiled=[False]),
    *_candidates(workers=[2], envs=[32], native=[True], learners=[0, 1], compiled=[False]),
    *_candidates(workers=[2], envs=[32], native=[True], learners=[0], compiled=[True]),
)
_NETHACK = (("environment", "NetHackScore-v0"), ("hidden", (128, 128)), ("activation", "relu"))
_DQN = (("batch", 128), ("activation", "relu"), ("rollout", 1))

ROWS = {
    "onibi-native": Row(
        "Onibi appo, native environment",
        "onibi",
        "appo",
        (
            *_candidates(actors=[1, 2], envs=[256, 128], native=[True], compile=["none"]),
            *_candidates(actors=[1], envs=[512], native=[True], compile=["none"]),
            *_candidates(actors=[1], envs=[256], native=[True], compile=["default"]),
        ),
    ),
    "onibi-sync": Row(
        "Onibi appo, single environments",
        "onibi",
        "appo",
        (
            *_candidates(actors=[2], envs=[16, 32, 64], native=[False], compile=["none"]),
            *_candidates(actors=[1, 3], envs=[32], native=[False], compile=["none"]),
            *_candidates(actors=[2], envs=[32], native=[False], compile=["default"]),
        ),
    ),
    "sf-native": Row("Sample Factory, native environment", "sample_factory", "appo", _SF_NATIVE),
    "sf-single": Row("Sample Factory, single environments", "sample_factory", "appo", _SF_SINGLE),
    "rllib-appo": Row("RLlib APPO", "rllib", "appo", _RLLIB),
    "rllib-impala": Row("RLlib IMPALA", "rllib", "impala", _RLLIB),
    "onibi-dqn": Row(
        f"Onibi dqn, {_REPLAY_RATIO:g} samples an insert",
        "onibi",
        "dqn",
        _candidates(actors=[1], envs=[16, 64], native=[True, False], ratio=[_REPLAY_RATIO]),
        _DQN,
    ),
    "rllib-dqn": Row(
        f"RLlib DQN, {_REPLAY_RATIO:g} samples an insert",
        "rllib",
        "dqn",
        _candidates(
            workers=[0, 1],
            envs=[16, 1],
            native=[False],
            learners=[0],
            compiled=[False],
            training_intensity=[_REPLAY_RATIO],
        ),
        _DQN,
    ),
    "onibi-nethack": Row(
        "Onibi appo, NetHack",
        "onibi",
        "appo",
        (
            *_candidates(actors=[2], envs=[16, 32], native=[False], compile=["none"], tolerance=[None, 8_192]),
            *_candidates(actors=[1], envs=[64], native=[False], compile=["none"]),
        ),
        _NETHACK,
    ),
    "sf-nethack-native": Row(
        "Sample Factory, NetHack, our view of all games at once",
        "sample_factory",
        "appo",
        (
            *_candidates(mode=["batched"], workers=[2], envs=[16, 32], native=[True], vectors=[1, 2]),
            *_candidates(mode=["batched", "serial"], workers=[1], envs=[64], native=[True], vectors=[1]),
        ),
        _NETHACK,
    ),
    "sf-nethack-single": Row(
        "Sample Factory, NetHack, single environments",
        "sample_factory",
        "appo",
        (
            *_candidates(mode=["asynchronous", "batched"], workers=[2], envs=[32], native=[False]),
            *_candidates(mode=["serial"], workers=[1], envs=[32], native=[False]),
        ),
        _NETHACK,
    ),
}
_SF = ("sf-native", "sf-single")
TARGETS = (
    Target("appo, native, against Sample Factory", "onibi-native", _SF, 8.0),
    Target("appo, single environments, against Sample Factory's", "onibi-sync", ("sf-single",), 4.0),
    Target("appo, single environments, against Sample Factory's best", "onibi-sync", _SF, 4.0),
    Target("appo, native, against RLlib's APPO and IMPALA", "onibi-native", ("rllib-appo", "rllib-impala"), 20.0),
    Target("dqn against RLlib's DQN", "onibi-dqn", ("rllib-dqn",), 10.0),
    Target("appo, NetHack, against Sample Factory", "onibi-nethack", ("sf-nethack-native", "sf-nethack-single"), 1.5),
)


class Cells:
    """Measured runs of the systems that are installed."""

    def __init__(self, finished: FinishedRuns, pythons: dict[str, Path]) -> None:
        self._finished, self._pythons = finished, pythons

    def run(self, row: str, order: Order, purpose: str) -> dict[str, Any]:
        """``rate``, ``episode_return``, ``settings`` and ``others_cores`` of a run; ``error`` where it failed."""
        system = ROWS[row].system
        spec = {"row": row, "version": version_of(system), "purpose": purpose, "order": asdict(order)}
        return self._finished.take(spec, lambda: self._measure(system, order))

    def _measure(self, system: str, order: Order) -> dict[str, Any]:
        module = "onibi_loop" if system == "onibi" else LEARNERS[system].worker
        try:
            measured, others = run_cell(self._pythons[system], module, order)
            rate = measured.rate(order.warm_seconds)
        except (CellError, ValueError) as error:
            return {"error": str(error)}
        return {
            "rate": rate,
            "episode_return": measured.episode_return,
            "settings": measured.settings,
            "others_cores": others,
        }


def scan(cells: Cells, name: str, order: Order) -> dict[str, Any] | None:
    """The fastest candidate of a row, each run once; None where none ran."""
    best: tuple[float, dict[str, Any] | None] = (0.0, None)
    for options in ROWS[name].candidates:
        found = cells.run(name, replace(order, options=options), "scan")
        shown = found.get("error") or _shown(found)
        print(f"  {name}: {' '.join(f'{key}={value}' for key, value in options.items())}: {shown}", flush=True)
        best = max(best, (found.get("rate", 0.0), options), key=lambda each: each[0])
    return best[1]


def _shown(found: dict[str, Any]) -> str:
    learnt = found["episode_return"]
    return (
        f"{found['rate']:,.0f} env steps/s, return {'–' if learnt is None else f'{learnt:.0f}'}, "
        f"others used {found['others_cores']:.2f} cores"
    )


def table(results: dict[str, list[dict[str, Any]]], best: dict[str, dict[str, Any] | None]) -> list[str]:
    """The table in Markdown."""
    lines = ["| | best of the scan | env steps/s | return at the end |", "|---|---|---|---|"]
    for name, found in results.items():
        rates = [each["rate"] for each in found if "rate" in each]
        if not rates:
            why = found[-1].get("error", "") if found else "no candidate ran"
            lines.append(f"| {ROWS[name].label} | | missing: {why} | |")
            continue
        returns = [each["episode_return"] for each in found if each.get("episode_return") is not None]
        options = ", ".join(f"{key} {value}" for key, value in (best[name] or {}).items())
        lines.append(f"| {ROWS[name].label} | {options} | {spread(rates)} | {spread(returns) if returns else '–'} |")
    return lines


def targets(results: dict[str, list[dict[str, Any]]]) -> list[str]:
    """What was aimed at, and what was reached; ratios are taken within a round, against the best peer of that round."""
    lines = ["| | at least | measured | |", "|---|---|---|---|"]
    for target in TARGETS:
        ratios = []
        for ours, *others in zip(*(results.get(name, []) for name in (target.ours, *target.others)), strict=False):
            rates = [each["rate"] for each in others if "rate" in each]
            if "rate" in ours and len(rates) == len(others):
                ratios.append(ours["rate"] / max(rates))
        verdict = ("met" if statistics.median(ratios) >= target.at_least else "MISSED") if ratios else "not measured"
        lines.append(f"| {target.text} | {target.at_least:g} | {spread(ratios, 1) if ratios else ''} | {verdict} |")
    return lines


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="5, with --quick 1")
    parser.add_argument("--seconds", type=float, help="measured in a round: 20, with --quick 4")
    parser.add_argument("--scan-seconds", type=float, help="measured of a candidate: 8, with --quick 3")
    parser.add_argument("--warm-seconds", type=float, help="before that: 6, with --quick 3")
    parser.add_argument("--quick", action="store_true", help="to see that it runs: the first candidates only")
    parser.add_argument("--rows", default=",".join(ROWS), help="which, by comma")
    add_options(parser, "learner_peers.json")
    arguments = parser.parse_args()
    quick = arguments.quick
    for name, value in {
        "rounds": 1 if quick else 5,
        "seconds": 4.0 if quick else 20.0,
        "scan_seconds": 3.0 if quick else 8.0,
        "warm_seconds": 3.0 if quick else 6.0,
    }.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    arguments.rows = arguments.rows.split(",")
    if unknown := set(arguments.rows) - set(ROWS):
        parser.error(f"--rows: no {sorted(unknown)}; there are {', '.join(ROWS)}")
    return arguments


def main() -> int:
    """Run what is missing, print the tables."""
    arguments = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the run under way is ended, too
    pythons, why = {"onibi": Path(sys.executable)}, {}
    for name in {ROWS[row].system for row in arguments.rows} - {"onibi"}:
        try:
            pythons[name] = python_of(name, arguments.peers_folder)
        except MissingPeerError as error:
            why[name] = f"cannot be installed here: {error}"
    cells = Cells(finished_runs(arguments), pythons)
    orders = {
        name: Order(
            algorithm=ROWS[name].algorithm,
            options={},
            seed=1,
            warm_seconds=arguments.warm_seconds,
            seconds=arguments.seconds,
            **{"environment": "CartPole-v1", **dict(ROWS[name].changes)},
        )
        for name in arguments.rows
    }
    results: dict[str, list[dict[str, Any]]] = {
        name: [{"error": why[ROWS[name].system]}] if ROWS[name].system in why else [] for name in arguments.rows
    }
    best: dict[str, dict[str, Any] | None] = {}
    print("Scan, each candidate once:", flush=True)
    for name, order in orders.items():
        if arguments.quick:
            ROWS[name] = replace(ROWS[name], candidates=ROWS[name].candidates[:1])
        runs = ROWS[name].system in pythons
        best[name] = scan(cells, name, replace(order, seconds=arguments.scan_seconds)) if runs else None
    shuffled = random.Random(0)
    for turn in range(arguments.rounds):
        names = [name for name in orders if best[name] is not None]
        shuffled.shuffle(names)
        for name in names:
            found = cells.run(name, replace(orders[name], options=best[name], seed=1 + turn), f"round {turn}")
            print(f"round {turn + 1}, {name}: {found.get('error') or _shown(found)}", flush=True)
            results[name].append(found)
    others = [found["others_cores"] for each in results.values() for found in each if "others_cores" in found]
    load = statistics.median(others) if others else 0.0
    state = f"**LOADED machine: others used {load:.2f} cores**" if load > BUSY_CORES else f"quiet machine ({load:.2f})"
    print(f"\n`{' '.join(['python', *sys.argv])}` at {version_of('onibi')}\n\n{describe()}; {state}.")
    print(f"Median of {arguments.rounds} rounds [least, most], {arguments.seconds:g} s each.\n")
    print("\n".join([*table(results, best), "", *targets(results), "", "Settings of each row's last round:", ""]))
    for name, each in results.items():
        if each and "settings" in each[-1]:
            print(f"* {ROWS[name].label}: {json.dumps(each[-1]['settings'])}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
