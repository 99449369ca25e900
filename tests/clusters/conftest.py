"""Small whole runs: the caption corridor, and where their rings lie."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from onibi.clusters import resume, train


@contextmanager
def variables_of_ray_kept():
    """Ray sets variables of its own when it starts in this process; the next test's cluster would obey them."""
    before = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith("RAY_")]:
            del os.environ[name]
        os.environ.update(before)


@pytest.fixture(autouse=True)
def ray_leaves_no_variables():
    with variables_of_ray_kept():
        yield


@pytest.fixture(scope="module")
def small_ray():
    """Ray in this process, 2 CPUs and no GPU, for all tests of a module. Its actors can import what is in tests/actors.

    One for all modules, tried, starts processes more and more slowly.
    """
    import ray

    with variables_of_ray_kept(), pytest.MonkeyPatch.context() as changed:
        changed.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "actors"))
        ray.init(address="local", num_cpus=2, num_gpus=0, include_dashboard=False, object_store_memory=80 * 2**20)
        yield
        ray.shutdown()


def corridor(folder: Path, **changes) -> dict:
    """Settings of a small run as a mapping; ``changes`` are dotted keys with __ for dots."""
    settings = {
        "seed": 7,
        "environment": {
            "id": "onibi.actors.environments.corridor:make",
            "kwargs": {"rooms": 3, "room_length": 3},
            "max_episode_steps": 30,
        },
        "captioner": {"kind": "info"},
        "annotator": {"kind": "lexicon", "lexicon": "all_ones"},
        "rewards": {
            "extrinsic": {"coefficient": 1.0, "episode_low": 0.0, "episode_high": 1.0},
            "intrinsic": {"kind": "retrieval", "coefficient": 0.1, "episode_high": 3.0},
        },
        "actors": {"count": 2, "rollout": {"envs_per_actor": 2, "fragment_steps": 8, "fragment_steps_max": 8}},
        "replay": {
            "capacity_rows": 2_000,
            "folder": str(folder),
            "limiter": {"samples_per_insert": 4, "minimum_rows": 100},
        },
        "learner": {"kind": "dqn", "batch_size": 16, "support": {"low": -0.5, "high": 1.5}},
        "budget": {"max_env_steps": 600, "max_seconds": None},
        "evaluation": {"period_env_steps": None, "episodes": 4, "envs": 2},
        "checkpoint": {"period_seconds": 1_000.0},
        "tracking": {"enabled": False},
    }
    for path, value in changes.items():
        *sections, key = path.split("__")
        section = settings
        for name in sections:
            section = section.setdefault(name, {})
        section[key] = value
    return settings


class Workshop:
    """Runs and rings of one test, each in a folder of its own; nothing of it lies in /dev/shm."""

    def __init__(self, folder: Path) -> None:
        self.runs, self.rings = folder / "runs", folder / "rings"
        self.rings.mkdir()
        self._started: list[subprocess.Popen] = []

    def settings(self, **changes) -> dict:
        return corridor(self.rings, **changes)

    def train(self, name: str = "run", *, serial: bool = True, overrides=(), **changes):
        return train(
            self.settings(**changes),
            overrides=overrides,
            serial=serial,
            name=name,
            runs_folder=self.runs,
            display=False,
        )

    def resume(self, name: str = "run", *, overrides=(), serial: bool | None = None):
        return resume(name, runs_folder=self.runs, overrides=overrides, display=False, serial=serial)

    def start(self, name: str = "run", *, serial: bool = True, command: str = "train", overrides=(), **changes):
        """The command line in a session of its own; what goes on at the test's end is killed."""
        given = [part for change in overrides for part in ("--set", change)]
        if command == "train":
            config = self.runs.parent / f"{name}.yaml"
            config.write_text(yaml.safe_dump(self.settings(**changes)), encoding="utf-8")
            what = [str(config), "--name", name, *(["--serial"] if serial else [])]
        else:
            what = [name]
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("ONIBI_", "RAY_", "MLFLOW_"))}
        with (self.runs.parent / f"{name}-{command}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "onibi", command, *what, "--runs-folder", str(self.runs), *given],
                cwd=self.runs.parent,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**kept, "COLUMNS": "200", "NO_COLOR": "1", "RAY_USAGE_STATS_ENABLED": "0"},
            )
        self._started.append(process)
        return process

    def kill_what_goes_on(self) -> None:
        for process in self._started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def ray_pids(self, process, name: bytes) -> list[int]:
        """Processes of a started run whose actor Ray calls so."""
        return self.pids(process, b"ray::" + name)

    def pids(self, process, text: bytes) -> list[int]:
        """Processes of a started run with this in their command lines."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                is_one = entry.name.isdigit() and text in (entry / "cmdline").read_bytes()
                if is_one and os.getsid(int(entry.name)) == process.pid:
                    found.append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                continue
        return found

    def log_of(self, name: str = "run", command: str = "train") -> str:
        return (self.runs.parent / f"{name}-{command}.log").read_text(encoding="utf-8", errors="replace")

    def history(self, name: str = "run") -> list[dict]:
        path = self.runs / name / "history.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def evaluations(self, name: str = "run") -> list[dict]:
        lines = (self.runs / name / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def checkpoints(self, name: str = "run") -> list[Path]:
        folder = self.runs / name / "checkpoints"
        return sorted(path for path in folder.glob("[0-9]*") if path.is_dir())

    def record(self, name: str = "run") -> dict:
        return json.loads((self.runs / name / "run.json").read_text(encoding="utf-8"))

    def wait_for(self, what, seconds: float = 60.0, process=None):
        """The first true answer of ``what``; fails when the process ends before or the time is up."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = what()
            if found:
                return found
            if process is not None and process.poll() is not None:
                raise AssertionError(f"the process ended with code {process.returncode}")
            time.sleep(0.05)
        raise AssertionError("waited in vain")


@pytest.fixture(scope="session")
def corridor_settings():
    return corridor


@pytest.fixture
def workshop(tmp_path):
    made = Workshop(tmp_path)
    yield made
    made.kill_what_goes_on()
