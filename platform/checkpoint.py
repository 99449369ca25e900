"""Checkpoints: folders that are whole or absent, with a manifest of sizes and SHA-256 sums.

    checkpoints/
      000000012000-000007/        the step it was taken at, and a serial number that counts the saves
        manifest.json             files, sizes, sums; its own sum
        state.json                counters, random states: plain JSON
        tensors-GROUP.safetensors no pickle anywhere
        tables-NAME.arrow         Arrow IPC files
      best.json                   the step that evaluation named best
      .000000012000-*.part        being written or deleted by a living process, or left by a dead one

``last`` is the checkpoint saved last, which after a resume from an older one is not the one with the largest step. The
serial number in the name also lets a step be saved again without an instant in which neither checkpoint is there.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
import pyarrow as pa
import safetensors.numpy
from numpy.typing import NDArray

from onibi.platform.durable import sync_folder, write_durably
from onibi.platform.errors import CheckpointError

log = logging.getLogger(__name__)

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Which: TypeAlias = Literal["last", "best"] | int

_FORMAT = 1
_MANIFEST, _STATE, _BEST = "manifest.json", "state.json", "best.json"
_TENSORS, _TABLES = ("tensors-", ".safetensors"), ("tables-", ".arrow")
_NAME = re.compile(r"(\d+)-(\d+)")
_DTYPES = frozenset(
    {"bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"}
)
_CONVERT = f"Allowed are {', '.join(sorted(_DTYPES))}: convert it first."


@runtime_checkable
class _TorchTensor(Protocol):
    """What is asked of a torch tensor here, so that torch itself is not needed."""

    def detach(self) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class CheckpointParts:
    """What goes into a checkpoint.

    ``tensors``: group → name → NumPy array or torch tensor (any device; copied at once).
    ``tables``: name → Arrow table. ``state``: JSON values by name; NumPy numbers are taken as such, tuples as lists.
    """

    tensors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tables: Mapping[str, pa.Table] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What came out of one. ``tensors`` are writable NumPy arrays: ``torch.from_numpy`` takes them as they are."""

    step: int
    path: Path
    created_at: str
    tensors: dict[str, dict[str, NDArray[Any]]]
    tables: dict[str, pa.Table]
    state: dict[str, Any]


@dataclass(frozen=True)
class CheckpointEntry:
    """One line of ``list_checkpoints``. ``created_at`` is None where the manifest is damaged."""

    step: int
    serial: int
    path: Path
    created_at: str | None


class _Damaged(Exception):
    """A checkpoint does not hold what its manifest says."""


