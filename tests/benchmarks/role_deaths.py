"""How soon does a run work again after `kill -9` of one of its processes?

    python tests/benchmarks/role_deaths.py                        # 20 kills of each role
    python tests/benchmarks/role_deaths.py hub shard --kills 5

One run of `corridor-oni` (two rollout actors, a judge, replay log on, a checkpoint every 5 s) goes on through all
kills, the roles in turn. Printed for each role: seconds from the kill to the first interval that makes 90% of the env
steps/s of before (the median of 10 intervals ahead of the kill), median and range; and kills after which that took over
30 s. `run` kills the whole process group, Ray with it, and counts from there through `onibi resume`. At the end the
replay log is read: every sealed row whole, none twice.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from peers.spread import spread
from rich.console import Console
from rich.table import Table

ROLES = {
    "rollout": b"ray::RolloutActor",
    "learner": b"ray::LearnerActor",
    "annotator": b"ray::AnnotatorActor",
    "hub": b"ray::HubActor",
    "shard": b"ray::ShardActor",
    "run": b"",
}
SHARE, BASE_INTERVALS, ASKED_SECONDS, GIVEN_UP_SECONDS = 0.9, 10, 30.0, 180.0
SETTINGS = (
    "actors.count=2",
    "replay.capacity_rows=1000000",
    "budget={max_env_steps: 1000000000, max_seconds: null}",
    "evaluation.period_env_steps=null",
    "checkpoint.period_seconds=5",
    "tracking.enabled=false",
)


class Run:
    """The run under test, as a process group of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "runs" / "deaths"
        self._output = folder / "output.log"
        self._process = self._start("train", "corridor-oni", "--name", "deaths", *self._set())

    def _set(self) -> list[str]:
        return [part for setting in SETTINGS for part in ("--set", setting)]

    def _start(self, *command: str) -> subprocess.Popen[bytes]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "ONIBI_"))}
        with self._output.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "onibi", *command, "--runs-folder", str(self.folder.parent)],
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**kept, "RAY_USAGE_STATS_ENABLED": "0"},
            )

    def rates(self) -> list[float]:
        """Env steps/s of all intervals so far."""
        path = self.folder / "history.jsonl"
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
        return [json.loads(line).get("actors/env_steps_per_second") or 0.0 for line in lines]

    def checkpoints(self) -> int:
        """Number of the newest checkpoint, by its env steps; 0 without one."""
        found = (self.folder / "checkpoints").glob("[0-9]*")
        return max((int(path.name.split("-")[0]) for path in found if path.is_dir()), default=0)

    def kill(self, role: str) -> None:
        """`kill -9` of the first process of a role, or of the whole run, which is then resumed."""
        if role == "run":
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = self._start("resume", "deaths")
            return
        os.kill(self._pids(ROLES[role])[0], signal.SIGKILL)

    def _pids(self, title: bytes) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if (
                    entry.name.isdigit()
                    and (entry / "cmdline").read_bytes().startswith(title)
                    and os.getsid(int(entry.name)) == self._process.pid
                ):
                    found.append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                continue
        return found

    def must_live(self) -> None:
        """Raises: RuntimeError where the run has ended."""
        if self._process.poll() is not None:
            raise RuntimeError(f"the run ended with {self._process.returncode}:\n{self._output.read_text()[-3000:]}")

    def end(self) -> int:
        """Ask it to save a checkpoint and end; its exit code."""
        self._process.send_signal(signal.SIGINT)
        return self._process.wait(120)

    def destroy(self) -> None:
        """Whatever happened: nothing of it stays."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)


def seconds_to_recover(run: Run, role: str) -> tuple[float, float]:
    """Kill once the run is steady and a checkpoint is there. Returns: seconds, and env steps/s of before."""
    seen, saved = len(run.rates()), run.checkpoints()
    while len(run.rates()) < seen + BASE_INTERVALS or run.checkpoints() <= saved:
        time.sleep(0.2)
        run.must_live()
    before = statistics.median(run.rates()[-BASE_INTERVALS:])
    run.kill(role)
    killed = time.monotonic()
    time.sleep(1.0)  # the interval at hand has steps of before
    seen = len(run.rates())
    while time.monotonic() - killed < GIVEN_UP_SECONDS:
        rates = run.rates()
        seen = min(seen, len(rates))  # what is past the checkpoint is forgotten when a session begins
        if any(rate >= SHARE * before for rate in rates[seen:]):
            break
        time.sleep(0.05)
        run.must_live()
    return time.monotonic() - killed, before


def main() -> int:
    """Kill, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roles", nargs="*", help=f"of {', '.join(ROLES)}; all where left out")
    parser.add_argument("--kills", type=int, default=20, help="of each role")
    options = parser.parse_args()
    roles = options.roles or list(ROLES)
    if unknown := set(roles) - set(ROLES):
        parser.error(f"no role {sorted(unknown)}; there are {', '.join(ROLES)}")

    from onibi.platform.replay.log.log_reader import ReplayLog

    console = Console(width=120)
    taken, rates = defaultdict(list), []
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        try:
            for number, role in itertools.product(range(options.kills), roles):
                seconds, before = seconds_to_recover(run, role)
                taken[role].append(seconds)
                rates.append(before)
                print(f"{number + 1}/{options.kills} {role}: {seconds:.1f} s, {before:.0f} steps/s before", flush=True)
            code = run.end()
        finally:
            run.destroy()
        log = ReplayLog(run.folder / "replay")
        damaged = log.verify()
        rows = log.dataset().to_table(columns=["lane", "generation"]).to_pandas()
    table = Table(title=f"Seconds until {SHARE:.0%} of the env steps/s of before", title_justify="left")
    for column in ("killed", "kills", "seconds (least to most)", f"over {ASKED_SECONDS:.0f} s"):
        table.add_column(column)
    for role, seconds in taken.items():
        late = sum(each > ASKED_SECONDS for each in seconds)
        table.add_row(role, str(len(seconds)), spread(seconds, 1), str(late))
    console.print(table)
    console.print(
        f"env steps/s before the kills: {spread(rates)}; the run ended with {code}; log: {len(rows):,} rows, "
        f"{int(rows.duplicated().sum())} twice, {len(damaged)} segments damaged"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
