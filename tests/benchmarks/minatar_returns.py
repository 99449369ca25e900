"""MinAtar by Onibi's dqn and by CleanRL's: the same network, frames and replay ratio, in one run, one table.

    python tests/benchmarks/minatar_returns.py [--games breakout] [--seeds 1,2,3] [--systems onibi,cleanrl] [--jobs 2]
    python tests/benchmarks/minatar_returns.py --quick        # that it runs: 20,000 frames, one seed

Onibi runs its presets `minatar-…-dqn` in one process (double, three-step returns) and, as *plain*, the same without
those two, which is CleanRL's algorithm; CleanRL its own `dqn.py`, given the preset's numbers (learning rate, discount,
batches of 32 every four frames, target copies, exploration, ring) and Onibi's network, and left as it is in all else:
one environment instead of eight. Each is judged by its last weights, greedy, over --episodes fresh games with sticky
actions. A million frames take ten to thirty minutes of a core. Finished runs are kept in --cells: of Onibi by what its
settings say, as its code changes more often than what it learns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from peers.child_environment import child_environment
from peers.environments import MissingPeerError, python_of
from peers.finished_runs import add_options, finished_runs, version_of
from peers.machine import describe

from onibi.clusters.experiments.declaration import TrainedTrial
from onibi.clusters.experiments.schedule import trial_hash
from onibi.clusters.sessions import read_run_settings
from onibi.platform.config import to_mapping

GAMES = ("breakout", "space_invaders")
SYSTEMS = {"onibi": "Onibi dqn, the preset", "plain": "Onibi dqn, plain", "cleanrl": "CleanRL dqn"}
_PLAINER = ("learner.double=false", "learner.n_steps=1")
_HERE = Path(__file__).resolve().parent


def preset_of(game: str) -> str:
    """Its preset."""
    return f"minatar-{game.replace('_', '-')}-dqn"


def spec_of(system: str, game: str, seed: int, frames: int, episodes: int) -> dict[str, Any]:
    """What is ordered, and what it is known by."""
    common = {"system": system, "game": game, "seed": seed, "frames": frames, "episodes": episodes}
    overrides = [f"budget.max_env_steps={frames}", *_QUIET]
    if system != "cleanrl":
        overrides += _PLAINER if system == "plain" else ()
        told = trial_hash(TrainedTrial(preset=preset_of(game), overrides=tuple(overrides)))
        return {**common, "preset": preset_of(game), "overrides": [*overrides, f"seed={seed}"], "version": told}
    settings = read_run_settings(preset_of(game), overrides)
    learner: Any = settings.learner
    assert learner.batch_size == 32
    assert settings.replay.limiter.samples_per_insert == 8
    return {
        **common,
        "version": version_of(system),
        "environment": settings.environment.kwargs,
        "max_episode_steps": settings.environment.max_episode_steps,
        "capacity_rows": settings.replay.capacity_rows,
        "minimum_rows": settings.replay.limiter.minimum_rows,
        "learning_rate": learner.learning_rate,
        "discount": learner.discount,
        "target_updates": learner.target.period_updates,
        "exploring_steps": learner.exploration.anneal_updates * 4,
        "network": to_mapping(learner.network),
    }


_QUIET = (
    *("budget.max_seconds=null", "evaluation.period_env_steps=null"),
    *("tracking.enabled=false", "replay.log.enabled=false"),
)


def run(spec: dict[str, Any], peers_folder: Path) -> dict[str, Any]:
    """Mean return, seconds of training; ``error`` where it failed."""
    is_peer = spec["system"] == "cleanrl"
    module = "cleanrl_run" if is_peer else "minatar_onibi"
    try:
        python = python_of("cleanrl", peers_folder) if is_peer else Path(sys.executable)
    except MissingPeerError as error:
        return {"error": f"cannot be installed here: {error}"}
    with tempfile.TemporaryDirectory(prefix="onibi-benchmark-") as folder, child_environment(python) as environment:
        told, answer, log = (Path(folder) / name for name in ("order.json", "answer.json", "log"))
        told.write_text(json.dumps(spec))
        command = [python, "-m", f"peers.{module}", str(told), str(answer)]
        with log.open("wb") as file:
            code = subprocess.run(command, cwd=_HERE, env=environment, stdout=file, stderr=file, check=False).returncode
        if code or not answer.exists():
            words = log.read_text(errors="replace").strip().splitlines()
            return {"error": f"ended with {code}: {words[-1] if words else 'without a word'}"}
        found: dict[str, Any] = json.loads(answer.read_text())
        return found


def table(results: list[dict[str, Any]], games: list[str]) -> list[str]:
    """In Markdown: the mean over seeds of each, and whether Onibi's is not below."""
    lines = ["| game | | return, mean over seeds | each seed | frames/s |", "|---|---|---|---|---|"]
    verdicts = []
    for game in games:
        means, failed = {}, set()
        for system, title in SYSTEMS.items():
            runs = [each for each in results if (each["game"], each["system"]) == (game, system)]
            sound = [each for each in runs if "error" not in each]
            if not runs:
                continue
            if not sound:
                lines.append(f"| {game} | {title} | missing: {runs[0]['error']} | | |")
                continue
            means[system] = statistics.mean(each["return"] for each in sound)
            if len(sound) < len(runs):
                failed.add(system)
            each_seed = ", ".join(f"{each['return']:.1f}" if "error" not in each else "failed" for each in runs)
            rate = statistics.median(each["frames"] / each["seconds"] for each in sound)
            lines.append(f"| {game} | {title} | {means[system]:.1f} | {each_seed} | {rate:,.0f} |")
        for system in ("onibi", "plain"):
            if system in means and "cleanrl" in means:
                verdict = "met" if means[system] >= means["cleanrl"] else "MISSED"
                if failed & {system, "cleanrl"}:
                    verdict = "not judged, as not every seed ran"
                verdicts.append(f"{game}: the mean of {SYSTEMS[system]}, is not below CleanRL's: {verdict}.")
    return [*lines, "", *verdicts]


