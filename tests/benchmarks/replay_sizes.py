"""The sampling rate against the number of rows in the store: flat, or as flat as the memory itself.

    python tests/benchmarks/replay_sizes.py [--rounds 5] [--quick] [--plot docs/results/replay_sizes.png]

Beside each sampler stands the bare ``np.take`` of as many observations from the same ring, indices made beforehand:
what caches and page tables cost at that size, it pays too. All sizes are in memory together and measured in turns, each
round in a new order; figures are medians over the rounds with the least and the most. Sizes that do not fit into the
free memory are named and left out. One process; the rings go with it, also on Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
from peers.machine import Load, describe
from peers.onibi_worker import N_STEPS, filled_ring, sampler_cases, take_case
from peers.ring_fragments import ring_spec
from peers.rows import SMALL, WIDE, Width
from peers.spread import spread
from peers.worker import BATCH, Case, measure

SIZES = {WIDE: (10_000, 100_000, 1_000_000), SMALL: (10_000, 100_000, 1_000_000, 10_000_000)}
QUICK_SIZES = {WIDE: (10_000, 30_000), SMALL: (10_000, 100_000)}
TITLES = {WIDE: "4 KB observations", SMALL: "16-byte observations"}
LINES = {
    "take": "bare np.take",
    "uniform 1": "uniform n = 1",
    f"uniform {N_STEPS}": f"uniform n = {N_STEPS}",
    f"prioritized {N_STEPS}": f"prioritized n = {N_STEPS}, with updates",
}
_SPARE_BYTES = 2 * 2**30
_SLICES = 4

Rates = dict[tuple[Width, int, str], list[float]]


def fits(width: Width, rows: int, folder: Path) -> str:
    """Why a ring of so many rows cannot be made; empty where it can."""
    need = int(rows * ring_spec(width).row_bytes * 1.02)
    free = min(psutil.virtual_memory().available, shutil.disk_usage(folder).free)
    if need + _SPARE_BYTES <= free:
        return ""
    return f"it needs {need / 2**30:.1f} GiB and {_SPARE_BYTES / 2**30:.0f} to spare, {free / 2**30:.1f} are free"


def prepare(sizes: dict[Width, tuple[int, ...]], folder: Path) -> tuple[dict[tuple[Width, int, str], Case], list[str]]:
    """Cases by (width, rows, line), and what is left out."""
    cases, left_out = {}, []
    for width, row_counts in sizes.items():
        for rows in row_counts:
            if reason := fits(width, rows, folder):
                left_out.append(f"{TITLES[width]}, {rows:,} rows: {reason}")
                continue
            print(f"filling {rows:,} rows of {width.row_bytes} bytes …", file=sys.stderr, flush=True)
            reader = filled_ring(folder / f"{width.name}-{rows}.ring", width, rows)
            found, wrong = sampler_cases(reader, width)
            if faults := {name: text for name, text in wrong.items() if text}:
                raise SystemExit(f"wrong transitions, nothing measured: {faults}")
            found[f"{width.name} take"] = take_case(reader.columns["observation"], width, reader.slots)
            for line in LINES:
                if case := found.get(f"{width.name} {line}"):
                    cases[width, rows, line] = case
    return cases, left_out


def run(cases: dict[tuple[Width, int, str], Case], rounds: int, seconds: float) -> Rates:
    """Transitions a second of every case, round by round."""
    rates: Rates = {key: [] for key in cases}
    order = random.Random(0)
    for turn in range(rounds):
        print(f"round {turn + 1} of {rounds} …", file=sys.stderr, flush=True)
        totals = {key: [0.0, 0.0] for key in cases}
        turns = [key for key in cases for _ in range(_SLICES)]
        order.shuffle(turns)
        for key in turns:
            found = measure(cases[key], seconds / _SLICES)
            totals[key][0] += found["rows"]
            totals[key][1] += found["seconds"]
        for key, (count, passed) in totals.items():
            rates[key].append(count / passed)
    return rates


def table(rates: Rates) -> list[str]:
    """Markdown: rows of a store down, samplers across; M transitions/s."""
    lines = []
    for width in dict.fromkeys(key[0] for key in rates):
        names = [line for line in LINES if any(key[0] == width and key[2] == line for key in rates)]
        lines += [f"### {TITLES[width]}, batches of {BATCH}, M transitions/s", ""]
        lines += ["| rows | " + " | ".join(LINES[name] for name in names) + " |", "|---" * (1 + len(names)) + "|"]
        for rows in dict.fromkeys(key[1] for key in rates if key[0] == width):
            cells = []
            for name in names:
                found = [rate / 1e6 for rate in rates[width, rows, name]]
                cells.append(spread(found, 3))
            lines.append(f"| {rows:,} | " + " | ".join(cells) + " |")
        lines.append("")
    return lines


def plot(rates: Rates, path: Path) -> None:
    """One panel a width: rate against rows, both logarithmic, bars from the least to the most."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    widths = list(dict.fromkeys(key[0] for key in rates))
    figure, panels = plt.subplots(1, len(widths), figsize=(5.2 * len(widths), 3.9), squeeze=False)
    colours = dict(zip(LINES, ("#8a8a8a", "#1f6fb4", "#1a9070", "#c2541b"), strict=True))
    for panel, width in zip(panels[0], widths, strict=True):
        for line, label in LINES.items():
            points = [(key[1], rates[key]) for key in rates if key[0] == width and key[2] == line]
            if not points:
                continue
            x = [rows for rows, _ in points]
            middle = [statistics.median(found) / 1e6 for _, found in points]
            below = [m - min(found) / 1e6 for m, (_, found) in zip(middle, points, strict=True)]
            above = [max(found) / 1e6 - m for m, (_, found) in zip(middle, points, strict=True)]
            style = "--" if line == "take" else "-"
            panel.errorbar(
                x, middle, yerr=[below, above], label=label, color=colours[line], ls=style, marker="o", ms=4, capsize=3
            )
        panel.set(xscale="log", yscale="log", title=TITLES[width], xlabel="rows in the store")
        panel.grid(visible=True, which="major", color="#e4e4e4", lw=0.8)
        panel.spines[["top", "right"]].set_visible(False)
        panel.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        low, high = panel.get_ylim()
        ticks = [factor * 10.0**power for power in range(-3, 4) for factor in (1, 2, 5)]
        panel.set_yticks([tick for tick in ticks if low <= tick <= high])
        panel.set_ylim(low / 1.05, high * 1.05)
    panels[0][0].set_ylabel("M transitions/s")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Run it, print the table, draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="5, with --quick 2")
    parser.add_argument("--seconds", type=float, help="a point and round: 1, with --quick 0.2")
    parser.add_argument("--quick", action="store_true", help="small stores, to see that it runs; no figures to report")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="where the rings lie")
    parser.add_argument("--plot", type=Path, help="draw the plot here")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (2 if arguments.quick else 5)
    seconds = arguments.seconds or (0.2 if arguments.quick else 1.0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with ExitStack() as stack:
        prefix = f"onibi-benchmark-sizes-{os.getpid()}-"
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=prefix, dir=arguments.folder)))
        cases, left_out = prepare(QUICK_SIZES if arguments.quick else SIZES, folder)
        load, begin = Load(), time.monotonic()
        rates = run(cases, rounds, seconds)
        passed = time.monotonic() - begin
        lines = [f"`{' '.join(['python', *sys.argv])}`", "", f"{describe()}; {load.others()}."]
        lines += [f"{rounds} rounds in {passed:.0f} s: median [least, most].", ""]
        lines += [*(f"Left out: {text}." for text in left_out), *table(rates)]
        print("\n".join(lines))
        if arguments.plot:
            plot(rates, arguments.plot)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
