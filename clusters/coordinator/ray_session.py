"""A connection to a Ray cluster for one session: the one that is named, or one of its own on this machine."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from onibi.clusters.coordinator.annotator_team import annotator_options
from onibi.clusters.coordinator.store_node import check_store_node
from onibi.clusters.reward_model_plan import has_reward_model
from onibi.clusters.run_plan import RunPlan
from onibi.platform.errors import ClusterError, ConfigError
from onibi.platform.threads import ONE_THREAD, one_thread_inherited

log = logging.getLogger(__name__)

_OBJECT_STORE_BYTES = 512 * 2**20  # fragments and weights in flight; the replay ring is not in it
_CONNECT_SECONDS = 10.0


@contextmanager
def ray_session(plan: RunPlan) -> Iterator[None]:
    """Connect, and disconnect at the end; an own cluster ends with it.

    ``RAY_ADDRESS`` names a cluster (``ray job submit`` sets it); a process that is connected already stays so.

    Raises:
        ConfigError: the cluster has too few CPUs or GPUs for the run's roles, or is no address to connect to.
        ClusterError: it does not answer, or no cluster could be started here.
        KeyboardInterrupt: SIGTERM came while Ray started: there is nothing to save yet.
    """
    if ray.is_initialized():
        _check_room(plan)
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    # Set before NumPy is imported in any role: BLAS threads of many processes on few cores cost a factor of 8. An own
    # cluster inherits it: its workers would otherwise be started twice, without a runtime environment and with one.
    options = (
        {"address": address, "runtime_env": {"env_vars": ONE_THREAD}}
        if address
        else {
            "address": "local",
            "num_cpus": os.cpu_count() or 1,
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
        }
    )
    log.info("%s", f"connecting to Ray at {address}" if address else "starting Ray on this machine")
    if address:
        _check_address(address)
    try:
        with _signals_kept(), one_thread_inherited():
            ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except (Exception, SystemExit) as error:  # Ray raises what comes; where nobody answers for minutes, it exits
        ray.shutdown()
        if isinstance(error, SystemExit) and error.code == signal.SIGTERM:  # as its handler does
            raise KeyboardInterrupt from error
        raise ClusterError(
            f"Ray at {address} (RAY_ADDRESS) cannot be joined: {error}"
            if address
            else f"Ray could not be started on this machine: {error} Try again when the machine is less busy, or "
            "train in one process: --serial"
        ) from error
    try:
        _check_room(plan)
        yield
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Find a cluster that is not there within seconds; Ray tries for minutes."""
    if "://" in address:
        raise ConfigError(
            f"RAY_ADDRESS is {address}; a run joins a cluster as one of its nodes, at HOST:PORT of its head (6379 by "
            "default). From outside: onibi submit --address http://HOST:8265"
        )
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        return  # auto, local
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"no Ray cluster answers at RAY_ADDRESS {address} ({error}). Start it (ray start --head), or unset the "
            "variable to train on this machine alone"
        ) from error


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray's SIGTERM handler ends the process at once; ours saves a checkpoint first (`ray job stop` sends SIGTERM).

    Inside, Ray's is at work: it raises SystemExit with the signal's number.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _check_room(plan: RunPlan) -> None:
    """Refuse a run that would wait for resources for ever."""
    settings, placement = plan.settings, plan.settings.placement
    small_roles = (2 + placement.shards + has_reward_model(settings)) * 0.05  # hub, evaluator
    inference = (0.0, 0.0) if placement.inference is None else (placement.inference.cpus, placement.inference.gpus)
    options = [annotator_options(chosen) for chosen in plan.annotator_settings.values()]
    annotators, annotator_gpus = (
        settings.annotation.workers * sum(each[kind] for each in options) for kind in ("num_cpus", "num_gpus")
    )
    cpus = settings.actors.count * placement.rollout_cpus + placement.learners * placement.learner_cpus
    cpus += inference[0] + annotators + small_roles
    gpus = placement.learners * placement.learner_gpus + inference[1] + annotator_gpus
    there = ray.cluster_resources()  # type: ignore[no-untyped-call]
    if cpus > there.get("CPU", 0.0) + 1e-9:
        raise ConfigError(
            f"the run asks for {cpus:.2f} CPUs ({settings.actors.count} actors × placement.rollout_cpus "
            f"{placement.rollout_cpus} + {placement.learners} learners × placement.learner_cpus "
            f"{placement.learner_cpus} + {inference[0]:g} for inference + {annotators:.2f} for annotators + "
            f"{small_roles:.2f} for the small roles); Ray has {there.get('CPU', 0.0):g}. Lower actors.count, "
            "placement.*_cpus, annotator.cpus or annotation.workers."
        )
    if gpus > there.get("GPU", 0.0) + 1e-9:
        raise ConfigError(
            f"placement.learner_gpus is {placement.learner_gpus} for each of {placement.learners} learners, "
            f"placement.inference asks for {inference[1]:g}, annotators ask for {annotator_gpus:g}; Ray has "
            f"{there.get('GPU', 0.0):g}. Set them to 0 to stay on the CPU."
        )
    for setting in ("learner_resources", "rollout_resources"):
        for name, amount in getattr(placement, setting).items():
            if amount > there.get(name, 0.0) + 1e-9:
                raise ConfigError(
                    f"placement.{setting} asks for {amount:g} of {name!r}, Ray has {there.get(name, 0.0):g}. Start a "
                    f"node that has it (ray start --resources '{{\"{name}\": 1}}'), or leave it out."
                )
    check_store_node(placement)