def main() -> int:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", default=",".join(GAMES), help="which, by comma")
    parser.add_argument("--seeds", default="1,2,3", help="by comma")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="by comma")
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--episodes", type=int, default=20, help="to judge by")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, a core each")
    parser.add_argument("--quick", action="store_true", help="20,000 frames of one game, one seed: that it runs")
    add_options(parser, "minatar_returns.json")
    arguments = parser.parse_args()
    games, seeds = arguments.games.split(","), [int(seed) for seed in arguments.seeds.split(",")]
    if unknown := set(games) - set(GAMES):
        parser.error(f"--games: no {sorted(unknown)}; there are {', '.join(GAMES)}")
    systems = arguments.systems.split(",")
    if unknown := set(systems) - set(SYSTEMS):
        parser.error(f"--systems: no {sorted(unknown)}; there are {', '.join(SYSTEMS)}")
    if arguments.quick:
        games, seeds, arguments.frames = games[:1], seeds[:1], 20_000
    finished = finished_runs(arguments)

    def take(system: str, game: str, seed: int) -> dict[str, Any]:
        spec = spec_of(system, game, seed, arguments.frames, arguments.episodes)
        found = finished.take(spec, partial(run, spec, arguments.peers_folder))
        said = found.get("error") or f"return {found['return']:.2f}, {found['seconds']:,.0f} s"
        print(f"{game}, seed {seed}, {SYSTEMS[system]}: {said}", flush=True)
        return found

    order = [(system, game, seed) for seed in seeds for game in games for system in systems]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = list(pool.map(lambda each: take(*each), order))
    print(f"\n`{' '.join(['python', *sys.argv])}` at {version_of('onibi')}\n\n{describe()}.\n")
    print("\n".join(table(results, games)))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
