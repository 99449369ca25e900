"""Which nodes of a Ray cluster have replay shards and learners: those of one shard share memory, and so a node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from onibi.clusters.run_settings import PlacementSettings
from onibi.platform.errors import ConfigError

_SHARD_CPUS = 0.05
_HERE_SECONDS = 2.0  # in which Ray gives room on the driver's node, where there is any


class StoreRoom:
    """Room for replay shards and learners, kept until it is closed.

    A single shard and all learners: the driver's own node where it has room, as the run's folder lies there; else one
    that has. A cluster with a single node that is large enough has no choice, and nothing is reserved. Several shards,
    each with its learner: as many nodes where there are so many, and the first one the driver's own where it has room.

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
        """Id of the first shard's node."""
        if len(nodes) == 1:
            return
        spreads = placement.shards > 1
        bundles = [_sum(_asked(placement))] * placement.shards if spreads else [b for b in _asked(placement) if b]
        strategy = "SPREAD" if spreads else "STRICT_PACK"
        here = ray.get_runtime_context().get_node_id()
        if here in nodes:
            chosen = [{"ray.io/node-id": here}] * (1 if spreads else len(bundles))
            selectors = [*chosen, *[{}] * (len(bundles) - len(chosen))]
            self._group = placement_group(bundles, strategy=strategy, bundle_label_selector=selectors)
            if self._group.wait(_HERE_SECONDS):
                self.node = here
                return
            remove_placement_group(self._group)
        self._group = placement_group(bundles, strategy=strategy)  # Ray alone knows what is free where
        try:
            what = "nodes with room for replay shards" if spreads else "a node with room for replay shard"
            answer(self._group.ready(), f"{what} and learners")
        except BaseException:
            self.close()
            raise
        self.node = str(placement_group_table(self._group)["bundles_to_node_id"][0])

    def shard_options(self, shard: int = 0) -> dict[str, Any]:
        """Ray's options for the shard with this number, from 0."""
        place = self._place(0) if self._placement.shards == 1 else self._beside(shard)
        return {"num_cpus": _SHARD_CPUS, "resources": self._placement.learner_resources, **place}

    def learner_options(self, number: int) -> dict[str, Any]:
        """Ray's options for the learner with this number, from 0."""
        placement = self._placement
        place = self._place(number + 1) if placement.shards == 1 else self._beside(number)
        return {"num_cpus": placement.learner_cpus, "num_gpus": placement.learner_gpus, **place}

    def close(self) -> None:
        """Give the room back; what runs in it ends."""
        if self._group is not None:
            remove_placement_group(self._group)

    def _place(self, part: int) -> dict[str, Any]:
        asked = _asked(self._placement)
        if self._group is None or not asked[part]:
            return on_node(self.node)
        return self._beside(sum(bool(each) for each in asked[:part]))

    def _beside(self, bundle: int) -> dict[str, Any]:
        if self._group is None:
            return on_node(self.node)
        return {"scheduling_strategy": PlacementGroupSchedulingStrategy(self._group, bundle)}


def on_node(node: str) -> dict[str, Any]:
    """Ray's option that puts an actor on the node of this id, and nowhere else."""
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node_id=node, soft=False)}


def check_store_node(placement: PlacementSettings) -> list[str]:
    """Ids of the nodes that are large enough for a replay shard and all of its learners, whatever uses them now; one or
    more.

    Raises: ConfigError where none is, or they do not hold all shards together.
    """
    asked = _sum(_asked(placement))
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    enough = [node for node in nodes if _holds(node["Resources"], asked)]
    there = "; ".join(_told({name: node["Resources"].get(name, 0.0) for name in asked}) for node in nodes)
    remedy = "Lower placement.learners, learner_cpus, learner_gpus or learner_resources, or start"
    shards, learners = placement.shards, placement.learners // placement.shards
    if not enough:
        raise ConfigError(
            f"no node of the cluster has {_told(asked)} for the replay shard and {learners} learners, which share "
            f"memory and so a node. The nodes have: {there}. {remedy} a larger node."
        )
    if shards > 1 and sum(_times(node["Resources"], asked) for node in enough) < shards:
        raise ConfigError(
            f"each of {shards} replay shards with its learner asks for {_told(asked)}. The nodes have: {there}. "
            f"{remedy} more nodes."
        )
    return [str(node["NodeID"]) for node in enough]


def _asked(placement: PlacementSettings) -> list[dict[str, float]]:
    """What a shard asks for, then each of its learners; a learner may ask for nothing."""
    learner = {"CPU": placement.learner_cpus, "GPU": placement.learner_gpus}
    learners = placement.learners // placement.shards
    wanted = [{"CPU": _SHARD_CPUS, **placement.learner_resources}, *[learner] * learners]
    return [{name: amount for name, amount in part.items() if amount > 0} for part in wanted]


def _sum(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    asked: Counter[str] = Counter()
    for part in parts:
        asked.update(part)
    return dict(asked)


def _times(resources: Mapping[str, float], asked: Mapping[str, float]) -> int:
    return int(min((resources.get(name, 0.0) + 1e-9) // amount for name, amount in asked.items()))


def _holds(resources: Mapping[str, float], asked: Mapping[str, float]) -> bool:
    return all(resources.get(name, 0.0) >= amount - 1e-9 for name, amount in asked.items())


def _told(resources: Mapping[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in resources.items())
