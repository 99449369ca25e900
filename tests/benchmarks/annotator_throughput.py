"""Does an annotator hold training up? Env steps/s with it off, on with 2 s for each answer, and with its server dead.

    python tests/benchmarks/annotator_throughput.py                       # nethack-oni, 5 repeats, about 15 minutes
    python tests/benchmarks/annotator_throughput.py --repeats 2 --rotations 2 --preset corridor-oni

Four whole runs (actors, replay, learner; display and tracking off), one in each setting and a second one without an
annotator, are there at the same time, and one of them at a time goes on while all processes of the others are stopped:
slices in turns, so that all see the same neighbours on the machine. **All play the same games**: how deep a game goes
decides what its steps cost. So each is a copy of one short run that goes on by `onibi resume` (its actors have weights
before their first step and equal random numbers), updates are made and published at a learning rate of 0, and a slice
ends with the same env step in all. The second run without an annotator says what is told from nothing. Env steps are
read from the header of each run's ring. Counting begins when a run has made env steps for `--warmup` seconds, or has
come as far as the others did in that time: before, every process loads its packages. The annotator is `openai`; its
server is a real HTTP server on loopback in a process of its own, and `dead` is one that was closed: its port refuses.
`off` counts captions and asks nobody. The server stands still with its run, and what it takes for an answer counts only
while it goes on: else answers would wait for each slice, four times as many a second as in an unbroken run. (What the
dead server's annotator waits before it tries again does pass meanwhile.) Each repeat starts all four anew, as where a
process comes to lie in memory makes it faster or slower by some per cent for as long as it lives. Ratios are to `off`
of the same repeat: median and range, and their mean with a 95% interval.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from peers.spread import spread
from rich.console import Console
from rich.table import Table
from scipy import stats

from onibi.platform.history import read_history
from onibi.platform.replay.ring.reader import RingReader

SETTINGS = ("off", "off, another run", "slow", "dead")
FREE = (
    *("replay.limiter.samples_per_insert=0.25", "replay.log.enabled=false", "tracking.enabled=false"),
    *("annotation.table=none", "budget.max_seconds=null", "annotation.workers=0"),
    *("evaluation.period_env_steps=null", "evaluation.episodes=1", "evaluation.envs=1"),
    "learner.learning_rate=0.0",
)
FIGURES = tuple(f"annotation/{name}" for name in ("replies", "latency_p50_seconds", "failed_batches", "keys_askable"))
FIRST_STEPS = 20_000  # of the run that all are copies of: enough for its learner to begin
_START_SECONDS, _END_SECONDS, _LOOK_SECONDS = 180.0, 90.0, 0.01
_TICK_SECONDS = 0.05


class SlowServer(http.server.ThreadingHTTPServer):
    """Finds every caption helpful, after a while."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, latency_seconds: float) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                for _ in range(round(latency_seconds / _TICK_SECONDS)):  # a sleep would go on while it is stopped
                    time.sleep(_TICK_SECONDS)
                message = {"role": "assistant", "content": "1: helpful"}
                choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
                usage = {"prompt_tokens": 100, "completion_tokens": 3}
                body = json.dumps({"id": "c", "choices": [choice], "usage": usage}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Quiet."""

        super().__init__(("127.0.0.1", 0), Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has ended is no news."""


@contextmanager
def served(latency_seconds: float) -> Iterator[tuple[str, psutil.Process]]:
    """Address of a server in a process of its own, and that."""
    command = [sys.executable, __file__, "--serve", str(latency_seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1", psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


@contextmanager
def address(setting: str, latency_seconds: float) -> Iterator[tuple[str, list[psutil.Process]]]:
    """Where the annotator's server is, or was; and its process, if it is there."""
    with served(latency_seconds) as (url, process):
        if setting == "slow":
            yield url, [process]
    if setting != "slow":
        yield url, []


def begin(options: argparse.Namespace, place: Path) -> Path:
    """The folder of a short run without an annotator, for others to go on from."""
    chosen = [*FREE, f"budget.max_env_steps={FIRST_STEPS}", *options.set]
    command = [
        *(sys.executable, "-m", "onibi", "train", options.preset, "--name", "run", "--runs-folder", place),
        *(word for each in chosen for word in ("--set", each)),
    ]
    told = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if told.returncode:
        raise SystemExit(f"the run to begin with failed:\n{told.stdout}")
    return place / "run"


class PausedRun:
    """A copy of a run, in processes of its own, that goes on only when it is told to.

    Args:
        setting: of the annotator.
        url: of its server.
        servers: what stands still with it.
        begun: folder of the run to copy.
        place: folder for its record and output; its ring lies in memory, in a folder of the same name.
    """

    def __init__(self, setting: str, url: str, servers: list[psutil.Process], begun: Path, place: Path) -> None:
        self._servers = servers
        annotator = {"kind": "openai", "base_url": url, "model": "slow", "answer": "text", "server": {"concurrency": 8}}
        self._rings = Path("/dev/shm") / f"onibi-{place.name}"
        self._rings.mkdir()
        shutil.copytree(begun, place / "run", symlinks=True)
        chosen = [
            f"annotator={json.dumps(annotator)}",
            f"annotation.workers={0 if setting.startswith('off') else 1}",
            f"replay.folder={self._rings}",
            "budget.max_env_steps=1000000000",
        ]
        self._told = (place / "output.txt").open("w+")
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "onibi", "resume", "run", "--runs-folder", place),
                *(word for each in chosen for word in ("--set", each)),
            ],
            stdout=self._told,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.history = place / "run" / "history.jsonl"
        self._reader: RingReader | None = None

    def wait_for_steps(self, steps: int) -> None:
        """Return when it has made so many in all. Raises: SystemExit where none come for a long time."""
        made, since = -1, time.monotonic()
        while made < steps:
            before, made, now = made, self.steps(), time.monotonic()
            since = now if made > before else since
            if self._process.poll() is not None or now > since + _START_SECONDS:
                self._told.seek(0)
                raise SystemExit(f"a run made no env step within {_START_SECONDS:g} s:\n{self._told.read()}")
            time.sleep(_LOOK_SECONDS)

    def steps(self) -> int:
        """Env steps in its ring up to now."""
        if self._reader is None:
            rings = list(self._rings.glob("*.ring"))
            if not rings:
                return 0
            self._reader = RingReader(rings[0])
        return self._reader.snapshot().inserted_rows

    def pause(self) -> None:
        """Stop all its processes."""
        for process in [*self._tree(), *self._servers]:
            _signal(process, signal.SIGSTOP)

    def go_on(self) -> None:
        """And let them go on, those first that were started last."""
        for process in [*self._servers, *reversed(self._tree())]:
            _signal(process, signal.SIGCONT)

    def end(self) -> None:
        """As Ctrl-C does; what lingers is killed."""
        self.go_on()
        tree = self._tree()
        if tree:
            _signal(tree[0], signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        for process in tree:
            _signal(process, signal.SIGKILL)
        psutil.wait_procs(tree, timeout=10)
        if self._reader is not None:
            self._reader.close()
        shutil.rmtree(self._rings, ignore_errors=True)
        self._told.close()

    def _tree(self) -> list[psutil.Process]:
        if self._process.poll() is not None:
            return []
        first = psutil.Process(self._process.pid)
        return [first, *first.children(recursive=True)]


def _signal(process: psutil.Process, number: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def warm_up(runs: list[PausedRun], seconds: float) -> int:
    """Let each go on by itself until its first steps are made, the first for so many seconds: how many all made."""
    steps = 1
    for run in runs:
        run.go_on()
        run.wait_for_steps(steps)
        if run is runs[0]:
            time.sleep(seconds)
            steps = run.steps()
        run.pause()
    return steps


def slice_of(run: PausedRun, steps: int) -> float:
    """Seconds until this run, going on alone, has made so many steps in all."""
    began = time.monotonic()
    run.go_on()
    run.wait_for_steps(steps)
    ended = time.monotonic()
    run.pause()
    return ended - began


def measure(begun: Path, folder: Path, options: argparse.Namespace) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Start a run in each setting, let them go on in turns, and end them.

    Returns: [rotations, settings, 2] env steps and seconds of each slice; the last row of each run's history.
    """
    slices = np.full((options.rotations, len(SETTINGS), 2), float(options.slice_steps))
    runs: dict[str, PausedRun] = {}
    with contextlib.ExitStack() as opened:
        for setting in SETTINGS:
            place = folder / f"{folder.parent.name}-{folder.name}-{len(runs)}"
            place.mkdir(parents=True)
            url, servers = opened.enter_context(address(setting, options.latency))
            runs[setting] = PausedRun(setting, url, servers, begun, place)
            opened.callback(runs[setting].end)
            runs[setting].wait_for_steps(1)
            runs[setting].pause()
        steps = warm_up(list(runs.values()), options.warmup)
        for rotation in range(options.rotations):
            steps += options.slice_steps
            for at in np.roll(np.arange(len(runs)), rotation):
                slices[rotation, at, 1] = slice_of(list(runs.values())[at], steps)
        return slices, {setting: read_history(each.history)[-1] for setting, each in runs.items()}


def rates_of(slices: NDArray[np.float64]) -> NDArray[np.float64]:
    """[rounds, settings, 2] → env steps/s [settings]."""
    steps, seconds = slices.sum(axis=0).T
    rates: NDArray[np.float64] = steps / seconds
    return rates


def means_with_interval(ratios: NDArray[np.float64]) -> NDArray[np.float64]:
    """[repeats, settings] → their mean and its 95% interval by Student's t: [3, settings]."""
    mean = ratios.mean(axis=0)
    if len(ratios) < 2:
        return np.vstack([mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)])
    half = stats.t.ppf(0.975, len(ratios) - 1) * ratios.std(axis=0, ddof=1) / np.sqrt(len(ratios))
    return np.vstack([mean, mean - half, mean + half])


def main() -> int:
    """Start the runs, let them go on in turns, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="nethack-oni")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rotations", type=int, default=10, help="slices of each run in a repeat")
    parser.add_argument("--slice-steps", type=int, default=20_000, help="env steps of a slice")
    parser.add_argument("--warmup", type=float, default=15.0, help="seconds of env steps that are not counted")
    parser.add_argument("--latency", type=float, default=2.0, help="seconds that the slow server takes for an answer")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of onibi train")
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        server = SlowServer(options.serve)
        sys.stdout.write(f"{server.server_port}\n")
        sys.stdout.flush()
        server.serve_forever()

    measured, histories = [], []
    with tempfile.TemporaryDirectory() as folder:
        begun = begin(options, Path(folder))
        for repeat in range(options.repeats):
            slices, figures = measure(begun, Path(folder) / str(repeat), options)
            measured.append(slices)
            histories.append(figures)
            now = ", ".join(f"{setting} {rate:,.0f}" for setting, rate in zip(SETTINGS, rates_of(slices), strict=True))
            sys.stderr.write(f"repeat {repeat + 1} of {options.repeats}: {now} env steps/s\n")
    rates = np.array([rates_of(each) for each in measured])
    overall = means_with_interval(rates / rates[:, :1])
    each_repeat = f"{options.repeats} repeats of {options.rotations} x {options.slice_steps:,} env steps"
    title = f"{options.preset}: env steps/s, {each_repeat}: median [least, most]"
    table = Table(title=title, title_justify="left")
    for column in (
        "annotator",
        "env steps/s",
        "of the rate without",
        "mean (95%)",
        "answers",
        "p50 latency",
        "failed batches",
        "keys",
    ):
        table.add_column(column)
    for at, setting in enumerate(SETTINGS):
        last = {name: np.mean([row[setting].get(name, 0) for row in histories]) for name in FIGURES}
        ratio, low, high = overall[:, at]
        table.add_row(
            setting,
            spread(rates[:, at]),
            spread(rates[:, at] / rates[:, 0], 3),
            f"{ratio:.3f} ({low:.3f} to {high:.3f})",
            f"{last['annotation/replies']:.0f}",
            f"{last['annotation/latency_p50_seconds']:.2f} s",
            f"{last['annotation/failed_batches']:.0f}",
            f"{last['annotation/keys_askable']:.0f}",
        )
    Console(width=140).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
