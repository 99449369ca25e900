"""Does an annotator hold training up? Env steps/s with it off, on with 2 s for each answer, and with its server dead.

    python tests/benchmarks/annotator_throughput.py                       # nethack-oni, 5 rounds
    python tests/benchmarks/annotator_throughput.py --rounds 1 --seconds 5 --preset corridor-oni

Each round runs the whole loop (actors, replay, learner; display and tracking off) once in every setting, one after
another, each round beginning with another one, so all see the same neighbours on the machine. The rate is that after
`--warmup` seconds of training: before, every process loads its packages. The annotator is
`openai`; its server is a real HTTP server on loopback in a process of its own, and `dead` is one that was closed: its
port refuses. `off` counts captions and asks nobody. Ratios are to the `off` run of the same round: median and range.
"""

from __future__ import annotations

import argparse
import http.server
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

SETTINGS = ("off", "slow", "dead")
_LEAST_SECONDS = 5.0  # of looks after the warm-up: shorter ones show single fragments, no rate
FREE = ("replay.limiter.samples_per_insert=0.25", "replay.log.enabled=false", "tracking.enabled=false")


class SlowServer(http.server.ThreadingHTTPServer):
    """Finds every caption helpful, after a while."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, latency_seconds: float) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                time.sleep(latency_seconds)
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
def served(latency_seconds: float) -> Iterator[str]:
    """Address of a server in a process of its own."""
    command = [sys.executable, __file__, "--serve", str(latency_seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    finally:
        process.kill()
        process.wait()


@contextmanager
def address(setting: str, latency_seconds: float) -> Iterator[str]:
    """Where the annotator's server is, or was."""
    with served(latency_seconds) as url:
        if setting == "slow":
            yield url
    if setting != "slow":
        yield url


def run(setting: str, url: str, options: argparse.Namespace, name: str, runs: Path) -> Any:
    """One run; its result."""
    from onibi.clusters import train

    annotator = {"kind": "openai", "base_url": url, "model": "slow", "answer": "text", "server": {"concurrency": 8}}
    return train(
        options.preset,
        overrides=[
            *FREE,
            f"annotator={json.dumps(annotator)}",
            f"annotation.workers={0 if setting == 'off' else 1}",
            "annotation.table=none",
            f"budget={{max_env_steps: null, max_seconds: {options.seconds}}}",
            "evaluation.period_env_steps=null",
            "evaluation.episodes=1",
            "evaluation.envs=1",
            *options.set,
        ],
        name=name,
        runs_folder=runs,
        display=False,
    )


def steady_rate(history: Path, warmup_seconds: float) -> float:
    """Env steps/s between the first look after the warm-up and the last one."""
    from onibi.platform.history import read_history

    looks = [(row["time/seconds"], row["actors/env_steps"]) for row in read_history(history) if "time/seconds" in row]
    last = looks[-1]
    first = next((look for look in looks if look[0] >= warmup_seconds), last)
    if last[0] - first[0] < _LEAST_SECONDS:
        raise SystemExit(
            f"{history}: looks from {first[0]:.1f} to {last[0]:.1f} s are under {_LEAST_SECONDS:g} s apart; raise "
            "--seconds or lower --warmup"
        )
    return float((last[1] - first[1]) / (last[0] - first[0]))


def main() -> int:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="nethack-oni")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=40.0, help="of the whole loop in each run")
    parser.add_argument("--warmup", type=float, default=15.0, help="seconds of them that are not counted")
    parser.add_argument("--latency", type=float, default=2.0, help="seconds that the slow server takes for an answer")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of onibi train")
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        server = SlowServer(options.serve)
        sys.stdout.write(f"{server.server_port}\n")
        sys.stdout.flush()
        server.serve_forever()

    from onibi.platform.threads import hold_threads

    hold_threads()
    rates: dict[str, list[float]] = {setting: [] for setting in SETTINGS}
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as runs:
        for number in range(options.rounds):
            turn = number % len(SETTINGS)
            for setting in SETTINGS[turn:] + SETTINGS[:turn]:
                with address(setting, options.latency) as url:
                    result = run(setting, url, options, f"{setting}-{number}", Path(runs))
                rates[setting].append(steady_rate(result.folder / "history.jsonl", options.warmup))
                figures[setting] = result.figures
    title = f"{options.preset}: env steps/s, {options.rounds} rounds of {options.seconds:g} s: median (least to most)"
    table = Table(title=title, title_justify="left")
    for column in (
        "annotator",
        "env steps/s",
        "of the rate without",
        "answers",
        "p50 latency",
        "failed batches",
        "keys",
    ):
        table.add_column(column)
    for setting in SETTINGS:
        last = figures[setting]
        ratios = [rate / bare for rate, bare in zip(rates[setting], rates["off"], strict=True)]
        table.add_row(
            setting,
            spread(rates[setting], ",.0f"),
            spread(ratios, ".3f"),
            f"{last.get('annotation/replies', 0):.0f}",
            f"{last.get('annotation/latency_p50_seconds', 0):.2f} s",
            f"{last.get('annotation/failed_batches', 0):.0f}",
            f"{last.get('annotation/keys_askable', 0):.0f}",
        )
    Console(width=140).print(table)
    return 0


def spread(values: list[float], form: str) -> str:
    """Median and range."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


if __name__ == "__main__":
    sys.exit(main())
