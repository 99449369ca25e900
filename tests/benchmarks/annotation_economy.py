"""What do labels cost? Keys asked in a run, beside distinct keys and beside one call a step, and in runs that follow.

    python tests/benchmarks/annotation_economy.py                    # NetHack and KeyRoom, three runs each, 10 minutes
    python tests/benchmarks/annotation_economy.py --env-steps 20000  # that it runs

Serial runs of the presets with the judge `lexicon`, which is free, and a table of labels as for one that is not: what
is asked hangs on the captions that are met and not on who judges. The first run finds the table empty. The second has
its seed, the third another one and so other games; both find what was answered before them. Little is learnt from a row
(--samples-per-insert), to come through more games in the time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from peers.machine import describe

PRESETS = ("nethack-oni", "minihack-oni")
RUNS = (("first", 1), ("again", 1), ("another seed", 2))


def run(preset: str, name: str, seed: int, folder: Path, options: argparse.Namespace) -> Any:
    """One run on the preset's table. Returns: its result."""
    from onibi.clusters import train

    overrides = [
        *(f"seed={seed}", "annotator={kind: lexicon}", f"annotation.table={folder / 'table'}"),
        *(f"budget.max_env_steps={options.env_steps}", "budget.max_seconds=null"),
        f"replay.limiter.samples_per_insert={options.samples_per_insert}",
        *("replay.log.enabled=false", "tracking.enabled=false"),
        *("evaluation.period_env_steps=null", "evaluation.episodes=1", "evaluation.envs=1"),
    ]
    return train(preset, overrides=overrides, serial=True, name=name, runs_folder=folder, display=False)


def main() -> int:
    """Run them and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", default=",".join(PRESETS), help="by comma")
    parser.add_argument("--env-steps", type=int, default=200_000, help="of each run")
    parser.add_argument("--samples-per-insert", type=float, default=0.5)
    options = parser.parse_args()
    print(f"`{' '.join(['python', *sys.argv])}`\n\n{describe()}\n")
    columns = (
        "preset",
        "run",
        "env steps",
        "distinct keys",
        "asked",
        "asked per million steps",
        "calls saved",
        "asked of first",
    )
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for preset in options.presets.split(","):
        with tempfile.TemporaryDirectory(prefix="onibi-benchmark-") as folder:
            first = None
            for name, seed in RUNS:
                result = run(preset, name.replace(" ", "-"), seed, Path(folder), options)
                figures = result.figures
                asked, steps = figures["annotation/asked_keys"], result.env_steps
                first = asked if first is None else first
                assert figures["annotation/duplicate_labels"] == 0
                cells = (
                    *(preset, name, f"{steps:,}", f"{figures['annotation/keys_askable']:,.0f}", f"{asked:,.0f}"),
                    *(f"{figures['annotation/asked_per_million_steps']:,.0f}", f"{1 - asked / steps:.2%}"),
                    f"{asked / first:.1%}",
                )
                print(f"| {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
