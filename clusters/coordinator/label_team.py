"""The annotators of a Ray run and the reward model that learns from what they say, as the coordinator sees them."""

from __future__ import annotations

import dataclasses
import functools
import logging
from pathlib import Path
from typing import Any

import ray

from onibi.clusters.coordinator.annotator_team import AnnotatorTeam
from onibi.clusters.coordinator.role_calls import start_actor
from onibi.clusters.reward_model_plan import (
    ModelState,
    has_reward_model,
    make_reward_learner,
    reward_model_state,
    tell_idle_reward_model,
    with_reward_model,
)
from onibi.clusters.run_plan import RunPlan
from onibi.platform.checkpoint import Checkpoint, CheckpointParts

log = logging.getLogger(__name__)

_REWARD_MODEL = "reward model"
_STATE_SECONDS = 5.0


def tell_learnt_scores(plan: RunPlan, hub: Any, checkpoint: Checkpoint) -> None:
    """Let the hub pay by what a checkpoint's reward model has learnt, before learners start: that model's own process
    takes seconds to begin, and till then a resumed run would learn that captions are worth nothing.

    Args:
        plan: as for ``LabelTeam``.
        hub: handle; knows the run's env steps, as labels that are held back teach nothing yet.
        checkpoint: to go on from.
    Raises: as ``LabelTeam``.
    """
    state = reward_model_state(checkpoint)
    learner = None if state is None else make_reward_learner(plan, state)
    data = None if learner is None else ray.get(hub.training_data.remote(-1, 0.0))
    if learner is not None and data is not None:
        ray.get(hub.set_scores.remote(learner.current_scores(data)))


class LabelTeam(AnnotatorTeam):
    """Annotators and, where what captions pay is learnt, the reward model.

    Args:
        plan: what to build, without what stores do not need.
        hub: handle.
        checkpoint: to go on from; None starts anew.
    Raises: ConfigError where the reward model cannot be made, CheckpointError where the checkpoint has another one.
    """

    def __init__(self, plan: RunPlan, hub: Any, checkpoint: Checkpoint | None) -> None:
        super().__init__(plan, hub)
        self._state: ModelState | None = reward_model_state(checkpoint)
        tell_idle_reward_model(plan.settings)
        if has_reward_model(plan.settings):
            plan = _with_whole_path(plan)
            # What it lacks is told now; in its process it would be tried for ever.
            make_reward_learner(plan, self._state)
            # Loads torch: imported where there is such a model alone.
            from onibi.learners.reward_models.reward_model_actor import REWARD_MODEL_OPTIONS, RewardModelActor

            make, period = functools.partial(make_reward_learner, plan), plan.settings.reward_model.period_seconds
            self.handles[_REWARD_MODEL] = start_actor(RewardModelActor, REWARD_MODEL_OPTIONS, make, period)

    @staticmethod
    def includes(role: str) -> bool:
        """Whether a role is one of this team's."""
        return role == _REWARD_MODEL or AnnotatorTeam.includes(role)

    def _set_to_work(self, role: str) -> Any:
        if role == _REWARD_MODEL:
            return self.handles[role].run.remote(self._hub, self._state)
        return super()._set_to_work(role)

    def keep(self, parts: CheckpointParts) -> CheckpointParts:
        """The parts of a checkpoint with the reward model's among them, as it was after its last whole round."""
        if _REWARD_MODEL in self.handles:
            reference = self.handles[_REWARD_MODEL].state.remote()
            try:
                if ray.wait([reference], timeout=_STATE_SECONDS)[0]:
                    self._state = ray.get(reference) or self._state
            except ray.exceptions.RayError as error:  # it is being replaced: what it was before is kept
                log.warning("the reward model's state is that of an earlier checkpoint: %s", error)
        return with_reward_model(parts, self._state)


def _with_whole_path(plan: RunPlan) -> RunPlan:
    """The plan with the fitted model's folder as this process means it: others have a current folder of their own."""
    fitted = plan.settings.reward_model.fitted
    if fitted is None:
        return plan
    model = dataclasses.replace(plan.settings.reward_model, fitted=str(Path(fitted).absolute()))
    return dataclasses.replace(plan, settings=dataclasses.replace(plan.settings, reward_model=model))
