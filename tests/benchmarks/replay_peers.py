"""Onibi's replay beside bare memory operations and beside other replay buffers: one run, one table.

    python tests/benchmarks/replay_peers.py [--rounds 5] [--quick] [--peers cpprb,torchrl,sb3,reverb | none]

Each contender lives in a process of its own, the peers in virtual environments of their own, which the first run makes
(several GB, minutes) under --peers-folder. A round measures every row of the table in slices, in a new order each time,
one process at a time; so a busy machine slows all of them alike. Figures are medians over the rounds with the least and
the most; ratios are taken within a round. A peer that cannot be had is named, with the reason.
Every contender stores the same transitions of the same 16 environments, and a batch of each is checked before.
Nothing is left behind: the rings go with the run, also on Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from peers.environments import PEERS, MissingPeerError, python_of
from peers.machine import Load, describe
from peers.process import WorkerError, WorkerProcess
from peers.spread import spread

SLICES = 4


@dataclass(frozen=True)
class Row:
    """One line of a table: who, and which of its cases."""

    label: str
    worker: str
    case: str
    slices: int = SLICES
    """Into how many pieces a round's time is cut; 1 where threads in the background fetch in advance."""

    fresh: bool = False
    """Whether the process gives a batch's memory back to the system: see ``peers.worker.set_allocator``."""

    @property
    def source(self) -> str:
        """Worker and case."""
        return f"{self.worker}: {self.case}"

    @property
    def key(self) -> str:
        """Unique in all tables."""
        return self.source + (" fresh" if self.fresh else "")


@dataclass(frozen=True)
class Section:
    """One table; its first row is what the others are divided by."""

    title: str
    unit: str  # what a row of the store counts as
    batch: int  # rows a call: for microseconds a call
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Target:
    """What the project has set itself: ``ours`` at ``at_least`` times ``other``."""

    text: str
    ours: str
    other: str
    at_least: float