def save_checkpoint(
    folder: Path, step: int, parts: CheckpointParts, keep_last: int, keep: Collection[int] = ()
) -> Path:
    """Save ``parts`` as the checkpoint of ``step`` (replacing one of the same step), then delete old ones.

    Args:
        folder: a run's ``checkpoints``.
        step: not negative; what the run counts its checkpoints by.
        parts: what goes in.
        keep_last: how many of the checkpoints saved last stay, ≥ 1.
        keep: steps that stay besides them. The best one stays in any case.
    Returns: the checkpoint's folder, complete and fsynced.
    Raises: CheckpointError where it cannot be written (full disk, no permission) or a part cannot be stored; the
        earlier checkpoints are then untouched and nothing half is left.
    """
    if step < 0 or keep_last < 1:
        raise CheckpointError(f"{folder}: step {step}, keep_last {keep_last}; allowed are step ≥ 0 and keep_last ≥ 1.")
    serial = 1 + max((entry.serial for entry in list_checkpoints(folder)), default=0)
    final = folder / f"{step:012d}-{serial:06d}"
    temporary = folder / f".{final.name}.part"
    written = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)  # a run has one writer, so whatever is unfinished here was left by a dead one
        temporary.mkdir()
        files: dict[str, Json] = {}
        for name, content in _encode(parts, final):
            written += len(content)
            _write_synced(temporary / name, content)
            files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        _write_synced(temporary / _MANIFEST, _manifest(step, files))
        sync_folder(temporary)
        temporary.rename(final)
        sync_folder(folder)
    except OSError as error:
        free = shutil.disk_usage(folder).free if folder.exists() else 0
        raise CheckpointError(
            f"{final}: checkpoint not written ({error.strerror or error}; at least {_mib(written)} needed, "
            f"{_mib(free)} free). The earlier checkpoints are untouched. Free some space, or keep fewer of them."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    try:
        _prune(folder, keep_last, {step, *keep})
    except OSError as error:
        log.warning("%s: older checkpoints could not be removed (%s)", folder, error)
    return final


def load_checkpoint(folder: Path, which: Which = "last") -> Checkpoint:
    """Read a checkpoint and check every byte of it against its manifest.

    ``last`` and ``best`` skip what is damaged, with a warning, and take the one saved before; ``best`` without a mark
    is ``last``. A step is that one or none. A run may go on saving, and deleting what is old, meanwhile.

    Raises: CheckpointError where no whole checkpoint is there.
    """
    entries = list_checkpoints(folder)[::-1]
    if isinstance(which, int):
        wanted = [entry for entry in entries if entry.step == which]
    else:
        best = best_step(folder) if which == "best" else None
        wanted = [*(e for e in entries if e.step == best), *(e for e in entries if e.step != best)]
    faults = []
    for entry in wanted:
        try:
            return _read(entry.path)
        except _Damaged as fault:
            if not os.path.lexists(entry.path):  # its writer deleted it while it was read, so there is a newer one
                return load_checkpoint(folder, which)
            faults.append(f"{entry.path}: {fault}")
            if not isinstance(which, int):
                log.warning("%s: damaged checkpoint skipped (%s); the one saved before is used", entry.path, fault)
    there = ", ".join(str(entry.step) for entry in entries) or "none"
    found = " ".join(f"{fault}." for fault in faults)
    if not entries:
        raise CheckpointError(
            f"{folder}: no checkpoint yet. A run that goes on saves one every checkpoint.period_seconds; one that "
            "ended without any starts anew."
        )
    raise CheckpointError(
        f"{folder}: no whole checkpoint for {which!r}. {found}{' ' if found else ''}"
        f"Checkpoints there, by step: {there}. Name another step, or start a new run."
    )


def list_checkpoints(folder: Path) -> list[CheckpointEntry]:
    """All checkpoints in the order in which they were saved, damaged ones too: contents are not checked here."""
    entries = []
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if match:
            try:
                created_at = _read_manifest(path)["created_at"]
            except _Damaged:
                created_at = None
            entries.append(CheckpointEntry(int(match[1]), int(match[2]), path, created_at))
    return sorted(entries, key=lambda entry: entry.serial)


def mark_best(folder: Path, step: int) -> None:
    """Name the checkpoint of ``step`` best: it is kept, and ``load_checkpoint(folder, "best")`` finds it.

    Raises: CheckpointError where there is no such checkpoint, or the mark cannot be written.
    """
    if all(entry.step != step for entry in list_checkpoints(folder)):
        raise CheckpointError(f"{folder}: no checkpoint of step {step} to be marked best. Save it first.")
    try:
        write_durably(folder / _BEST, (json.dumps({"step": step}) + "\n").encode())
    except OSError as error:
        raise CheckpointError(f"{folder / _BEST}: not written ({error.strerror}). Free some space.") from error


def best_step(folder: Path) -> int | None:
    """The step marked best, or None where there is no readable mark."""
    try:
        return int(json.loads((folder / _BEST).read_text(encoding="utf-8"))["step"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s: not readable (%s); no checkpoint counts as best before the next evaluation", folder, error)
        return None


def _encode(parts: CheckpointParts, place: Path) -> list[tuple[str, bytes]]:
    """(file name, content) of every part. All in memory: tensors and tables here are small beside the replay ring."""
    contents = []
    for group, tensors in parts.tensors.items():
        arrays = {name: _array(value, f"{place}: tensors {group}.{name}") for name, value in tensors.items()}
        contents.append((_file_name(_TENSORS, group, place), safetensors.numpy.save(arrays)))
    for name, table in parts.tables.items():
        buffer = io.BytesIO()
        with pa.ipc.new_file(buffer, table.schema) as writer:
            writer.write_table(table)
        contents.append((_file_name(_TABLES, name, place), buffer.getvalue()))
    state = _plain(parts.state, f"{place}: state")
    contents.append((_STATE, json.dumps(state, indent=1).encode()))
    return contents


def _array(value: Any, place: str) -> NDArray[Any]:
    try:
        found = value.detach().cpu().numpy() if isinstance(value, _TorchTensor) else np.asarray(value)
        # Torch may step through memory with strides and NumPy files may be big-endian; safetensors writes plain bytes.
        array = np.array(found, dtype=found.dtype.newbyteorder("="), order="C")
    except (TypeError, ValueError) as error:  # torch refuses bfloat16
        raise CheckpointError(f"{place}: {error}. {_CONVERT}") from error
    if array.dtype.name not in _DTYPES:
        raise CheckpointError(f"{place}: dtype {array.dtype} cannot be stored. {_CONVERT}")
    return array


def _plain(value: Any, place: str) -> Json:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value)
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, list | tuple):
        return [_plain(entry, f"{place}[{index}]") for index, entry in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):  # json would turn 1 into "1" without a word
                raise CheckpointError(f"{place}: key {key!r} is {type(key).__name__}. Allowed are strings.")
        return {key: _plain(entry, f"{place}.{key}") for key, entry in value.items()}
    raise CheckpointError(
        f"{place}: {type(value).__name__} cannot be stored. Allowed are numbers, strings, None, lists and mappings; "
        "arrays go to tensors."
    )


def _file_name(affixes: tuple[str, str], name: str, place: Path) -> str:
    if not name or "/" in name or "\0" in name:
        raise CheckpointError(f"{place}: part name {name!r} is no file name. Use letters, digits, '_' and '-'.")
    return name.join(affixes)


def _manifest(step: int, files: dict[str, Json]) -> bytes:
    content: dict[str, Json] = {
        "format": _FORMAT,
        "step": step,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": files,
    }
    return json.dumps({**content, "sha256": _sum_of(content)}, indent=1).encode()


def _sum_of(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / _MANIFEST).read_bytes())
        found = manifest.pop("sha256")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise _Damaged(f"{_MANIFEST} is not readable: {error}") from error
    if found != _sum_of(manifest):
        raise _Damaged(f"{_MANIFEST} does not match its own sum")
    if manifest["format"] != _FORMAT:
        raise _Damaged(f"format {manifest['format']}, this Onibi reads {_FORMAT}: use the version that wrote it")
    return dict(manifest)


