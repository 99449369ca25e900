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
    Raises: EnvironmentFault where there are none.
    """
    finals = infos.get("final_obs")
    if finals is None:
        raise EnvironmentFault(
            f"{env_id}: declares SAME_STEP autoreset but ended an episode without info['final_obs']; "
            "without the final observation truncated episodes cannot be bootstrapped."
        )
    final_raw = _replace_lanes(raw, finals, np.flatnonzero(ended))
    return final_raw, _merge_infos(infos, infos.get("final_info", {}), ended)


def _merge_infos(infos: dict[str, Any], finals: dict[str, Any], ended: NDArray[np.bool_]) -> dict[str, Any]:
    """Per lane: the final info where the lane ended, the step's info elsewhere.

    An ended lane's own infos are those of its reset: keys that its last step did not give are masked there.
    """
    merged = dict(infos)
    for key, mine in infos.items():
        if key.startswith("_") or key in finals:
            continue
        merged[f"_{key}"] = np.asarray(infos.get(f"_{key}", np.ones(len(ended), np.bool_))) & ~ended
        if isinstance(mine, dict):
            merged[key] = _merge_infos(mine, {}, ended)
    for key, value in finals.items():
        other = infos.get(key)
        if isinstance(value, dict):
            merged[key] = _merge_infos(other if isinstance(other, dict) else {}, value, ended)
        else:
            merged[key] = value if other is None else np.where(ended, value, other)
    return merged


def _replace_lanes(raw: Any, finals: Any, lanes: NDArray[np.intp]) -> Any:
    if isinstance(raw, dict):
        per_key = finals if isinstance(finals, dict) else None
        return {
            key: _replace_lanes(value, per_key[key] if per_key else {lane: finals[lane][key] for lane in lanes}, lanes)
            for key, value in raw.items()
        }
    if isinstance(raw, tuple):  # a text of each lane, or the leaves of a Tuple space
        if all(isinstance(text, str) for text in raw):
            ended = set(lanes.tolist())
            return tuple(finals[lane] if lane in ended else text for lane, text in enumerate(raw))
        return tuple(
            _replace_lanes(value, {lane: finals[lane][index] for lane in lanes}, lanes)
            for index, value in enumerate(raw)
        )
    replaced = np.array(raw)
    for lane in lanes:
        replaced[lane] = finals[lane]
    return replaced
