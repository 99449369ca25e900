"""Virtual environments of the peers, made when first needed and kept: none of them can live in ours."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
_ONIBI = ("pydantic>=2", "pyyaml", "pyarrow<26")  # what its views and networks are read with
_TORCH = ("-c", str(ROOT / "constraints.txt"), "torch==2.13.0", "numpy==2.4.6")


@dataclass(frozen=True)
class Peer:
    """A package to compare with: its worker's module and what pip is told."""

    title: str
    worker: str
    requirements: tuple[str, ...]
    alone: tuple[str, ...] = ()
    """Packages that are taken without what they ask for: another Python, and their dependencies."""


PEERS = {
    "cpprb": Peer("cpprb 11.0.0", "cpprb_worker", ("cpprb==11.0.0", "numpy==2.4.6", "setuptools")),
    "torchrl": Peer("TorchRL 0.14.1", "torchrl_worker", ("torchrl==0.14.1", "tensordict==0.14.3", *_TORCH)),
    "sb3": Peer("Stable-Baselines3 2.9.2", "sb3_worker", ("stable-baselines3==2.9.2", *_TORCH)),
    "reverb": Peer(
        "Reverb 0.14.0", "reverb_worker", ("dm-reverb==0.14.0", "tensorflow-cpu==2.14.1", "numpy<2", "setuptools<81")
    ),
}

LEARNERS = {
    "sample_factory": Peer(
        "Sample Factory 2.1.1",
        "sample_factory_loop",
        ("sample-factory==2.1.1", "torch==2.13.0", "numpy==1.26.4", "setuptools<81", *_ONIBI, "pybind11"),
        alone=("nle==1.3.0",),  # asks for a later Gymnasium than Sample Factory has, and runs on this one
    ),
    "rllib": Peer("RLlib 2.60.0", "rllib_loop", ("ray[rllib]==2.60.0", "torch==2.13.0", "numpy==2.4.6")),
    "cleanrl": Peer(
        "CleanRL 1.2.0",
        "cleanrl_run",
        (
            *(
                "gymnasium==0.28.1",
                "stable-baselines3==2.0.0",
                "torch==2.13.0",
                "numpy==1.26.4",
                "tensorboard",
                "minatar",
            ),
            *("setuptools<81", *_ONIBI),
        ),
        alone=("cleanrl==1.2.0",),
    ),
}
"""Whole training loops, for learner_peers.py, time_to_return.py and minatar_returns.py."""


class MissingPeerError(Exception):
    """A peer cannot be installed here; the message says why."""


def python_of(name: str, folder: Path) -> Path:
    """The interpreter of a peer's environment, made now where it is not there yet.

    Raises: MissingPeerError.
    """
    peer = {**PEERS, **LEARNERS}[name]
    digest = hashlib.sha256(" ".join((sys.version, *peer.requirements, *peer.alone)).encode()).hexdigest()[:8]
    home = folder / f"{name}-{digest}"
    python = home / "bin" / "python"
    if (home / "complete").exists():
        return python
    print(f"installing {peer.title} into {home} …", file=sys.stderr, flush=True)
    shutil.rmtree(home, ignore_errors=True)
    install = [python, "-m", "pip", "install", "--quiet"]
    commands = [[sys.executable, "-m", "venv", home], [*install, *peer.requirements]]
    if peer.alone:
        commands.append([*install, "--no-deps", "--ignore-requires-python", *peer.alone])
    try:
        for command in commands:
            subprocess.run(command, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        shutil.rmtree(home, ignore_errors=True)
        lines = [line for line in error.stderr.splitlines() if line.startswith("ERROR")] or error.stderr.splitlines()
        raise MissingPeerError(lines[0] if lines else f"pip ended with {error.returncode}") from error
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)
        raise
    (home / "complete").touch()
    return python
