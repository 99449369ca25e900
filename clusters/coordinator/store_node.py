"""Which node of a Ray cluster has the replay shard and the learners: they share memory, so one node has them all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from onibi.clusters.run_settings import PlacementSettings
from onibi.platform.errors import ConfigError

_SHARD_CPUS = 0.05
_HERE_SECONDS = 2.0  # in which Ray gives room on the driver's node, where there is any


class StoreRoom:
    """Room for replay shard and learners on one node, kept until it is closed.

    The driver's own node where it has room, as the run's folder lies there; else one that has. A cluster with a single
    node that is large enough has no choice, and nothing is reserved.

    Args:
        placement: what is asked for.
        answer: waits for a reference, as ``PatientCalls`` does; where room is not there yet the run waits for it.

    Raises: as ``check_store_node`` and ``answer``.
    """

    def __init__(self, placement: PlacementSettings, answer: Callable[[Any, str], Any]) -> None:
        self._placement = placement
        self._group: PlacementGroup | None = None
        nodes = check_store_node(placement)
        self.node = nodes[0]
        """Its id."""
        if len(nodes) == 1:
            return
        bundles = [bundle for bundle in _asked(placement) if bundle]
        here = ray.get_runtime_context().get_node_id()
        if here in nodes:
            self._group = placement_group(
                bundles, strategy="STRICT_PACK", bundle_label_selector=[{"ray.io/node-id": here}] * len(bundles)
            )
            if self._group.wait(_HERE_SECONDS):
                self.node = here
                return
            remove_placement_group(self._group)
        self._group = placement_group(bundles, strategy="STRICT_PACK")  # Ray alone knows what is free where
        try:
            answer(self._group.ready(), "a node with room for replay shard and learners")
        except BaseException:
            self.close()
            raise
        self.node = str(placement_group_table(self._group)["bundles_to_node_id"][0])

    def shard_options(self) -> dict[str, Any]:
        """Ray's options for the shard."""
        return {"num_cpus": _SHARD_CPUS, "resources": self._placement.learner_resources, **self._place(0)}

    def learner_options(self, number: int) -> dict[str, Any]:
        """Ray's options for the learner with this number, from 0."""
        placement = self._placement
        return {"num_cpus": placement.learner_cpus, "num_gpus": placement.learner_gpus, **self._place(number + 1)}

    def close(self) -> None:
        """Give the room back; what runs in it ends."""
        if self._group is not None:
            remove_placement_group(self._group)

    def _place(self, part: int) -> dict[str, Any]:
        asked = _asked(self._placement)
        if self._group is None or not asked[part]:
            return on_node(self.node)
        bundle = sum(bool(each) for each in asked[:part])
        return {"scheduling_strategy": PlacementGroupSchedulingStrategy(self._group, bundle)}


def on_node(node: str) -> dict[str, Any]:
    """Ray's option that puts an actor on the node of this id, and nowhere else."""
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node_id=node, soft=False)}


def check_store_node(placement: PlacementSettings) -> list[str]:
    """Ids of the nodes that are large enough for replay shard and all learners, whatever uses them now; one or more.

    Raises: ConfigError where none is.
    """
    asked: Counter[str] = Counter()
    for part in _asked(placement):
        asked.update(part)
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    enough = [str(node["NodeID"]) for node in nodes if _holds(node["Resources"], asked)]
    if not enough:
        there = "; ".join(_told({name: node["Resources"].get(name, 0.0) for name in asked}) for node in nodes)
        raise ConfigError(
            f"no node of the cluster has {_told(asked)} for the replay shard and {placement.learners} learners, which "
            f"share memory and so a node. The nodes have: {there}. Lower placement.learners, learner_cpus, "
            "learner_gpus or learner_resources, or start a larger node."
        )
    return enough


def _asked(placement: PlacementSettings) -> list[dict[str, float]]:
    """What the shard asks for, then each learner; a learner may ask for nothing."""
    learner = {"CPU": placement.learner_cpus, "GPU": placement.learner_gpus}
    wanted = [{"CPU": _SHARD_CPUS, **placement.learner_resources}, *[learner] * placement.learners]
    return [{name: amount for name, amount in part.items() if amount > 0} for part in wanted]


def _holds(resources: Mapping[str, float], asked: Mapping[str, float]) -> bool:
    return all(resources.get(name, 0.0) >= amount - 1e-9 for name, amount in asked.items())


def _told(resources: Mapping[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in resources.items())
