"""What a plan lacks for the way in which it is to run, told before anything starts."""

from __future__ import annotations

import logging

from onibi.clusters.run_plan import RunPlan
from onibi.clusters.run_settings import RunSettings
from onibi.platform.errors import ConfigError
from onibi.platform.remote_policy import halves_of
from onibi.platform.replay.samplers.draws import SlabDraws

log = logging.getLogger(__name__)


def check_serial(plan: RunPlan) -> None:
    """Whether one process can be all actors and the learner.

    Raises: ConfigError where the ring has not lanes for all at once, or several learners are asked for.
    """
    if plan.settings.placement.learners > 1:
        raise ConfigError(
            f"placement.learners is {plan.settings.placement.learners}: a serial run has one. Set it to 1, or leave "
            "--serial out."
        )
    if plan.groups < plan.settings.actors.count:
        raise ConfigError(
            f"replay.max_actors is {plan.groups}, actors.count {plan.settings.actors.count}: a serial run steps all "
            "actors in turn and none of them ever leaves. Set replay.max_actors to null, or leave --serial out."
        )


def check_judge(plan: RunPlan) -> None:
    """Whether evaluations can tell what they are to judge by. Raises: ConfigError where none ever could."""
    if plan.settings.evaluation.judge == "intrinsic_return" and plan.settings.rewards.intrinsic is None:
        raise ConfigError(
            "evaluation.judge is intrinsic_return, rewards.intrinsic is null: every evaluation would judge 0, and the "
            "last checkpoint be called best. Set evaluation.judge to episode_return or success."
        )


def check_learner(plan: RunPlan) -> None:
    """Make the learner once where a run is started: what its settings lack is told before anything starts.

    On the CPU, as the GPU may be another machine's. Raises: ConfigError, SpecError.
    """
    if plan.settings.placement.learners > 1:
        _check_learners(plan)
    if plan.settings.placement.inference is not None:
        halves_of(plan.policy_factory)
    plan.make_cpu_learner()
    from onibi.clusters.value_support import coarse_support  # with torch, which the learner has loaded

    if coarse := coarse_support(plan.settings):
        log.warning("%s", coarse)


def check_same_kinds(former: RunSettings, settings: RunSettings) -> None:
    """Whether a checkpoint that was saved under ``former`` has learnt what ``settings`` ask for.

    Raises: ConfigError where it is of another kind of learner or reward model; their tensors may fit all the same.
    """
    was, wanted = (each.learner.kind for each in (former, settings))  # type: ignore[attr-defined]
    if was != wanted:
        raise ConfigError(
            f"the run was trained by learner.kind {was}, its checkpoints hold nothing for {wanted}. Resume with "
            f"learner.kind {was}, or start a new run."
        )
    was, wanted = (getattr(each.rewards.intrinsic, "kind", None) for each in (former, settings))
    if {was, wanted} == {"classification", "ranking"}:
        raise ConfigError(
            f"the run's reward model was learnt for rewards.intrinsic.kind {was}, and would score wrongly for "
            f"{wanted}. Resume with {was}, or start a new run."
        )


def _check_learners(plan: RunPlan) -> None:
    learners, envs = plan.settings.placement.learners, plan.settings.actors.rollout.envs_per_actor
    place = f"placement.learners is {learners}"
    one_ring = plan.settings.placement.shards == 1
    if one_ring and isinstance(plan.needs.draws, SlabDraws) and envs % learners:
        raise ConfigError(
            f"{place}, actors.rollout.envs_per_actor {envs}: learners that draw each row once need equal shares of an "
            f"actor's environments. Set envs_per_actor to a multiple of {learners}."
        )
    if one_ring and learners > envs:
        raise ConfigError(
            f"{place}, actors.rollout.envs_per_actor {envs}: each learner draws from environments of its own, so an "
            f"actor needs one for each. Set envs_per_actor to {learners} or more, or learners to {envs}."
        )
    gpus = plan.settings.placement.learner_gpus
    if 0 < gpus < 1:
        raise ConfigError(
            f"{place}, placement.learner_gpus {gpus}: each learner needs a GPU of its own, as nccl exchanges no "
            "gradients between two processes on one. Set learner_gpus to 1, or to 0 for the CPU, or learners to 1."
        )
    if plan.settings.learner.acceleration.compile == "graphs":  # type: ignore[attr-defined]
        raise ConfigError(
            f"{place}, but learner.acceleration.compile is graphs: gradients are exchanged outside of a graph. Set "
            "compile to none or default, or learners to 1."
        )
