"""SAME_STEP environments keep an episode's last observation in the infos: where it would stand without autoreset."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.platform.errors import EnvironmentFault


def with_finals(raw: Any, infos: dict[str, Any], ended: NDArray[np.bool_], env_id: str) -> tuple[Any, dict[str, Any]]:
    """Raw observations and infos in which ended lanes show their final ones.

    Args:
        raw: batched observation of a vector environment, each leaf [E, ...].
        infos: Gymnasium's vector infos.
        ended: [E] lanes whose episode has ended.
        env_id: named in errors.
    Raises: EnvironmentFault where there are none, or where an info has another shape than in other steps.
    """
    finals = infos.get("final_obs")
    if finals is None:
        raise EnvironmentFault(
            f"{env_id}: declares SAME_STEP autoreset but ended an episode without info['final_obs']; "
            "without the final observation truncated episodes cannot be bootstrapped."
        )
    final_raw = _replace_lanes(raw, finals, np.flatnonzero(ended).tolist())
    return final_raw, _merge_infos(infos, infos.get("final_info", {}), ended, env_id)


def _merge_infos(
    infos: dict[str, Any], finals: dict[str, Any], ended: NDArray[np.bool_], env_id: str
) -> dict[str, Any]:
    """Per lane: the final info where the lane ended, the step's info elsewhere.

    An ended lane's own infos are those of its reset: keys that its last step did not give are masked there.
    """
    merged = dict(infos)
    for key, mine in infos.items():
        if key.startswith("_") or key in finals:
            continue
        merged[f"_{key}"] = np.asarray(infos.get(f"_{key}", np.ones(len(ended), np.bool_))) & ~ended
        if isinstance(mine, dict):
            merged[key] = _merge_infos(mine, {}, ended, env_id)
    for key, value in finals.items():
        other = infos.get(key)
        if isinstance(value, dict):
            merged[key] = _merge_infos(other if isinstance(other, dict) else {}, value, ended, env_id)
        elif other is None:
            merged[key] = value
        elif np.shape(value) == np.shape(other):
            merged[key] = np.where(ended.reshape(-1, *[1] * (np.ndim(value) - 1)), value, other)
        else:
            raise EnvironmentFault(
                f"{env_id}: info {key!r} has the shape {np.shape(other)} in a step and {np.shape(value)} at an "
                "episode's end; both must be the same. Give it one shape, or leave it out."
            )
    return merged


def _replace_lanes(raw: Any, finals: Any, lanes: list[int], path: tuple[Any, ...] = ()) -> Any:
    """The leaf of ``raw`` at ``path``, or all below it, with the final values in ``lanes``."""
    if isinstance(raw, dict):
        return {key: _replace_lanes(value, finals, lanes, (*path, key)) for key, value in raw.items()}
    if isinstance(raw, tuple):  # a text of each lane, or the leaves of a Tuple space
        if not all(isinstance(text, str) for text in raw):
            return tuple(_replace_lanes(value, finals, lanes, (*path, place)) for place, value in enumerate(raw))
        values = {lane: _final_value(finals, lane, path) for lane in lanes}
        return tuple(values.get(lane, text) for lane, text in enumerate(raw))
    replaced = np.array(raw)
    for lane in lanes:
        replaced[lane] = _final_value(finals, lane, path)
    return replaced


def _final_value(finals: Any, lane: int, path: tuple[Any, ...]) -> Any:
    """One lane's leaf: Gymnasium keeps an observation of each lane, some native ones a batch like their observation."""
    is_batch = True
    for key in path:
        if is_batch and not isinstance(finals, dict | tuple):
            finals, is_batch = finals[lane], False
        finals = finals[key]
    return finals[lane] if is_batch else finals