def _read(path: Path) -> Checkpoint:
    manifest = _read_manifest(path)
    tensors, tables, state = {}, {}, None
    for name, expected in manifest["files"].items():
        try:
            content = (path / name).read_bytes()
        except OSError as error:
            raise _Damaged(f"{name}: {error.strerror}") from error
        if len(content) != expected["bytes"]:
            raise _Damaged(f"{name}: {len(content)} bytes, {expected['bytes']} in the manifest")
        if hashlib.sha256(content).hexdigest() != expected["sha256"]:
            raise _Damaged(f"{name}: its SHA-256 sum is not that of the manifest")
        if name == _STATE:
            state = json.loads(content)
        elif name.startswith(_TENSORS[0]):
            loaded = safetensors.numpy.load(content)
            tensors[_part_name(_TENSORS, name)] = {key: np.array(array) for key, array in loaded.items()}
        else:
            tables[_part_name(_TABLES, name)] = pa.ipc.open_file(pa.BufferReader(content)).read_all()
    return Checkpoint(
        step=manifest["step"],
        path=path,
        created_at=manifest["created_at"],
        tensors=tensors,
        tables=tables,
        state=state or {},
    )


def _part_name(affixes: tuple[str, str], name: str) -> str:
    return name.removeprefix(affixes[0]).removesuffix(affixes[1])


def _prune(folder: Path, keep_last: int, keep: set[int]) -> None:
    entries = list_checkpoints(folder)
    newest = list({entry.step: entry for entry in entries}.values())  # of those that share a step, the one saved last
    newest.sort(key=lambda entry: entry.serial)
    whole = [entry.step for entry in newest if entry.created_at is not None]
    kept = {*keep, *whole[-keep_last:], best_step(folder)}
    for entry in entries:
        if entry.step not in kept or entry not in newest:
            # Renamed first: a reader finds it whole or not at all.
            doomed = entry.path.with_name(f".{entry.path.name}.part")
            entry.path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def _remove_leftovers(folder: Path) -> None:
    for path in folder.glob(".*.part"):
        if path.is_dir():
            log.warning("%s: left by a process that was killed; removed", path)
            shutil.rmtree(path, ignore_errors=True)


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
