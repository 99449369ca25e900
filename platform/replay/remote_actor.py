"""The draw desk as a Ray actor on the ring's node, and a sampler that calls it from anywhere (Ray shell)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from onibi.platform.replay.remote_draws import DrawDesk, DrawRequest, RemoteSampler
from onibi.platform.replay.ring.reader import RingReader


@ray.remote(num_cpus=0.05)
class RemoteDrawsActor:
    """Maps a ring on its node and draws for clients elsewhere; a process of its own, so that no insertion waits."""

    def __init__(self, ring: str) -> None:
        self._desk = DrawDesk(RingReader(Path(ring)))

    def open(self, request: DrawRequest) -> pa.RecordBatch:
        """As ``DrawDesk.open``."""
        return self._desk.open(request)

    def draw(self, client: str, draws: int) -> pa.RecordBatch:
        """As ``DrawDesk.draw``."""
        return self._desk.draw(client, draws)

    def update(
        self, client: str, lane: NDArray[np.int64], generation: NDArray[np.int64], priority: NDArray[np.float64]
    ) -> int:
        """As ``DrawDesk.update``."""
        return self._desk.update(client, lane, generation, priority)

    def close(self, client: str) -> None:
        """As ``DrawDesk.close``."""
        self._desk.close(client)

    def overtaken(self) -> dict[str, int]:
        """As ``DrawDesk.overtaken``."""
        return self._desk.overtaken()


def start_remote_draws(ring: str, node_id: str) -> Any:
    """The actor's handle; it runs on the ring's node (``OpenedShard.node_id``) or not at all."""
    strategy = NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)
    return RemoteDrawsActor.options(scheduling_strategy=strategy).remote(ring)  # type: ignore[attr-defined]


def remote_sampler(actor: Any, request: DrawRequest, *, draws: int = 8, calls_ahead: int = 1) -> RemoteSampler[Any]:
    """A sampler over ``RemoteDrawsActor``. Raises: ReplayError as ``DrawDesk.open``."""
    return RemoteSampler(
        lambda count: actor.draw.remote(request.client, count),
        lambda lane, generation, priority: actor.update.remote(request.client, lane, generation, priority),
        ray.get,
        ray.get(actor.open.remote(request)),
        draws=draws,
        calls_ahead=calls_ahead,
    )
