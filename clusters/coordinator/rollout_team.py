"""The rollout actors as the coordinator sees them, with the process that computes their forward passes, where asked."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import ray

from onibi.actors.inference_actor import INFERENCE_OPTIONS, InferenceActor
from onibi.actors.rollout_actor import ROLLOUT_OPTIONS, RolloutActor
from onibi.clusters.coordinator.hang_watch import HangWatch
from onibi.clusters.coordinator.role_calls import start_actor, take_due
from onibi.clusters.coordinator.shard_team import ShardTeam
from onibi.clusters.run_plan import RunPlan
from onibi.clusters.shard_plan import plan_of_shard
from onibi.platform.remote_policy import halves_of

_ROLLOUT, _INFERENCE = "rollout", "inference"
_RESTART_SECONDS = 0.25
_LAST_SECONDS = 2.0  # for what killed processes raised


class RolloutTeam:
    """Starts the rollout actors and sets them to work.

    Args:
        plan: what to build.
        shards: that take their rows, each those of as many actors.
        hub: its handle.
    """

    def __init__(self, plan: RunPlan, shards: ShardTeam, hub: Any) -> None:
        acting, settings, placement = plan.for_actors(), plan.settings, plan.settings.placement
        self._shards, self._hub = shards, hub
        self._watch = HangWatch(settings.actors.hang_seconds)
        self._again_at: dict[str, float] = {}  # by role: when one whose process Ray starts again may be asked again
        self._inference: Any = None
        if placement.inference is not None:
            self._inference = start_actor(
                InferenceActor,
                {**INFERENCE_OPTIONS, "num_cpus": placement.inference.cpus, "num_gpus": placement.inference.gpus},
                halves_of(acting.policy_factory).forward,
                placement.inference,
            )
        options = {**ROLLOUT_OPTIONS, "num_cpus": placement.rollout_cpus, "resources": placement.rollout_resources}
        self._rollouts = [
            start_actor(
                RolloutActor,
                options,
                plan_of_shard(acting, actor % len(shards)).make_rollout,
                actor // len(shards),
                settings.actors.rollout.envs_per_actor,
                settings.actors.fragments_in_flight,
                f"{_ROLLOUT} {actor}",
            )
            for actor in range(settings.actors.count)
        ]

    def __len__(self) -> int:
        return len(self._rollouts)

    @staticmethod
    def includes(role: str) -> bool:
        """Whether a role is one of this team's."""
        return role == _INFERENCE or role.startswith(_ROLLOUT)

    @property
    def handles(self) -> dict[str, Any]:
        """Actors by role."""
        rollouts = self._by_role()
        return rollouts if self._inference is None else {**rollouts, _INFERENCE: self._inference}

    def start(self) -> dict[Any, str]:
        """Set all to work. Returns: reference → role, for the watch."""
        return {self.run(role): role for role in self.handles}

    def run_later(self, role: str) -> None:
        """Set one to work whose process Ray is starting again: a call fails at once until that is done."""
        self._again_at[role] = time.monotonic() + _RESTART_SECONDS

    def due(self) -> dict[Any, str]:
        """Set to work who waited long enough. Returns: as ``start``."""
        return {self.run(role): role for role in take_due(self._again_at)}

    def run(self, role: str) -> Any:
        """Set one role to work, again where its process was replaced. Returns: the reference to wait for."""
        if role == _INFERENCE:
            return self._inference.run.remote(self._hub)
        handle, number = self.handles[role], int(role.rpartition(" ")[2])
        return handle.run.remote(self._shards.of(number), self._hub, self._inference)

    def end_hung(self) -> list[str]:
        """End the processes whose environments do not return, as if they had died. Returns: what to tell."""
        return self._watch.look(self._by_role(), time.monotonic())

    def figures(self) -> dict[str, float]:
        """Metrics of central inference; none without it, or while its process is being replaced."""
        if self._inference is None:
            return {}
        asked = self._inference.figures.remote()
        if not ray.wait([asked], timeout=1.0)[0]:
            return {}
        try:
            figures: dict[str, float] = ray.get(asked)
        except ray.exceptions.RayActorError:
            return {}
        return figures

    def stop(self, running: dict[Any, str], seconds: float) -> None:
        """Let the rollouts end their fragments; what does not answer is ended with its process."""
        for rollout in self._rollouts:
            rollout.stop.remote()
        stopping = [reference for reference, role in running.items() if role.startswith(_ROLLOUT)]
        if stopping:
            ray.wait(stopping, num_returns=len(stopping), timeout=seconds)

    def _by_role(self) -> dict[str, Any]:
        return {f"{_ROLLOUT} {number}": rollout for number, rollout in enumerate(self._rollouts)}

    def end(self, running: Mapping[Any, str]) -> None:
        """End all processes, and take what they raised last: Ray prints errors that nobody took, traceback and all.

        Args:
            running: reference → role, of the whole run.
        """
        for role in self.handles.values():
            ray.kill(role)
        references = [reference for reference, role in running.items() if self.includes(role)]
        if references:
            for reference in ray.wait(references, num_returns=len(references), timeout=_LAST_SECONDS)[0]:
                with suppress(ray.exceptions.RayError):
                    ray.get(reference)
