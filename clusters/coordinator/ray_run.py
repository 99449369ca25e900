"""The coordinator: starts the roles on a Ray cluster, watches them, replaces what dies, books what they tell."""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Callable
from typing import Any

import ray

from onibi.clusters.begun_session import save_begun
from onibi.clusters.caption_pay import with_pay
from onibi.clusters.coordinator.evaluator import Evaluator
from onibi.clusters.coordinator.hub_actor import HubActor, hub_options
from onibi.clusters.coordinator.label_team import LabelTeam, tell_learnt_scores
from onibi.clusters.coordinator.learner_team import LearnerTeam
from onibi.clusters.coordinator.patient_calls import PatientCalls
from onibi.clusters.coordinator.role_calls import (
    PROCESS_DIED,
    check_stores_live,
    deaths_told,
    first_line,
    is_restarting,
    last_notes,
    start_actor,
)
from onibi.clusters.coordinator.role_deaths import RoleDeaths
from onibi.clusters.coordinator.role_usage import signs_of_life, usage_of
from onibi.clusters.coordinator.rollout_team import RolloutTeam
from onibi.clusters.coordinator.shard_team import ShardTeam
from onibi.clusters.coordinator.store_node import StoreRoom
from onibi.clusters.coordinator.stuck_watch import StuckWatch
from onibi.clusters.run_journal import RunJournal, RunResult
from onibi.clusters.run_meter import RunCounters, RunMeter, figures_before, figures_of_look
from onibi.clusters.run_plan import RunPlan
from onibi.clusters.run_profile import RoleProfile, profile_of
from onibi.clusters.run_state import RunState, checkpoint_parts, make_desk, state_of
from onibi.learners.learner_actor import LearnerNews, LearnerSnapshot
from onibi.platform.checkpoint import Checkpoint
from onibi.platform.errors import LearnerLostError, NoCaptionsError, OnibiError, StoreLostError, TrainingError
from onibi.platform.process_usage import ProcessUsage

log = logging.getLogger(__name__)

_HEARING_SECONDS = 0.25  # for an answer of any role, between two looks at the clock
_INTERVAL_SECONDS = 1.0
_STOP_SECONDS, _SEAL_SECONDS = 10.0, 75.0  # the longer one for the shard, which seals its log
_ANNOTATOR_SECONDS = 3.0  # what does not end in it ends with its process: its labels are on disk
_MANY_CALLS: dict[str, Any] = {"max_concurrency": 10_000}  # long polls and waiting insertions, each one a coroutine


