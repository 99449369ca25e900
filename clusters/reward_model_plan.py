"""The reward model of a run: whether it has one, how it is made, kept in checkpoints, and run in a serial run."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from onibi.clusters.run_plan import RunPlan, role_seed
from onibi.clusters.run_settings import RunSettings
from onibi.learners.reward_models.settings import RewardModelSettings
from onibi.platform.annotation.desk import AnnotationDesk
from onibi.platform.checkpoint import Checkpoint, CheckpointParts

if TYPE_CHECKING:
    from onibi.learners.reward_models.reward_learner import RewardLearner

log = logging.getLogger(__name__)

ROLE_REWARD_MODEL = 64  # apart from those in run_plan.py
_TENSORS = "reward_model"

ModelState = Mapping[str, NDArray[Any]]


def has_reward_model(settings: RunSettings) -> bool:
    """Whether what captions pay is learnt: ``rewards.intrinsic`` is a classification or ranking that is not a control
    without a judge.
    """
    intrinsic = settings.rewards.intrinsic
    if intrinsic is None or intrinsic.control == "all_ones":
        return False
    return intrinsic.kind in ("classification", "ranking")


def tell_idle_reward_model(settings: RunSettings) -> None:
    """Warn of ``reward_model`` settings that nothing reads in this run."""
    if has_reward_model(settings) or settings.reward_model == RewardModelSettings():
        return
    intrinsic = settings.rewards.intrinsic
    pays = "null" if intrinsic is None else "a control" if intrinsic.control == "all_ones" else intrinsic.kind
    log.warning(
        "reward_model has settings that do nothing: rewards.intrinsic is %s, and only the kinds classification and "
        "ranking learn a model.",
        pays,
    )


def make_reward_learner(plan: RunPlan, state: ModelState | None = None) -> RewardLearner | None:
    """The reward learner, untrained or started from a fitted model; restored where ``state`` is given.

    Returns: None for a run without one. Raises: ConfigError where it cannot be made, CheckpointError where the state is
    of another one.
    """
    if not has_reward_model(plan.settings):
        return None
    import torch

    from onibi.learners.reward_models.fitted_model import open_reward_learner

    intrinsic = plan.settings.rewards.intrinsic
    assert intrinsic is not None, "has_reward_model looked"
    learner = open_reward_learner(
        plan.settings.reward_model,
        "ranking" if intrinsic.kind == "ranking" else "classification",
        role_seed(plan.settings, ROLE_REWARD_MODEL),
    )
    if state is not None:
        learner.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    return learner


def reward_model_state(checkpoint: Checkpoint | None) -> ModelState | None:
    """What a checkpoint keeps of the reward model; None where it keeps none."""
    return None if checkpoint is None else checkpoint.tensors.get(_TENSORS)


def with_reward_model(parts: CheckpointParts, state: ModelState | None) -> CheckpointParts:
    """The parts of a checkpoint with the reward model's among them."""
    if state is None:
        return parts
    return dataclasses.replace(parts, tensors={**parts.tensors, _TENSORS: state})


def reward_learner_of(plan: RunPlan, desk: AnnotationDesk, checkpoint: Checkpoint | None) -> RewardLearner | None:
    """The reward learner as a checkpoint has it; where that has learnt, the desk pays by it from now on.

    Args: desk: has heard of the run's labels and env steps. Returns, Raises: as ``make_reward_learner``.
    """
    state = reward_model_state(checkpoint)
    learner = make_reward_learner(plan, state)
    data = None if learner is None or state is None else desk.training_data(newer_than=-1)
    if learner is not None and data is not None:
        desk.set_scores(learner.current_scores(data))
    return learner


class SerialRewardModel:
    """The reward model of a serial run: learns in this process, every ``reward_model.period_env_steps``.

    Args:
        plan: of the run.
        desk: has the labels and takes the scores.
        checkpoint: to go on from; None starts anew.
    Raises: as ``make_reward_learner``.
    """

    def __init__(self, plan: RunPlan, desk: AnnotationDesk, checkpoint: Checkpoint | None) -> None:
        self._desk, self._period = desk, plan.settings.reward_model.period_env_steps
        tell_idle_reward_model(plan.settings)
        self._learner = reward_learner_of(plan, desk, checkpoint)
        self._seen = -1  # version of the labels that the model knows
        self._next = 0  # env steps

    def turn(self, env_steps: int) -> None:
        """Learn what is new, where it is time. Raises: NonFiniteError where learning diverges."""
        if self._learner is None or env_steps < self._next:
            return
        self._next = (env_steps // self._period + 1) * self._period
        data = self._desk.training_data(newer_than=-1 if self._learner.owed_steps else self._seen)
        if data is None:
            return
        self._seen = data.version
        scores = self._learner.learn(data)
        if scores is not None:
            self._desk.set_scores(scores)

    def keep(self, parts: CheckpointParts) -> CheckpointParts:
        """The parts of a checkpoint with this model's among them."""
        if self._learner is None:
            return parts
        return with_reward_model(parts, {name: each.numpy() for name, each in self._learner.state_dict().items()})