def sections() -> list[Section]:
    """All tables."""
    wide = (
        Row("bare np.take, same mapping", "onibi", "wide take"),
        Row("bare np.take, anonymous memory", "onibi", "wide take anonymous"),
        Row("Onibi uniform n = 1", "onibi", "wide uniform 1"),
        Row("Onibi uniform n = 3", "onibi", "wide uniform 3"),
        Row("Onibi uniform n = 1, 2 threads share a batch", "onibi", "wide uniform 1 split"),
        Row("Onibi uniform n = 1, 2 sampler threads", "onibi", "wide uniform 1 threads", slices=1),
        Row("Onibi uniform n = 3, 2 threads share a batch", "onibi", "wide uniform 3 split"),
        Row("Onibi uniform n = 3, 2 sampler threads", "onibi", "wide uniform 3 threads", slices=1),
        Row("Onibi prioritized n = 3, with updates", "onibi", "wide prioritized 3"),
        Row("Onibi prioritized n = 3, acting on the next draw", "onibi", "wide prioritized 3 at once"),
        Row("cpprb uniform", "cpprb", "wide uniform"),
        Row("cpprb uniform, fresh allocator", "cpprb", "wide uniform", fresh=True),
        Row("cpprb uniform, next_of", "cpprb", "wide uniform next_of"),
        Row("cpprb prioritized n = 3, with updates", "cpprb", "wide prioritized 3"),
        Row("cpprb prioritized n = 3, fresh allocator", "cpprb", "wide prioritized 3", fresh=True),
        Row("TorchRL uniform", "torchrl", "wide uniform"),
        Row("TorchRL uniform, fresh allocator", "torchrl", "wide uniform", fresh=True),
        Row("TorchRL uniform, 2 torch threads", "torchrl", "wide uniform threads"),
        Row("TorchRL uniform, 2 prefetch threads", "torchrl", "wide uniform prefetch", slices=1),
        Row("Stable-Baselines3 uniform", "sb3", "wide uniform"),
        Row("Stable-Baselines3 uniform, fresh allocator", "sb3", "wide uniform", fresh=True),
        Row("Stable-Baselines3 n = 3", "sb3", "wide uniform 3"),
        Row("Reverb uniform (all cores)", "reverb", "wide uniform", slices=1),
    )
    small = (
        Row("bare np.take, same mapping", "onibi", "small take"),
        Row("Onibi uniform n = 1", "onibi", "small uniform 1"),
        Row("Onibi uniform n = 3", "onibi", "small uniform 3"),
        Row("Onibi prioritized n = 3, with updates", "onibi", "small prioritized 3"),
        Row("Onibi prioritized n = 3, acting on the next draw", "onibi", "small prioritized 3 at once"),
        Row("cpprb uniform", "cpprb", "small uniform"),
        Row("cpprb prioritized n = 3, with updates", "cpprb", "small prioritized 3"),
        Row("TorchRL uniform", "torchrl", "small uniform"),
        Row("Stable-Baselines3 uniform", "sb3", "small uniform"),
        Row("Reverb uniform (all cores)", "reverb", "small uniform", slices=1),
    )

    def inserts(width: str) -> tuple[Row, ...]:
        return (
            Row("bare copy, shared memory", "onibi", f"{width} copy"),
            Row("bare copy, anonymous memory", "onibi", f"{width} copy anonymous"),
            Row("Onibi RingWriter.insert", "onibi", f"{width} insert"),
            Row("Onibi Shard.insert", "onibi", f"{width} insert shard"),
            Row("cpprb add, 2,048 at once", "cpprb", f"{width} insert"),
            Row("cpprb add, next_of, lane by lane", "cpprb", f"{width} insert next_of"),
            Row("TorchRL extend, 2,048 at once", "torchrl", f"{width} insert"),
            Row("Stable-Baselines3 add, 16 at once", "sb3", f"{width} insert"),
            Row("Reverb trajectory_writer", "reverb", f"{width} insert", slices=1),
        )

    return [
        Section("Sampling, 4 KB observations, batches of 256", "M transitions/s", 256, wide),
        Section("Inserting 128 × 16 rows of 4 KB", "M rows/s", 2_048, inserts("wide")),
        Section("Sampling, 16-byte observations, batches of 256", "M transitions/s", 256, small),
        Section("Inserting 128 × 16 rows of 16 bytes", "M rows/s", 2_048, inserts("small")),
    ]


TARGETS = (
    Target("uniform n = 1 against bare take", "onibi: wide uniform 1", "onibi: wide take", 0.85),
    Target("uniform n = 3 against bare take", "onibi: wide uniform 3", "onibi: wide take", 0.70),
    Target("uniform n = 1 against cpprb", "onibi: wide uniform 1", "cpprb: wide uniform", 3.0),
    Target("… its allocator fresh", "onibi: wide uniform 1", "cpprb: wide uniform fresh", 3.0),
    Target("uniform n = 1 against TorchRL", "onibi: wide uniform 1", "torchrl: wide uniform", 2.5),
    Target("uniform n = 1 against SB3", "onibi: wide uniform 1", "sb3: wide uniform", 1.0),
    Target("uniform n = 1 against Reverb", "onibi: wide uniform 1", "reverb: wide uniform", 50.0),
    Target("2 sampler threads against 1, n = 1", "onibi: wide uniform 1 threads", "onibi: wide uniform 1", 1.6),
    Target("2 sampler threads against cpprb", "onibi: wide uniform 1 threads", "cpprb: wide uniform", 6.0),
    Target("… its allocator fresh", "onibi: wide uniform 1 threads", "cpprb: wide uniform fresh", 6.0),
    Target(
        "2 sampler threads against TorchRL, 2 prefetch threads",
        "onibi: wide uniform 1 threads",
        "torchrl: wide uniform prefetch",
        5.0,
    ),
    Target("2 sampler threads against SB3", "onibi: wide uniform 1 threads", "sb3: wide uniform", 2.0),
    Target("prioritized n = 3 against cpprb's", "onibi: wide prioritized 3", "cpprb: wide prioritized 3", 3.0),
    Target("… its allocator fresh", "onibi: wide prioritized 3", "cpprb: wide prioritized 3 fresh", 3.0),
    Target(
        "the same, updates acting on the next draw",
        "onibi: wide prioritized 3 at once",
        "cpprb: wide prioritized 3",
        3.0,
    ),
    Target("RingWriter.insert against bare copy", "onibi: wide insert", "onibi: wide copy", 0.7),
    Target("Shard.insert against bare copy", "onibi: wide insert shard", "onibi: wide copy", 0.7),
)


