"""Do the shipped presets learn what they claim? One run = one row of a CSV; rows that are there are skipped.

    python tests/benchmarks/first_light.py cartpole            # 5 seeds: greedy return ≥ 475 in 20 fresh episodes
    python tests/benchmarks/first_light.py minihack            # 3 seeds: success ≥ 80% in 104 fresh episodes
    python tests/benchmarks/first_light.py nethack             # 3 seeds: intrinsic return above random play's, 95%
    python tests/benchmarks/first_light.py nethack-twin        # the same with learning rate 0: must fail

Every run is `onibi train PRESET --seed S` as shipped, in a process of its own, one after the other, followed by the
evaluation of the checkpoint that the run itself named best (nethack: its last one, "the final policy"), once, on games
that training never saw. Run it on an otherwise idle machine: budgets are in seconds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from onibi.clusters.experiments.declaration import evaluation_seed
from onibi.clusters.experiments.result_table import config_hash, read_rows, write_rows


@dataclass(frozen=True)
class Claim:
    """What one preset is said to reach, and how that is looked at."""

    preset: str
    seeds: tuple[int, ...]
    figure: str
    at_least: float | None  # None: the comparison with random play decides
    episodes: int
    checkpoint: str = "best"
    against: str | None = None
    overrides: tuple[str, ...] = ()
    must_pass: bool = True


CLAIMS = {
    "cartpole": Claim("cartpole-dqn", (1, 2, 3, 4, 5), "return", 475.0, 20),
    "minihack": Claim("minihack-oni", (1, 2, 3), "success", 0.8, 104),
    "nethack": Claim("nethack-oni", (1, 2, 3), "intrinsic", None, 400, "last", "random"),
    "nethack-twin": Claim(
        "nethack-oni", (1,), "intrinsic", None, 400, "last", "random", ("learner.learning_rate=0.0",), False
    ),
}


def main() -> int:
    """Run what is missing, print the table; 1 where a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claims", nargs="*", choices=[[], *CLAIMS], help="which; all where left out")
    parser.add_argument("--csv", type=Path, default=Path("docs/results/first_light.csv"))
    parser.add_argument("--runs-folder", type=Path, default=Path("runs/first-light"))
    parser.add_argument("--seeds", type=int, help="only the first so many")
    parser.add_argument("--one", nargs=2, metavar=("CLAIM", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(_run(options.one[0], int(options.one[1]), options.runs_folder)))
        return 0
    names = options.claims or list(CLAIMS)
    console = Console() if sys.stdout.isatty() else Console(width=150)  # a log file has room for whole rows
    rows = read_rows(options.csv)
    for name in names:
        for seed in CLAIMS[name].seeds[: options.seeds]:
            key = (name, str(seed), _config_hash(CLAIMS[name], seed))
            if any((row["claim"], row["seed"], row["config_hash"]) == key for row in rows):
                continue
            console.print(f"{datetime.now(UTC):%H:%M:%S} {name}, seed {seed} …")
            command = [sys.executable, __file__, "--one", name, str(seed), "--runs-folder", str(options.runs_folder)]
            answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            figures = json.loads(answer.stdout.splitlines()[-1])
            rows.append({"claim": name, "seed": str(seed), "config_hash": key[2], **figures})
            write_rows(options.csv, rows)
    return _report(console, names, rows)


def _run(name: str, seed: int, runs_folder: Path) -> dict[str, str]:
    from onibi.clusters import evaluate, train
    from onibi.clusters.experiments.trial_runs import player_figures

    claim = CLAIMS[name]
    began = time.monotonic()
    result = train(
        claim.preset,
        overrides=[f"seed={seed}", *claim.overrides],
        name=f"{name}-{seed}",
        runs_folder=runs_folder,
        display=True,
    )
    trained = time.monotonic()
    report = evaluate(
        result.folder.name,
        checkpoint=claim.checkpoint,
        episodes=claim.episodes,
        seed=evaluation_seed(seed),
        against=claim.against,
        runs_folder=runs_folder,
    )
    row: dict[str, Any] = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "env_steps": result.env_steps,
        "updates": result.updates,
        "train_seconds": f"{result.seconds:.1f}",
        "wall_seconds": f"{trained - began:.1f}",
        "checkpoint": report.checkpoint,
    }
    for player in report.players:
        for figure, (mean, low, high) in player_figures(player).items():
            row[f"{player.name}_{figure}"] = f"{mean:.4g}"
            row[f"{player.name}_{figure}_95"] = f"{low:.4g}..{high:.4g}"
    reached = float(row[f"trained_{claim.figure}"])
    row["holds"] = report.passed if claim.at_least is None else reached >= claim.at_least
    return {key: str(value) for key, value in row.items()}


def _config_hash(claim: Claim, seed: int) -> str:
    from onibi.clusters.sessions import read_run_settings
    from onibi.platform.config import to_mapping

    return config_hash(to_mapping(read_run_settings(claim.preset, [f"seed={seed}", *claim.overrides])))


def _report(console: Console, names: list[str], rows: list[dict[str, str]]) -> int:
    table = Table(title="First light: what the presets reach", title_justify="left")
    columns = "claim, seed, env steps, updates, train s, wall s, figure, trained (95%), random (95%), holds"
    for column in columns.split(", "):
        table.add_column(column, no_wrap=True)
    failed = 0
    for name in names:
        claim = CLAIMS[name]
        for row in rows:
            if row["claim"] != name or row["config_hash"] != _config_hash(claim, int(row["seed"])):
                continue
            as_claimed = (row["holds"] == "True") == claim.must_pass
            failed += not as_claimed
            trained, random = (
                f"{row.get(f'{who}_{claim.figure}') or '–'} ({row.get(f'{who}_{claim.figure}_95') or '–'})"
                for who in ("trained", "random")
            )
            verdict = row["holds"] + ("" if claim.must_pass else " (must be False)")
            table.add_row(
                name, row["seed"], row["env_steps"], row["updates"], row["train_seconds"], row["wall_seconds"],
                claim.figure, trained, random, verdict,
            )  # fmt: skip
    console.print(table)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
