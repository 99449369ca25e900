"""Environments that step one after the other in this process, whatever their infos hold."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from gymnasium.vector import SyncVectorEnv
from numpy.typing import NDArray

from onibi.actors.environments.process_exit import is_by_signal

log = logging.getLogger(__name__)

_NUMBERS = "biuf"  # kinds of dtypes
_LEAST_INT, _MOST_INT = np.iinfo(int).min, np.iinfo(int).max
_DTYPES = {kind: np.dtype(kind) for kind in (float, int, bool)}  # of Python's numbers, as Gymnasium keeps them


class SyncEnvironments(SyncVectorEnv):
    """Gymnasium's ``SyncVectorEnv`` for environments of users, who never saw their infos side by side.

    Gymnasium makes an array of the first value of an info key and puts those of the other environments into it: a list
    that grew or a None ends the run, and 0.75 behind a 0 becomes 0. Here numbers of several types get the type that
    holds them all, and what fits no array of numbers comes as objects, [E] with None where nothing was told. Where some
    environments tell a mapping under a key, what others tell there is left out.

    Closing goes on past an environment that raises, which is told in one warning.
    """

    def _add_info(self, vector_infos: dict[str, Any], env_info: dict[str, Any], env_num: int) -> dict[str, Any]:
        """``vector_infos`` with the infos of one environment; also called by Gymnasium for the mappings in them."""
        left_out = []
        for key, value in env_info.items():
            known = vector_infos.get(key)
            if known is None:
                if not _fits_an_array(value):
                    vector_infos[key] = np.full(self.num_envs, None, dtype=object)
                    vector_infos[f"_{key}"] = np.zeros(self.num_envs, np.bool_)
                continue
            if isinstance(known, dict) or isinstance(value, dict):
                if not isinstance(value, dict):
                    left_out.append(key)
                elif not isinstance(known, dict):
                    del vector_infos[key], vector_infos[f"_{key}"]
            elif known.dtype != object or known.ndim > 1:
                vector_infos[key] = _made_to_hold(known, vector_infos[f"_{key}"], value)
        if left_out:
            env_info = {key: value for key, value in env_info.items() if key not in left_out}
        added: dict[str, Any] = super()._add_info(vector_infos, env_info, env_num)
        return added

    def close_extras(self, **kwargs: Any) -> None:  # noqa: ARG002 - Gymnasium's
        """Close all environments."""
        faults = []
        for env in getattr(self, "envs", ()):  # none where making them failed
            try:
                env.close()
            except (Exception, SystemExit) as error:
                if is_by_signal(error):
                    raise
                faults.append(error)
        if faults:
            first = faults[0]
            told = f"{type(first).__name__}: {first}"
            log.warning("%d of %d environments raised when they were closed: %s", len(faults), len(self.envs), told)


def _fits_an_array(value: Any) -> bool:
    """Whether it is no whole number beyond 64 bits, as the seed of a random generator."""
    return type(value) is not int or _LEAST_INT <= value <= _MOST_INT


def _made_to_hold(known: NDArray[Any], told: NDArray[np.bool_], value: Any) -> NDArray[Any]:
    """``known`` [E, ...], or a copy of another type where ``value`` would not go into it as it is.

    Args:
        told: [E] where ``known`` holds something.
    """
    fits = _fits_an_array(value)
    plain = _DTYPES.get(type(value)) if fits else None
    if plain is not None and known.ndim == 1 and known.dtype == plain:
        return known
    is_number = fits and isinstance(value, bool | int | float | np.generic | np.ndarray)
    if is_number and np.shape(value) == known.shape[1:]:
        dtype = value.dtype if isinstance(value, np.generic | np.ndarray) else np.dtype(type(value))
        if dtype == known.dtype:
            return known
        if dtype.kind in _NUMBERS and known.dtype.kind in _NUMBERS:
            return known.astype(np.result_type(known.dtype, dtype))
    objects: NDArray[Any] = np.full(len(known), None, dtype=object)
    for env in np.flatnonzero(told):
        objects[env] = known[env]
    return objects
