"""A drawn batch in a file, for looking at what could not be learned from: safetensors, no pickle.

safetensors.numpy.load_file(path)["observation.observation"]
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from onibi.platform.durable import write_durably
from onibi.platform.replay.samplers.draws import Batch

log = logging.getLogger(__name__)

MIXED_REWARD = "mixed_reward"
"""Name of the reward that was learned from; ``reward`` is the environment's own."""


def save_batch(folder: Path | None, batch: Batch, reward: NDArray[np.float32], updates: int) -> Path:
    """Write a batch with its mixed reward; arrays of nested mappings are named with dots.

    Args:
        folder: made where it is missing; where it cannot be written (a learner on another node), or is None, the
            system's folder for temporary files takes its place.
        batch: as drawn.
        reward: the mixed reward.
        updates: made so far; part of the file's name.
    Returns: the file. Raises: OSError where not even a temporary file can be written.
    """
    arrays = {**dict(_named(batch)), MIXED_REWARD: reward}
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    name = f"not-finite-{updates:09d}.safetensors"
    content = safetensors.numpy.save(whole)
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_durably(folder / name, content)
        except OSError as error:
            log.warning("%s cannot hold the batch: %s", folder, error)
        else:
            return folder / name
    path = Path(tempfile.mkdtemp(prefix="onibi-")) / name
    write_durably(path, content)
    return path


def _named(batch: Batch) -> list[tuple[str, NDArray[Any]]]:
    found: list[tuple[str, NDArray[Any]]] = []
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        if field.name == "pairs":  # the memory of the observations, which are in the file already
            continue
        if isinstance(value, Mapping):
            found += [(f"{field.name}.{key}", array) for key, array in value.items()]
        elif isinstance(value, np.ndarray):
            found.append((field.name, value))
    return found
