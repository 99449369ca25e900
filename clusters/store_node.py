"""Which node of a Ray cluster has the replay shard and the learners: they share memory, so one node has them all."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

import ray
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from onibi.clusters.run_settings import PlacementSettings
from onibi.platform.errors import ConfigError

log = logging.getLogger(__name__)

_SHARD_CPUS = 0.05
_ROOM_SECONDS = 30.0


def store_node(placement: PlacementSettings) -> str:
    """Id of the node for replay shard and learners.

    The driver's own where it has what they ask for, as the run's folder lies there. Else the one that Ray finds room
    on; where all that are large enough are in use for half a minute, one of those: the run then waits for it.

    Raises: as ``check_store_node``.
    """
    nodes = check_store_node(placement)
    here = ray.get_runtime_context().get_node_id()
    if here in nodes:
        return here
    if len(nodes) == 1:
        return nodes[0]
    group = placement_group(_bundles(placement), strategy="STRICT_PACK")  # Ray alone knows what is free where
    try:
        if group.wait(_ROOM_SECONDS):
            return str(placement_group_table(group)["bundles_to_node_id"][0])
    finally:
        remove_placement_group(group)
    log.warning("every node that is large enough for replay shard and learners is in use; the run waits for room")
    return nodes[0]


def shard_options(placement: PlacementSettings, node: str) -> dict[str, Any]:
    """Ray's options for the shard on this node."""
    return {"num_cpus": _SHARD_CPUS, "resources": placement.learner_resources, **on_node(node)}


def on_node(node: str) -> dict[str, Any]:
    """Ray's option that puts an actor on the node of this id, and nowhere else."""
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node_id=node, soft=False)}


def check_store_node(placement: PlacementSettings) -> list[str]:
    """Ids of the nodes that are large enough for replay shard and all learners, whatever uses them now; one or more.

    Raises: ConfigError where none is.
    """
    asked: Counter[str] = Counter()
    for bundle in _bundles(placement):
        asked.update(bundle)
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


def _bundles(placement: PlacementSettings) -> list[dict[str, float]]:
    learner = {"CPU": placement.learner_cpus, "GPU": placement.learner_gpus}
    wanted = [{"CPU": _SHARD_CPUS, **placement.learner_resources}, *[learner] * placement.learners]
    bundles = [{name: amount for name, amount in bundle.items() if amount > 0} for bundle in wanted]
    return [bundle for bundle in bundles if bundle]


def _holds(resources: Mapping[str, float], asked: Mapping[str, float]) -> bool:
    return all(resources.get(name, 0.0) >= amount - 1e-9 for name, amount in asked.items())


def _told(resources: Mapping[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in resources.items())
