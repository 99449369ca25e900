"""The folder of one run, and the folder of all runs around it.

runs/                     the root, a setting
  mlflow.db, mlartifacts/ embedded tracking (``platform/tracking.py``)
  NAME/
    run.json              who and when (RunRecord)
    run.lock              held while a process trains in this folder
    config.yaml           the resolved settings
    checkpoints/          ``platform/checkpoint.py``
    artifacts/            curves, tables, videos
    reward_tables/        which one took effect when (``platform/rewards/table_log.py``)
    history.jsonl         one line an interval (``platform/history.py``)
    evaluations.jsonl     one line an evaluation
"""

from __future__ import annotations

import dataclasses
import difflib
import fcntl
import json
import logging
import os
import re
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter, ValidationError

from onibi.platform.durable import write_durably
from onibi.platform.errors import ConfigError, RunInUseError

log = logging.getLogger(__name__)

RunStatus = Literal["running", "finished", "interrupted", "failed"]

LAST = "last"
"""Stands for the run that was used most recently wherever a run is named."""

_FOLDERS_TOLD = 8
_RESERVED = frozenset({LAST, "mlflow.db", "mlartifacts", "annotations", "experiments"})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_RECORD_FILE, _LOCK_FILE = "run.json", "run.lock"
_record_lock = threading.Lock()  # the tracker's thread and the run loop both update a record


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What ``run.json`` holds. Times are ISO 8601 in UTC.

    ``run_id`` also stands in the header of the run's replay ring and as a tag of its MLflow run.
    ``used_at`` is when training last began or ended here; ``last`` goes by it.
    ``results`` are the figures of the run's summary by name (env steps, updates, last evaluation).
    """

    run_id: str
    created_at: str
    used_at: str
    status: RunStatus = "running"
    serial: bool = False  # how it was last trained: in one process, or under Ray
    tracking_uri: str | None = None
    tracking_run_id: str | None = None
    results: dict[str, float] = field(default_factory=dict)


_RECORD = TypeAdapter(RunRecord)


@dataclass(frozen=True)
class RunFolder:
    """Names the files of one run. Holds no state: everything is on disk."""

    path: Path

    @property
    def name(self) -> str:
        """The run's name, unique in its root."""
        return self.path.name

    @property
    def root(self) -> Path:
        """The folder of all runs."""
        return self.path.parent

    @property
    def config(self) -> Path:
        """The resolved settings as YAML."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """The folder given to ``save_checkpoint`` and ``load_checkpoint``."""
        return self.path / "checkpoints"

    @property
    def artifacts(self) -> Path:
        """Curves, tables and videos."""
        return self.path / "artifacts"

    @property
    def history(self) -> Path:
        """Metrics, one line an interval."""
        return self.path / "history.jsonl"

    @property
    def evaluations(self) -> Path:
        """Evaluations, one line each."""
        return self.path / "evaluations.jsonl"

    def record(self) -> RunRecord:
        """Read ``run.json``.

        Raises: ConfigError where it is missing or damaged.
        """
        path = self.path / _RECORD_FILE
        names = {entry.name for entry in dataclasses.fields(RunRecord)}
        try:
            mapping = json.loads(path.read_text(encoding="utf-8"))
            # A newer Onibi may have written further fields: they are of no use here and no reason to refuse the run.
            known = {name: value for name, value in mapping.items() if name in names}
            return _RECORD.validate_json(json.dumps(known), strict=True)  # a strict dataclass takes no dict
        except (OSError, ValueError, TypeError, AttributeError) as error:
            first = error.errors()[0] if isinstance(error, ValidationError) else None
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else str(error)
            raise ConfigError(
                f"{path}: not readable as a run's record ({reason}). "
                "Name another run (`onibi runs` lists them), or start a new one."
            ) from error

    def update(self, **changes: Any) -> RunRecord:
        """Replace fields of the record (by name, see RunRecord) and its ``used_at``; atomic on disk."""
        with _record_lock:
            record = dataclasses.replace(self.record(), **{"used_at": _now(), **changes})
            _write_record(self.path, record)
        return record

    def write_config(self, mapping: Mapping[str, Any]) -> None:
        """Write the resolved settings (``config.to_mapping``) to ``config.yaml``, for their owner's eyes alone: a
        resumed run needs whatever was written into them, passwords in addresses too.
        """
        text = yaml.safe_dump(dict(mapping), sort_keys=False, allow_unicode=True)
        write_durably(self.config, text.encode())
        self.config.chmod(0o600)

    def read_config(self) -> dict[str, Any]:
        """The mapping in ``config.yaml``, as ``write_config`` took it.

        Raises: ConfigError where it is missing or is no mapping.
        """
        try:
            mapping = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"{self.config}: not readable ({error}). Without it the run cannot go on.") from error
        if not isinstance(mapping, dict):
            raise ConfigError(f"{self.config}: holds {type(mapping).__name__}, expected a mapping of settings.")
        return mapping

    @property
    def is_held(self) -> bool:
        """Whether a process trains in it now, on this machine."""
        try:
            descriptor = os.open(self.path / _LOCK_FILE, os.O_RDONLY)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    @property
    def was_held_here(self) -> bool:
        """Whether the process that trained in it last was one of this machine."""
        try:
            owner = (self.path / _LOCK_FILE).read_text(encoding="utf-8", errors="replace").split()
        except OSError:
            return False
        return owner[-1:] == [os.uname().nodename]

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process: one trainer per folder. The kernel frees it when the process dies.

        Raises: RunInUseError where another process holds it.
        """
        # Python opens with O_CLOEXEC, so a child that is exec'd (a Ray worker, a shell) does not inherit the lock.
        descriptor = os.open(self.path / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                owner = os.pread(descriptor, 100, 0).decode(errors="replace").strip() or "unknown"
                raise RunInUseError(
                    f"{self.path}: run {self.name!r} is in use by process {owner}; one process may train in it. "
                    "Wait for it, end it, or start a new run."
                ) from error
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()} on {os.uname().nodename}\n".encode(), 0)
            yield
        finally:
            os.close(descriptor)