class Bench:
    """The workers that are up, why the others are not, and the rates measured so far."""

    def __init__(self, stack: ExitStack, rows: int, memory: Path, scratch: Path) -> None:
        self._stack, self._rows, self._memory, self._scratch = stack, rows, memory, scratch
        self._workers: dict[str, WorkerProcess] = {}
        self.missing: dict[str, str] = {}
        self.checked: dict[str, list[str]] = {}
        self.cases: set[str] = set()
        self.rates: dict[str, list[float]] = {}

    def start(self, name: str, python: Path, module: str) -> None:
        """Start a worker and wait until it is prepared."""
        print(f"preparing {name} …", file=sys.stderr, flush=True)
        worker = WorkerProcess(python, module, self._rows, self._memory, self._scratch / f"{name}.log")
        self._stack.callback(worker.close)
        try:
            found = worker.ready()
        except WorkerError as error:
            self.missing[name] = str(error)
            return
        self._workers[name] = worker
        self.cases |= {f"{name}: {case}" for case in found["cases"]}
        self.checked |= {f"{name}: {case}": wrong for case, wrong in found["wrong"].items()}

    def round(self, rows: list[Row], seconds: float, order: random.Random) -> None:
        """Measure every row once."""
        totals = {row.key: [0.0, 0.0] for row in rows}
        turns = [row for row in rows for _ in range(row.slices) if row.source in self.cases]
        order.shuffle(turns)
        for row in turns:
            if row.worker not in self._workers:
                continue
            try:
                found = self._workers[row.worker].measure(row.case, seconds / row.slices, fresh=row.fresh)
            except WorkerError as error:
                self.missing[row.worker] = str(error)
                del self._workers[row.worker]
                continue
            totals[row.key][0] += found["rows"]
            totals[row.key][1] += found["seconds"]
        for key, (count, passed) in totals.items():
            if count:
                self.rates.setdefault(key, []).append(count / passed)

    def reason(self, row: Row) -> str:
        """Why a row has no figures."""
        return self.missing.get(row.worker) or "this version of it has no such thing"


def ratios(bench: Bench, ours: str, other: str) -> list[float]:
    """Round by round; [] where one of them was not measured in every round."""
    one, two = bench.rates.get(ours, []), bench.rates.get(other, [])
    return [a / b for a, b in zip(one, two, strict=True)] if one and len(one) == len(two) else []


def section_lines(bench: Bench, section: Section) -> list[str]:
    """A table in Markdown."""
    lines = [f"### {section.title}", "", f"| | {section.unit} | µs a call | of the first row |", "|---|---|---|---|"]
    for row in section.rows:
        rates = bench.rates.get(row.key)
        if not rates or row.worker in bench.missing:
            lines.append(f"| {row.label} | missing: {bench.reason(row)} | | |")
            continue
        calls = statistics.median(section.batch / rate * 1e6 for rate in rates)
        share = ratios(bench, row.key, section.rows[0].key)
        millions = [rate / 1e6 for rate in rates]
        lines.append(f"| {row.label} | {spread(millions, 3)} | {calls:.0f} | {spread(share, 3) if share else ''} |")
    return lines


def target_lines(bench: Bench) -> list[str]:
    """What was aimed at, and what was reached."""
    lines = ["### Targets", "", "| | at least | measured | |", "|---|---|---|---|"]
    for target in TARGETS:
        found = ratios(bench, target.ours, target.other)
        verdict = ("met" if statistics.median(found) >= target.at_least else "MISSED") if found else "not measured"
        lines.append(f"| {target.text} | {target.at_least:g} | {spread(found, 2) if found else ''} | {verdict} |")
    return lines


