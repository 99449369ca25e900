"""The annotators of a Ray run as the coordinator sees them: what dies here is started again, later and later."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import Any

import ray

from onibi.actors.annotator_actor import ANNOTATOR_OPTIONS, AnnotatorActor
from onibi.clusters.coordinator.role_calls import first_line, is_restarting, start_actor, take_due
from onibi.clusters.run_plan import RunPlan
from onibi.platform.annotation.annotator import Annotator, judge_of
from onibi.platform.annotation.labels import Judge
from onibi.platform.annotation.worker_requests import Worker
from onibi.platform.config import Settings
from onibi.platform.errors import ConfigError

log = logging.getLogger(__name__)

_ROLE = "annotator"
_LONGEST_PAUSE_SECONDS = 60.0
_PLACE_SECONDS = 60.0  # in which Ray finds room for a process that it can place at all; a model is loaded later
_NOTES_SECONDS = 5.0


def annotator_options(chosen: Settings) -> dict[str, Any]:
    """What one process of an annotator with these settings asks Ray for."""
    return {
        **ANNOTATOR_OPTIONS,
        "num_cpus": getattr(chosen, "cpus", ANNOTATOR_OPTIONS["num_cpus"]),
        "num_gpus": getattr(chosen, "gpus", 0.0),
    }


def as_judge(make: Callable[[], Annotator], name: str, judge: Judge) -> Annotator:
    """The annotator that ``make`` makes in this process, where its labels are those of ``judge``.

    Args:
        make: of the annotator.
        name: of the annotator, in messages.
        judge: whose labels the run waits for.
    Raises: ConfigError where it is another judge here, whose answers would count nowhere and be paid again and again.
    """
    annotator = make()
    if (here := judge_of(annotator)) != judge:
        raise ConfigError(
            f"annotator {name} is {here} in its process on this node, where the run was started it is {judge}: it is "
            "asked nothing, as its answers would count nowhere. goal, model and prompt_version must be the same in "
            "every process and on every node (no hash() of a text, no prompt file that differs, one version of a "
            "package)"
        )
    return annotator


class AnnotatorTeam:
    """``annotation.workers`` processes of each annotator.

    Args:
        plan: what to build, without what stores do not need.
        hub: handle.
    """

    def __init__(self, plan: RunPlan, hub: Any) -> None:
        self._hub = hub
        self._deaths: dict[str, int] = {}
        self._again_at: dict[str, float] = {}  # roles that wait to be set to work again
        self._asked: dict[str, dict[str, Any]] = {}  # of Ray, by role
        self._workers: dict[str, Worker] = {}  # as the hub knows them, by role
        self._unplaced: dict[Any, str] = {}  # first answers to come → role
        self._started_at = 0.0
        self.handles: dict[str, Any] = {}
        """Actors by role."""
        settings = plan.settings.annotation
        for name in plan.annotator_settings:
            annotator = plan.make_annotator(name, settings.workers)
            table = plan.annotation_table if plan.keeps_labels(annotator) else None
            options = annotator_options(plan.annotator_settings[name])
            made = functools.partial(plan.make_annotator, name, settings.workers)
            make = functools.partial(as_judge, made, name, judge_of(annotator))
            for number in range(settings.workers):
                role = f"{_ROLE} {name} {number}"
                self._asked[role] = options
                self._workers[role] = Worker(name, number)
                self.handles[role] = start_actor(AnnotatorActor, options, make, self._workers[role], settings, table)

    @staticmethod
    def includes(role: str) -> bool:
        """Whether a role is one of this team's."""
        return role.startswith(f"{_ROLE} ")

    def start(self) -> dict[Any, str]:
        """Set all to work. Returns: reference → role, for the watch."""
        self._started_at = time.monotonic()
        self._unplaced = {handle.usage.remote(): role for role, handle in self.handles.items()}
        return {self._set_to_work(role): role for role in self.handles}

    def lost(self, role: str, cause: BaseException) -> str | None:
        """A role died or raised: it is set to work again after a pause. Returns: what to note; None for old news.

        Raises: ConfigError where that is why it could not begin at all; of a later process, which another node may have
            got, it is told as of any other death: training goes on.
        """
        if is_restarting(cause):
            self._again_at[role] = time.monotonic() + 1.0
            return None
        if isinstance(cause, ConfigError) and role not in self._deaths:
            raise cause
        self._deaths[role] = self._deaths.get(role, 0) + 1
        pause = min(2.0 ** (self._deaths[role] - 1), _LONGEST_PAUSE_SECONDS)
        self._again_at[role] = time.monotonic() + pause
        self._hub.end_work.remote(self._workers[role])
        log.warning("%s: %s; it is set to work again in %.0f s", role, cause, pause)
        return f"{role} was lost and is replaced; training goes on: {first_line(cause)}"

    def due(self) -> dict[Any, str]:
        """Set to work who waited long enough, and tell whom Ray has no room for. Returns: as ``start``."""
        if self._unplaced and time.monotonic() - self._started_at >= _PLACE_SECONDS:
            self._warn_of_unplaced()
        return {self._set_to_work(role): role for role in take_due(self._again_at)}

    def end(self, running: dict[Any, str], seconds: float) -> list[str]:
        """Let all end after the answer at hand and seal their labels; what does not answer ends with its process.

        Returns: what they told the hub since it was last asked: of a short run it may be all.
        """
        for handle in self.handles.values():
            handle.stop.remote()
        references = [reference for reference, role in running.items() if self.includes(role)]
        if references:
            ray.wait(references, num_returns=len(references), timeout=seconds)
        for handle in self.handles.values():
            ray.kill(handle)
        try:
            notes: list[str] = ray.get(self._hub.notes.remote(), timeout=_NOTES_SECONDS)
        except ray.exceptions.RayError as error:  # the run ends because of the hub, and says so
            log.debug("no last notes of the hub: %s", error)
            return []
        return notes

    def _warn_of_unplaced(self) -> None:
        """Once: what has no process yet is silent, and would stay so for the whole run."""
        for reference in ray.wait(list(self._unplaced), num_returns=len(self._unplaced), timeout=0)[0]:
            del self._unplaced[reference]
        for role in self._unplaced.values():
            log.warning(
                "%s has no process after %.0f s: Ray has no room on any node for the %g CPUs and %g GPUs that it asks "
                "for (annotator.cpus, annotator.gpus; `ray status` shows what is free). Training goes on without it",
                role,
                _PLACE_SECONDS,
                self._asked[role]["num_cpus"],
                self._asked[role]["num_gpus"],
            )
        self._unplaced = {}

    def _set_to_work(self, role: str) -> Any:
        return self.handles[role].run.remote(self._hub)