def create_run(root: Path, name: str) -> RunFolder:
    """Make the folder of a new run: ``root/name``, or ``name-2``, ``name-3``… where that is taken.

    Raises: ConfigError for a name that is no plain file name, or a root that cannot be written.
    """
    check_run_name(name)
    root = root.expanduser().absolute()
    try:
        root.mkdir(parents=True, exist_ok=True)
        path = _claim(root, name)
        (path / "checkpoints").mkdir()
        (path / "artifacts").mkdir()
        now = _now()
        # Written last: a folder without a record is no run, so a crash here leaves nothing for `onibi runs` to trip on.
        _write_record(path, RunRecord(run_id=uuid.uuid4().hex, created_at=now, used_at=now))
    except OSError as error:
        raise ConfigError(f"{root}: no run can be made there ({error.strerror}). Choose another folder.") from error
    return RunFolder(path)


def check_run_name(name: str) -> None:
    """Raises: ConfigError for a name that no run can have."""
    if not _NAME.fullmatch(name) or name in _RESERVED:
        raise ConfigError(
            f"run name {name!r}: allowed are letters, digits, '.', '_' and '-', at most 100, the first a letter or "
            f"digit, and none of {', '.join(sorted(_RESERVED))}."
        )


def list_runs(root: Path) -> list[RunFolder]:
    """All runs in ``root`` whose record can be read, the one used longest ago first. Others are named in a warning, but
    for folders of other users that may not be looked into.

    Raises: PermissionError where ``root`` is such a folder.
    """
    root = root.expanduser().absolute()
    found: list[tuple[str, str, RunFolder]] = []
    for path in sorted(root.iterdir()) if root.is_dir() else []:
        if not _holds_record(path):
            continue
        folder = RunFolder(path)
        try:
            found.append((folder.record().used_at, folder.name, folder))
        except ConfigError as error:
            log.warning("left out: %s", error)
    return [folder for _, _, folder in sorted(found, key=lambda entry: entry[:2])]


def _holds_record(path: Path) -> bool:
    try:
        return (path / _RECORD_FILE).is_file()
    except PermissionError:
        return False


def killed_runs(root: Path) -> set[str]:
    """Ids of the runs in ``root`` whose process was killed, on this machine; records that cannot be read left out."""
    found = set()
    for path in root.iterdir() if root.is_dir() else []:
        if not _holds_record(path):
            continue
        folder = RunFolder(path)
        try:
            record = folder.record()
        except ConfigError:
            continue
        if record.status == "running" and folder.was_held_here and not folder.is_held:
            found.add(record.run_id)
    return found


def find_run(root: Path, name: str) -> RunFolder:
    """The run that a user names: by name, by path, or ``last`` for the one used most recently.

    Raises: ConfigError where there is none; it names the nearest run and all others.
    """
    runs = list_runs(root)
    if name == LAST:
        if not runs:
            raise ConfigError(f"{root}: {emptiness(root)}. Start one, for example `onibi train cartpole-dqn`.")
        return runs[-1]
    by_name = {run.name: run for run in runs}
    if name in by_name:
        return by_name[name]
    path = Path(name).expanduser().absolute()
    if _holds_record(path):
        return RunFolder(path)
    for private in (root.expanduser() / name, path):
        if private.is_dir() and not os.access(private, os.R_OK | os.X_OK, effective_ids=True):
            raise ConfigError(f"{private}: permission denied. Ask its owner to let you read it.")
    raise ConfigError(_no_such_run(root, name, path, list(by_name)))


def _no_such_run(root: Path, name: str, path: Path, known: list[str]) -> str:
    message = f"run {name!r}: not found in {root}"
    if path.is_dir():
        message += f", and {path} holds no {_RECORD_FILE}"
    nearest = difflib.get_close_matches(name, known, n=1)
    if nearest:
        message += f". Did you mean {nearest[0]!r}?"
    elif not known:
        message += f", which {emptiness(root)}."
    else:
        message += "."
    newest = known[::-1][:10]
    if newest:
        message += f" Runs there, newest first: {', '.join(newest)}{' …' if len(known) > len(newest) else ''}."
    return message + f" Allowed: {'a name of these, ' if known else ''}a path, or {LAST!r}."


def emptiness(root: Path) -> str:
    """Why a folder has no runs: none yet, or no such folder, and which others are there, like names first."""
    if root.is_dir():
        return "holds no run yet"
    root = root.expanduser().absolute()
    there = next(path for path in root.parents if path.is_dir())
    name = root.relative_to(there).parts[0]
    try:
        others = sorted(entry.name for entry in os.scandir(there) if entry.is_dir() and not entry.name.startswith("."))
    except OSError:  # nobody may list it
        others = []
    near = difflib.get_close_matches(name, others, n=3)
    shown = [*near, *(other for other in others if other not in near)][:_FOLDERS_TOLD]
    told = f"{', '.join(shown)}{' …' if len(others) > len(shown) else ''}" if shown else "no folder"
    return f"is not there (in {there}: {told})"


def _claim(root: Path, name: str) -> Path:
    attempt = 1
    while True:
        path = root / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            path.mkdir()  # the kernel decides between two processes that want the same name
            return path
        except FileExistsError:
            attempt += 1


def _write_record(path: Path, record: RunRecord) -> None:
    text = json.dumps(dataclasses.asdict(record), indent=2) + "\n"
    write_durably(path / _RECORD_FILE, text.encode())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