def check_lines(bench: Bench) -> list[str]:
    """What the checks of one batch of each found."""
    wrong = {key: found for key, found in bench.checked.items() if found}
    right = len(bench.checked) - len(wrong)
    lines = [f"Checked one batch of {len(bench.checked)} samplers: {right} returned only right transitions."]
    return lines + [f"* {key}: {'; '.join(found)}" for key, found in wrong.items()]


def shared_folder(parent: Path) -> Path:
    """A new folder for the rings; those of benchmarks that were killed are removed."""
    for old in parent.glob("onibi-benchmark-peers-*"):
        if not Path(f"/proc/{old.name.split('-')[3]}").exists():
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"onibi-benchmark-peers-{os.getpid()}-", dir=parent))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="5, with --quick 2")
    parser.add_argument("--rows", type=int, help="that each store holds: 100000, with --quick 20000")
    parser.add_argument("--seconds", type=float, help="a row of the table and round: 1, with --quick 0.2")
    parser.add_argument("--quick", action="store_true", help="to see that it runs; no figures to report")
    parser.add_argument("--peers", default=",".join(PEERS), help="which, by comma, or none")
    parser.add_argument("--peers-folder", type=Path, default=Path("~/.cache/onibi-benchmarks").expanduser())
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="where the rings lie")
    parser.add_argument("--json", type=Path, help="also write every round's rates here")
    arguments = parser.parse_args()
    arguments.rounds = arguments.rounds or (2 if arguments.quick else 5)
    arguments.rows = arguments.rows or (20_000 if arguments.quick else 100_000)
    arguments.seconds = arguments.seconds or (0.2 if arguments.quick else 1.0)
    arguments.peers = [] if arguments.peers == "none" else arguments.peers.split(",")
    if unknown := set(arguments.peers) - set(PEERS):
        parser.error(f"--peers: no {sorted(unknown)}; there are {sorted(PEERS)}")
    return arguments


def main() -> int:
    """Run it and print the tables."""
    arguments = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    interpreters: dict[str, Path] = {}
    why = {name: "left out by --peers" for name in PEERS if name not in arguments.peers}
    for name in arguments.peers:
        try:
            interpreters[name] = python_of(name, arguments.peers_folder)
        except MissingPeerError as error:
            why[name] = f"cannot be installed here: {error}"
    tables = sections()
    rows = [row for section in tables for row in section.rows]
    with ExitStack() as stack:
        memory = shared_folder(arguments.folder)
        stack.callback(shutil.rmtree, memory, ignore_errors=True)
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="onibi-benchmark-")))
        bench = Bench(stack, arguments.rows, memory, scratch)
        bench.missing |= why
        bench.start("onibi", Path(sys.executable), "onibi_worker")
        for name, python in interpreters.items():
            bench.start(name, python, PEERS[name].worker)
        load, order, begin = Load(), random.Random(0), time.monotonic()
        for turn in range(arguments.rounds):
            print(f"round {turn + 1} of {arguments.rounds} …", file=sys.stderr, flush=True)
            bench.round(rows, arguments.seconds, order)
        lines = [f"`{' '.join(['python', *sys.argv])}`", "", f"{describe()}; {load.others()}."]
        lines += [f"{arguments.rows:,} rows, {arguments.rounds} rounds in {time.monotonic() - begin:.0f} s:"]
        lines[-1] += " median [least, most]."
        lines += ["Peers: " + ", ".join(PEERS[name].title for name in interpreters) + ".", "", *check_lines(bench)]
        for section in tables:
            lines += ["", *section_lines(bench, section)]
        print("\n".join([*lines, "", *target_lines(bench)]))
        if arguments.json:
            found = {"missing": bench.missing, "wrong": bench.checked, "rates": bench.rates}
            arguments.json.write_text(json.dumps(found, indent=1))
        wrong = any(found for key, found in bench.checked.items() if key.startswith("onibi:"))
        return 1 if wrong or "onibi" in bench.missing else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
