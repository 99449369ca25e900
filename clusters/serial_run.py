"""All roles of a run in one process, in turn, without Ray: for debugging, for exactness, for machines without Ray.

Deterministic under a seed: nothing here looks at a clock but the time budget and the figures.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from onibi.actors.evaluation import FrozenRewards, PlayedEpisode, play
from onibi.actors.rollout import Rollout
from onibi.clusters.begun_session import save_begun
from onibi.clusters.bonus_plan import make_sources
from onibi.clusters.caption_pay import make_ledger, with_pay
from onibi.clusters.reward_model_plan import SerialRewardModel
from onibi.clusters.run_journal import RunJournal, RunResult
from onibi.clusters.run_meter import RunCounters, RunMeter, figures_before
from onibi.clusters.run_plan import RunPlan
from onibi.clusters.run_state import (
    RunState,
    captions_of,
    checkpoint_parts,
    cover_lost_captions,
    feed_state_of,
    make_desk,
    newest_caption,
    open_feed,
    open_shard,
    restore_bonuses,
    restore_learner,
    ring_path,
    state_of,
    told_of_ring,
)
from onibi.clusters.serial_annotation import SerialAnnotation
from onibi.learners.learner_loop import LearnerLoop
from onibi.platform.checkpoint import Checkpoint
from onibi.platform.errors import CaptionError, ConfigError, EnvironmentFault
from onibi.platform.policy import Weights
from onibi.platform.replay.log.log_figures import log_metrics
from onibi.platform.replay.ring.file import remove_ring
from onibi.platform.rewards.table import RewardTable
from onibi.platform.rewards.table_log import RecordedTables, TableLog

log = logging.getLogger(__name__)

_INTERVAL_SECONDS = 1.0


class SerialRun:
    """One session of a run in this process.

    Args:
        plan: what to build.
        run_id: names the ring.
        journal: books what happens.
        should_stop: asked between fragments; True ends the session with a checkpoint (Ctrl-C).
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
        settings = plan.settings
        rollout_settings = dataclasses.replace(settings.actors.rollout, fragment_seconds=0.0)
        plan = dataclasses.replace(
            plan,
            settings=dataclasses.replace(
                settings, actors=dataclasses.replace(settings.actors, rollout=rollout_settings)
            ),
        )
        self._plan, self._journal, self._should_stop = plan, journal, should_stop
        self._settings = plan.settings
        self._state = RunState() if checkpoint is None else state_of(checkpoint)
        # Leases are never overdue here, so any clock that never falls will do; a real one would not repeat.
        self._desk = make_desk(plan, clock=lambda: float(self._state.env_steps))
        if checkpoint is not None:
            self._desk.restore(dict(checkpoint.tables))
            self._desk.advance(self._state.env_steps)
        self._annotation = SerialAnnotation(plan, self._desk)
        self._reward_model = SerialRewardModel(plan, self._desk, checkpoint)
        self._recorded = _recorded_tables(plan, checkpoint)
        self._told_before = figures_before(checkpoint)
        self._ring = ring_path(plan, run_id)
        self._weights: Weights | None = None
        self._ledger = make_ledger(plan, checkpoint)
        self._rollouts: list[Rollout] = []
        self._opened = ExitStack()
        self._opened.callback(self._annotation.close)
        self._table_log: TableLog | None = None
        known = None if checkpoint is None else captions_of(checkpoint)
        self._shard, kept = open_shard(plan, run_id, self._desk.intern, known)
        self._opened.callback(self._shard.close)
        try:
            self._open(checkpoint, kept)
        except BaseException:
            self._opened.close()
            if not kept:
                remove_ring(self._ring)
            raise

    def _open(self, checkpoint: Checkpoint | None, kept: bool) -> None:
        """Learner, feed and rollouts, restored from ``checkpoint`` where there is one."""
        plan, settings = self._plan, self._settings
        if checkpoint is not None:
            cover_lost_captions(self._desk, newest_caption(self._ring), self._shard.logged_captions())
            counters = self._shard.counters()
            self._state = self._state.resumed(counters.inserted_rows, kept)
            self._journal.note(told_of_ring(counters.readable_rows, kept))
            plan = self._plan = dataclasses.replace(
                plan, session=self._state.session, steps_before=(self._state.inserted_base,)
            )
            save_begun(self._journal, checkpoint, self._state)
        self._feed = open_feed(plan, self._ring, self._state.session)
        self._opened.callback(self._feed.close)
        learner = plan.make_learner()
        self._sources = make_sources(plan, self._ring)
        if self._sources is not None:
            self._opened.callback(self._sources.close)
        if checkpoint is not None:
            restore_learner(learner, checkpoint)
            restore_bonuses(self._sources, checkpoint)
            state = feed_state_of(checkpoint)
            if state is not None:
                self._feed.restore(state)
            self._feed.rebase()
        self._learner = learner
        self._drawn_before = self._state.drawn_rows - self._feed.drawn_rows
        self._loop = LearnerLoop(
            learner,
            self._feed,
            plan.make_mixer(),
            self._state.learner_incarnation,
            self._take_weights,
            settings.learner.publish_period_updates,  # type: ignore[attr-defined]
            faults=None if plan.faults is None else Path(plan.faults),
            sources=self._sources,
        )
        if plan.table_log is not None:
            self._table_log = TableLog(Path(plan.table_log), self._state.learner_incarnation)
            self._opened.callback(self._table_log.close)
        for actor in range(settings.actors.count):
            self._rollouts.append(self._make_rollout(actor))
            self._opened.callback(self._rollouts[-1].close)

    def run(self) -> RunResult:
        """Train until the budget is used up or ``should_stop`` says so; leaves no ring behind.

        Raises: EnvironmentFault, after what was learnt until then is saved; whatever else ends a run.
        """
        budget = self._settings.budget
        began, before = time.monotonic(), self._state.seconds
        meter = RunMeter(self._counters(), self._told_before)
        last_interval = last_checkpoint = began
        status = "failed"
        try:
            while True:
                for rollout in self._rollouts:
                    self._collect(rollout, meter)
                    while self._loop.ready():
                        self._loop.update()
                now = time.monotonic()
                self._state = dataclasses.replace(self._state, seconds=before + now - began)
                over = budget.is_used_up(self._state.env_steps, self._state.seconds)
                if now - last_interval >= _INTERVAL_SECONDS or over:
                    last_interval = now
                    self._interval(meter)
                if over or self._should_stop():
                    status = "finished" if over else "interrupted"
                    break
                period = self._settings.evaluation.period_env_steps
                if period is not None and self._state.env_steps >= max(self._state.next_evaluation, period):
                    self._evaluate()
                elif now - last_checkpoint >= self._settings.checkpoint.period_seconds:
                    last_checkpoint = now
                    self._save()
            if status == "finished":
                status = "finished" if self._evaluate() else "interrupted"
            else:
                self._save()
        except EnvironmentFault:
            if self._loop.updates > self._state.updates:  # nobody replaces it here, as the coordinator does
                self._save()
            raise
        finally:
            self._journal.warn(self._annotation.notes())
            self._close()
        return self._journal.close(
            "finished" if status == "finished" else "interrupted",
            self._state.env_steps,
            self._loop.updates,
            self._state.seconds,
            self._desk.caption_report(),
            self._ledger.paid_by_key,
        )

    def _collect(self, rollout: Rollout, meter: RunMeter) -> None:
        fragment = rollout.collect(self._newer_weights)
        while not self._shard.may_insert(fragment.env_steps) and self._loop.ready():
            self._loop.update()
        inserted = self._shard.insert(fragment)
        self._state = dataclasses.replace(
            self._state, env_steps=self._state.inserted_base + self._shard.counters().inserted_rows
        )
        self._shard.take_episodes()
        self._desk.see(*inserted.sightings())
        self._desk.advance(self._state.env_steps)
        table = self._newer_table()
        if table is not None:
            self._loop.set_table(table)
            self._table = table
            if self._table_log is not None:
                self._table_log.add(table, self._loop.updates, self._state.env_steps)
        paid = self._ledger.add(fragment, inserted.caption_id, self._table)
        meter.add_episodes((episode, paid.get(episode.episode_id, 0.0)) for episode in fragment.episodes)

    def _newer_table(self) -> RewardTable | None:
        """What captions are worth from now on, judged now or as it was recorded; None where nothing changed."""
        if self._recorded is not None:
            keys = self._desk.captions.caption_keys
            return self._recorded.take(self._loop.updates, self._state.env_steps, keys)
        self._annotation.turn()
        self._reward_model.turn(self._state.env_steps)
        return self._desk.table(newer_than=self._loop.table_version)

    def _make_rollout(self, actor: int) -> Rollout:
        lease = self._shard.register(actor, self._settings.actors.rollout.envs_per_actor)
        return self._plan.make_rollout(actor, lease.incarnation, lease.next_sequence)

    def _take_weights(self, weights: Weights) -> None:
        self._weights = weights

    def _newer_weights(self, version: int) -> Weights | None:
        weights = self._weights
        return weights if weights is not None and weights.version > version else None

    def _counters(self) -> RunCounters:
        return RunCounters(
            seconds=self._state.seconds,
            env_steps=self._state.env_steps,
            updates=self._loop.updates,
            drawn_rows=self._drawn_before + self._feed.drawn_rows,
        )

    def _interval(self, meter: RunMeter) -> None:
        report, shard, logged = self._loop.report(), self._shard.counters(), self._shard.log_figures()
        pacing = self._shard.pacing()
        self._journal.warn(self._annotation.notes())
        self._journal.interval(
            {
                **meter.row(self._counters()),
                **report.metrics,
                "replay/readable_rows": float(shard.readable_rows),
                **self._feed.figures(),
                **({} if logged is None else log_metrics(logged)),
                **pacing.metrics(),
                **self._annotation.statistics(),
                **self._journal.watch(self._ledger.take_pay(), self._desk.captions.key_texts),
            },
            pacing.text(),
        )

    def _save(self) -> bool:
        self._state = dataclasses.replace(
            self._state, updates=self._loop.updates, drawn_rows=self._drawn_before + self._feed.drawn_rows
        )
        bonuses = None if self._sources is None else self._sources.state()
        parts = checkpoint_parts(
            self._state,
            self._learner.state_dict(),
            with_pay(self._desk.state(), self._ledger.paid_by_key),
            self._feed.state(),
            bonus_state=bonuses,
        )
        return self._journal.save(self._state.env_steps, self._reward_model.keep(parts))

    def _evaluate(self) -> bool:
        """Save a checkpoint and play it; one whose environment raises is left out.

        Returns: False where ``should_stop`` broke that off or the disk refused the checkpoint: a resumed run plays it.
        """
        self._state = self._state.evaluated(self._settings.evaluation.period_env_steps)
        if not self._save():
            return False
        weights, rewards, env_steps = self._loop.weights(), self._frozen_rewards(), self._state.env_steps
        try:
            episodes = evaluate_weights(self._plan, weights, rewards, env_steps, self._should_stop)
        except (EnvironmentFault, CaptionError) as error:
            self._journal.note("evaluator raised; that evaluation is left out")
            log.warning("evaluator: %s; that evaluation is left out", error)
            return True
        if len(episodes) < self._settings.evaluation.episodes:
            self._journal.note("the evaluation was broken off; `onibi resume` plays it")
            return False
        self._journal.evaluate(env_steps, self._state.seconds, episodes)
        return True

    def _frozen_rewards(self) -> FrozenRewards | None:
        intrinsic = self._settings.rewards.intrinsic
        if intrinsic is None:
            return None
        return FrozenRewards(self._desk.captions, self._table, intrinsic.count_power)

    def _close(self) -> None:
        self._opened.close()
        remove_ring(self._ring)


def _recorded_tables(plan: RunPlan, checkpoint: Checkpoint | None) -> RecordedTables | None:
    path = plan.settings.annotation.replay_tables
    if path is None:
        return None
    if checkpoint is not None:
        raise ConfigError(
            f"annotation.replay_tables is {path}: a run is paid again from its first step on, so it cannot be resumed. "
            "Start it anew, or resume it with --set annotation.replay_tables=null."
        )
    return RecordedTables(Path(path).expanduser())


def evaluate_weights(
    plan: RunPlan,
    weights: Weights | None,
    rewards: FrozenRewards | None,
    seed: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[PlayedEpisode]:
    """Play the run's evaluation episodes; ``seed`` chooses the games, ``weights`` None plays at random. Fewer come back
    where ``should_stop``, asked between fragments, ended it.
    """
    evaluation = plan.settings.evaluation
    envs = min(evaluation.envs, evaluation.episodes)
    return play(plan.make_evaluation(weights, envs, seed), envs, evaluation.episodes, rewards, should_stop)