class RayRun:
    """One session of a run on the connected Ray cluster.

    Args:
        plan: what to build.
        run_id: names the ring.
        journal: books what happens.
        should_stop: asked every quarter of a second; True ends the session with a checkpoint (Ctrl-C).
        checkpoint: to resume from; None starts anew.
    """

    def __init__(
        self,
        plan: RunPlan,
        run_id: str,
        journal: RunJournal,
        should_stop: Callable[[], bool],
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self._settings, self._journal, self._should_stop = plan.settings, journal, should_stop
        self._state = RunState() if checkpoint is None else state_of(checkpoint)
        self._checkpoint = checkpoint
        self._plan, self._run_id = plan, run_id
        self._answer = PatientCalls(plan.settings.budget.patience_seconds, should_stop)
        self._learner_deaths = 0
        self._deaths = RoleDeaths(plan.settings.actors.count)
        self._running: dict[Any, str] = {}  # reference of each role's run() → whose it is
        self._drawn_before = 0
        self._rollouts: RolloutTeam | None = None
        self._usage_at_start: tuple[float, dict[str, ProcessUsage]] | None = None
        self._profile: list[RoleProfile] = []

    def run(self) -> RunResult:
        """Train until the budget is used up or ``should_stop`` says so; ends every role and removes the ring, but for
        one of an earlier session that a failed start left as it was.

        Raises:
            StoreLostError: replay shard or hub died. Where a checkpoint is there the ring stays for another session.
            TrainingError, EnvironmentFault, …: a role gave up; the checkpoints stay.
        """
        failed, leaves_ring = True, False
        try:
            with deaths_told(self._stores):
                self._start()
                finished = self._train()
                assert self._rollouts is not None, "they have trained"
                self._rollouts.stop(self._running, _STOP_SECONDS)
                if finished:
                    finished = self._evaluator.has_played(self._state.env_steps) or self._evaluate_last()
                else:
                    self._save(self._learners.last_snapshot())
                report = self._answer(self._hub.caption_report.remote(), "the hub")
                paid = self._shards.paid_by_key()
            failed = False
        except StoreLostError:
            leaves_ring = self._checkpoint is not None
            raise
        finally:
            self._end_roles(failed, leaves_ring)
        state = self._state
        return self._journal.close(
            "finished" if finished else "interrupted",
            *(state.env_steps, state.updates, state.seconds, report, paid, self._profile),
        )

    def _start(self) -> None:
        settings, checkpoint = self._settings, self._checkpoint
        desk_state = None if checkpoint is None else dict(checkpoint.tables)
        stores = self._plan.for_stores()
        self._hub = start_actor(
            HubActor,
            {**_MANY_CALLS, **hub_options(stores.annotation_table)},
            functools.partial(make_desk, stores),
            stores.judges(),
            stores.keeping_judges(),
            stores.annotation_table,
            desk_state,
            checkpoint is not None and state_of(checkpoint).updates > 0,
        )
        self._answer(self._hub.start.remote(self._state.env_steps), "the hub")
        self._learners = LearnerTeam(self._hub)
        self._room = StoreRoom(settings.placement, self._answer)
        self._learners.prepare(settings.placement, self._room)
        self._shards = shards = ShardTeam(
            *(self._plan, self._run_id, self._hub, self._room, self._answer, _MANY_CALLS, checkpoint)
        )
        shards.start(self._answer(self._hub.table_after.remote(-1, 0.0), "the hub"))
        if checkpoint is not None:
            ray.get(self._hub.cover_lost_captions.remote(shards.newest_caption, shards.logged_captions))
            self._state = state = self._state.resumed(shards.inserted_rows_at_start, shards.rings_kept)
            for told in shards.told_of_rings():
                self._journal.note(told)
            before = shards.steps_before(state.env_steps)
            self._plan = dataclasses.replace(self._plan, session=state.session, steps_before=before)
            save_begun(self._journal, checkpoint, state)
            tell_learnt_scores(stores, self._hub, checkpoint)
        shards.insert_up_to(self._state.rows_until(settings.budget.max_env_steps))
        self._start_learners(checkpoint)
        self._annotators = LabelTeam(stores, self._hub, checkpoint)
        self._running |= self._annotators.start()
        self._evaluator = Evaluator(self._plan.for_actors(), self._journal, self._hub)
        self._rollouts = RolloutTeam(self._plan, shards, self._hub)
        self._running |= self._rollouts.start()

    def _start_learners(self, checkpoint: Checkpoint | None) -> None:
        incarnation = self._state.learner_incarnation + self._learner_deaths
        before = RunState() if checkpoint is None else state_of(checkpoint)
        self._drawn_before = before.drawn_rows
        self._state = dataclasses.replace(self._state, updates=before.updates, drawn_rows=before.drawn_rows)
        others = {reference: role for reference, role in self._running.items() if not LearnerTeam.includes(role)}
        self._running = others | self._learners.start(
            self._plan, self._shards.rings, self._room, incarnation, checkpoint
        )

    def _train(self) -> bool:
        """The watch. Returns: True where the budget was used up, False where ``should_stop`` ended it."""
        budget = self._settings.budget
        before = self._state.seconds
        began: float | None = None  # training time starts with the first rows, not with the start of processes
        self._meter = RunMeter(self._counters(), figures_before(self._checkpoint))
        last_interval = last_checkpoint = time.monotonic()
        seen_steps = self._state.env_steps
        stuck = StuckWatch(
            budget.patience_seconds,
            lambda: signs_of_life(self._handles()),
            (seen_steps, self._state.updates),
            time.monotonic(),
        )
        while True:
            self._hear()
            now, over = time.monotonic(), False
            seconds = before if began is None else before + now - began
            self._state = dataclasses.replace(self._state, seconds=seconds)
            if now - last_interval >= _INTERVAL_SECONDS or budget.is_used_up(self._state.env_steps, seconds):
                last_interval = now
                look = self._shards.look()
                self._count(look["inserted_rows"])
                if began is None and self._state.env_steps > seen_steps:
                    began = now - look["first_insertion_age_seconds"]
                    self._usage_at_start = (now, usage_of(self._handles()))
                seconds = before if began is None else before + now - began
                self._state = dataclasses.replace(self._state, seconds=seconds)
                over = budget.is_used_up(self._state.env_steps, seconds)
                if began is not None and now > began:
                    if over:  # what is asked for and not heard yet was learnt in this interval
                        self._learners.stop(self._running, _STOP_SECONDS)
                    self._interval(look)
                self._journal.warn(stuck.look((self._state.env_steps, self._state.updates), look, now))
            if over or self._should_stop():
                self._take_profile()
                return over
            is_free = self._evaluator.finish(self._state.seconds, wait_seconds=0)
            period = self._settings.evaluation.period_env_steps
            due = period is not None and self._state.env_steps >= max(self._state.next_evaluation, period)
            plays = is_free and due
            saves = now - last_checkpoint >= self._settings.checkpoint.period_seconds
            # A learner may take long to answer, or never: then the watch goes on meanwhile.
            if (plays or saves) and (snapshot := self._learners.snapshot(_INTERVAL_SECONDS)) is not None:
                last_checkpoint = now
                if plays:
                    self._begin_evaluation(snapshot)
                else:
                    self._save(snapshot)

    def _handles(self) -> dict[str, Any]:
        """Actors by role, but for the evaluator's, which plays and does not answer."""
        return {
            **({} if self._rollouts is None else self._rollouts.handles),
            **self._learners.handles,
            **self._shards.handles,
            "hub": self._hub,
            **self._annotators.handles,
        }

    def _take_profile(self) -> None:
        if self._usage_at_start is not None:
            began, before = self._usage_at_start
            self._profile = profile_of(before, usage_of(self._handles()), time.monotonic() - began)

    def _hear(self) -> None:
        """Wait a moment for a role to answer, and deal with what it says."""
        self._running |= self._annotators.due()
        if self._rollouts is not None:
            self._running |= self._rollouts.due()
            self._journal.warn(self._rollouts.end_hung())
        ready, _ = ray.wait(list(self._running), num_returns=1, timeout=_HEARING_SECONDS)
        for reference in ready:
            role = self._running.pop(reference)
            try:
                answer = ray.get(reference)
            except ray.exceptions.RayError as error:
                self._replace(role, error)
                continue
            if LearnerTeam.includes(role):
                self._running |= self._learners.heard(role, answer)

    def _replace(self, role: str, error: ray.exceptions.RayError) -> None:
        """Start a role again whose process died or whose environment raised; give up where that will not help."""
        cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
        if not isinstance(cause, ray.exceptions.ActorUnavailableError):  # out of reach for a moment
            check_stores_live(cause, self._stores())
        if LabelTeam.includes(role):
            note = self._annotators.lost(role, cause)
            if note is not None:
                self._journal.note(note)
            return
        assert self._rollouts is not None, "its roles are started with it"
        if is_restarting(cause) and not LearnerTeam.includes(role):
            self._rollouts.run_later(role)
            return
        lost = isinstance(cause, LearnerLostError)
        fault = isinstance(cause, OnibiError) and not lost
        # A fault before the first row is a wrong setting, as the lack of captions is; others may be an environment's
        # whims.
        learns = LearnerTeam.includes(role)
        lasts = learns or isinstance(cause, NoCaptionsError) or self._state.env_steps == self._state.inserted_base
        if fault and lasts:
            raise cause
        if not fault and not lost and not isinstance(cause, PROCESS_DIED):
            raise TrainingError(f"{role} failed: {cause!r}. This is a fault of Onibi or of a plug-in.") from error
        self._deaths.count(role, cause, learns=learns)
        self._journal.note(f"{role} {'raised' if fault else 'died'} and was replaced")
        log.warning("%s: %s; replaced", role, first_line(cause))
        if learns:
            self._learner_deaths += 1
            self._start_learners(self._checkpoint)
        else:
            self._running[self._rollouts.run(role)] = role

    def _stores(self) -> dict[str, Any]:
        """Roles that nobody replaces, by what they are called in a message."""
        shards = self._shards.named if hasattr(self, "_shards") else {}
        return {**shards, "the hub": self._hub} if hasattr(self, "_hub") else {}

    def _count(self, inserted_rows: int) -> None:
        self._state = dataclasses.replace(self._state, env_steps=self._state.inserted_base + inserted_rows)
        self._hub.advance.remote(self._state.env_steps)
        if self._learners.news is not None:
            self._count_learner(self._learners.news)

    def _count_learner(self, told: LearnerNews | LearnerSnapshot) -> None:
        self._state = dataclasses.replace(
            self._state, updates=told.updates, drawn_rows=self._drawn_before + told.drawn_rows
        )

    def _counters(self) -> RunCounters:
        state = self._state
        return RunCounters(
            seconds=state.seconds, env_steps=state.env_steps, updates=state.updates, drawn_rows=state.drawn_rows
        )

    def _interval(self, look: dict[str, Any]) -> None:
        news = self._learners.news
        self._meter.add_episodes(look["episodes"])
        self._journal.tell_log_fault(look["log_failure"])
        row = self._meter.row(self._counters()) | figures_of_look(look, self._state.updates)
        if news is not None:
            row |= {**self._learners.take_metrics(), **news.figures, "learner/waited_seconds": news.waited_seconds}
        if self._rollouts is not None:
            row |= self._rollouts.figures()
        asked = self._hub.statistics.remote(), self._hub.notes.remote()
        annotation, notes = (self._answer(each, "the hub") for each in asked)
        self._journal.warn(notes)
        texts_of = lambda keys: self._answer(self._hub.key_texts.remote(keys), "the hub")  # noqa: E731
        row |= annotation | self._journal.watch(look["pay"], texts_of)
        self._journal.interval(row, look["held_back"])

    def _save(self, snapshot: LearnerSnapshot | None) -> bool:
        if snapshot is None:
            return False
        self._count(self._shards.inserted_rows())
        self._count_learner(snapshot)
        tables = with_pay(self._answer(self._hub.state.remote(), "the hub"), self._shards.paid_by_key())
        parts = checkpoint_parts(
            self._state,
            snapshot.learner_state,
            tables,
            snapshot.feed_state,
            snapshot.other_feeds,
            snapshot.bonus_state,
        )
        keep = self._evaluator.playing  # it may yet be named best
        saved = self._journal.save(self._state.env_steps, self._annotators.keep(parts), keep=keep)
        if saved:
            self._checkpoint = self._journal.last_checkpoint()
            self._deaths.checkpoint_saved()
        return saved

    def _begin_evaluation(self, snapshot: LearnerSnapshot) -> bool:
        """Save a checkpoint and have it played; the evaluator works meanwhile. Returns: False where it is not saved."""
        self._state = self._state.evaluated(self._settings.evaluation.period_env_steps)
        if not self._save(snapshot):
            return False
        intrinsic = self._settings.rewards.intrinsic
        rewards = None if intrinsic is None else self._hub.frozen_rewards.remote(intrinsic.count_power)
        self._evaluator.begin(snapshot.weights, rewards, self._state.env_steps)
        return True

    def _evaluate_last(self) -> bool:
        """Play what was learnt.

        Returns: False where ``should_stop`` broke that off or the disk refused the checkpoint: a resumed run plays it.
        Raises: TrainingError where the learner is gone.
        """
        if not self._evaluator.wait(self._state.seconds, self._should_stop):
            self._save(self._learners.last_snapshot())
            return False
        snapshot = self._learners.last_snapshot(self._should_stop)
        if snapshot is None and not self._should_stop():
            raise TrainingError("the learner gave no last state; resume goes on from the checkpoint before")
        if snapshot is None or not self._begin_evaluation(snapshot):
            return False
        return self._evaluator.wait(self._state.seconds, self._should_stop)

    def _end_roles(self, failed: bool, leaves_ring: bool) -> None:
        if hasattr(self, "_hub"):
            self._journal.warn(last_notes(self._hub))  # of a run that failed they may tell why
        if hasattr(self, "_learners"):
            self._learners.end()
        if self._rollouts is not None:
            self._rollouts.end(self._running)
        if hasattr(self, "_annotators"):
            self._journal.warn(self._annotators.end(self._running, _ANNOTATOR_SECONDS))
        if hasattr(self, "_evaluator"):
            self._evaluator.end()
        if hasattr(self, "_shards"):
            self._shards.end(failed, leaves_ring, _SEAL_SECONDS)
        if hasattr(self, "_room"):
            self._room.close()
        if hasattr(self, "_hub"):
            self._journal.warn(last_notes(self._hub))  # what sealing met
            ray.kill(self._hub)
