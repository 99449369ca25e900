"""One session of a run from start to end: settings, folder, lock, signals, and the run loop that was asked for."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from onibi.clusters.plan_checks import check_judge, check_learner, check_same_kinds, check_serial
from onibi.clusters.reports.figures import bytes_text, count_text, duration_text
from onibi.clusters.run_film import film_best
from onibi.clusters.run_journal import RunJournal, RunResult, go_on_from
from onibi.clusters.run_plan import RunPlan, plan_run
from onibi.clusters.run_settings import BudgetSettings, RunSettings
from onibi.clusters.run_state import RunState, state_of
from onibi.clusters.shard_plan import check_shards
from onibi.platform.checkpoint import Checkpoint, list_checkpoints, load_checkpoint
from onibi.platform.config import read_settings, to_mapping
from onibi.platform.errors import ConfigError, OnibiError, RunInUseError
from onibi.platform.history import read_history
from onibi.platform.presets import find_document
from onibi.platform.replay.log.log_files import location_of
from onibi.platform.replay.log.segment_writer import RetentionSettings
from onibi.platform.rewards.table_log import FOLDER as TABLE_LOG_FOLDER
from onibi.platform.run_folder import RunFolder, create_run, find_run
from onibi.platform.tracking import end_tracked_run

log = logging.getLogger(__name__)

PRESETS = "onibi.clusters.presets"


def read_run_settings(config: str | Path | Mapping[str, Any], overrides: Sequence[str]) -> RunSettings:
    """Settings of a run from a preset's name, a YAML file or a mapping. Raises: ConfigError with every fault."""
    if isinstance(config, Mapping):
        return read_settings(RunSettings, config, overrides=overrides)
    return read_settings(RunSettings, find_document(config, PRESETS), overrides=overrides)


def train(
    config: str | Path | Mapping[str, Any],
    overrides: Sequence[str],
    serial: bool,
    name: str | None,
    runs_folder: Path,
    display: bool,
) -> RunResult:
    """See ``onibi.clusters.train``."""
    plan = plan_run(read_run_settings(config, overrides))
    check_shards(plan)  # a limiter that could lock is refused here, before a folder is made
    plan.make_annotators()  # a lexicon that cannot be read, likewise
    check_judge(plan)
    check_learner(plan)  # and a learner whose settings do not fit the rewards
    if serial:
        check_serial(plan)
    else:
        _check_distributed(plan.settings)
    wanted = name or (Path(str(config)).stem if not isinstance(config, Mapping) else "run")
    folder = create_run(runs_folder, wanted)
    if folder.name != wanted:
        log.info("a run named %s is there already: this one is %s", wanted, folder.name)
    folder.write_config(to_mapping(plan.settings))
    folder.update(serial=serial)
    try:
        return _session(folder, plan, serial, lambda: None, display)
    except OnibiError:
        kept = any(folder.artifacts.iterdir())  # a batch that could not be learned from
        if not (kept or list_checkpoints(folder.checkpoints) or read_history(folder.history)):
            shutil.rmtree(folder.path)  # it never began (too little memory, say): nothing to look at or to resume
        raise


def resume(run: str, runs_folder: Path, serial: bool | None, overrides: Sequence[str], display: bool) -> RunResult:
    """See ``onibi.clusters.resume``."""
    folder = find_run(runs_folder, run)
    settings = read_settings(RunSettings, folder.read_config(), source=str(folder.config), overrides=overrides)
    plan = plan_run(settings)
    former = folder.read_config()
    if overrides:
        check_same_kinds(read_settings(RunSettings, former, source=str(folder.config)), settings)

    def begin() -> Checkpoint:
        if not list_checkpoints(folder.checkpoints):
            _refuse_unsaved(folder, settings)
        checkpoint = load_checkpoint(folder.checkpoints)
        _check_budget(folder, settings.budget, state_of(checkpoint), BudgetSettings(**former.get("budget", {})))
        if overrides:
            folder.write_config(to_mapping(plan.settings))
        return checkpoint

    check_shards(plan)  # before a ring that was kept could be made again for settings that nothing can run with
    if serial is None:
        serial = folder.record().serial
    if serial:
        check_serial(plan)
    else:
        _check_distributed(plan.settings)
    reached, status = _newest_step(folder), folder.record().status
    try:
        return _session(folder, plan, serial, begin, display)
    except RunInUseError:
        raise
    except OnibiError:
        if overrides and _newest_step(folder) == reached:
            folder.write_config(former)  # nothing was learnt under the new settings; they may be why it failed
            if status == "finished":
                folder.update(status=status)  # as it is, with those that it had
                end_tracked_run(settings.tracking, folder.record().run_id, folder.root, "FINISHED")
        raise


def _refuse_unsaved(folder: RunFolder, settings: RunSettings) -> NoReturn:
    """Note that a run which no checkpoint was saved of has failed. Raises: ConfigError."""
    record = folder.record()
    if record.status == "running":  # it was killed and could not say so itself
        folder.update(status="failed")
        end_tracked_run(settings.tracking, record.run_id, folder.root, "KILLED")
    raise ConfigError(
        f"{folder.name} ended before its first checkpoint, so there is nothing to go on from. Start it anew: "
        f"onibi train {folder.config}"
    )


def _check_budget(folder: RunFolder, budget: BudgetSettings, state: RunState, former: BudgetSettings) -> None:
    """Whether a run may go on. Raises: ConfigError where it is finished and its budget is used up, or where it has got
    beyond the budget that it is given now.
    """
    name = folder.path.name
    if folder.record().status != "finished":
        # What was killed at its last evaluation still has that to do, under the budget that it had.
        if budget.is_used_up(state.env_steps, state.seconds) and not former.is_used_up(state.env_steps, state.seconds):
            raise ConfigError(
                f"{name} has made {state.env_steps:,} env steps in {state.seconds:.0f} s already: "
                f"budget.max_env_steps {budget.max_env_steps} and max_seconds {budget.max_seconds} leave nothing to "
                "train. Raise them, or leave them out to go on with those that it had"
            )
        return
    if budget.max_env_steps is not None and state.env_steps >= budget.max_env_steps:
        raise ConfigError(
            f"{name} is finished: it has {state.env_steps:,} env steps, budget.max_env_steps is "
            f"{budget.max_env_steps:,}. To train on, raise it: onibi resume {name} --set "
            f"budget.max_env_steps={2 * state.env_steps}"
        )
    if budget.max_seconds is not None and state.seconds >= budget.max_seconds:
        raise ConfigError(
            f"{name} is finished: it has trained for {state.seconds:.0f} s, budget.max_seconds is "
            f"{budget.max_seconds:g}. To train on, raise it: onibi resume {name} --set "
            f"budget.max_seconds={2 * state.seconds:.0f}"
        )


def _check_distributed(settings: RunSettings) -> None:
    """Whether several processes can do what is asked for. Raises: ConfigError where only a serial run can."""
    tables = settings.annotation.replay_tables
    if tables is not None:
        raise ConfigError(
            f"annotation.replay_tables is {tables}: several processes never come by the same rows again. Train with "
            "--serial, or set it to null."
        )


def _newest_step(folder: RunFolder) -> int:
    """Env steps of the newest checkpoint, −1 where there is none; a session may save the one it found anew."""
    return max((entry.step for entry in list_checkpoints(folder.checkpoints)), default=-1)


def _session(
    folder: RunFolder, plan: RunPlan, serial: bool, begin: Callable[[], Checkpoint | None], display: bool
) -> RunResult:
    """``begin`` gives the checkpoint to go on from; called when the run is this process's."""
    run_id = folder.record().run_id
    plan = dataclasses.replace(
        plan.with_annotation_table(folder.path.parent),
        log_location=location_of(plan.settings.replay.log, folder.path, run_id),
        faults=str(folder.artifacts.absolute()),
        table_log=str((folder.path / TABLE_LOG_FOLDER).absolute()),
        spending=str(folder.path.absolute() / "spending"),  # counted on when the run is resumed
    )
    with folder.lock(), _stop_signals() as should_stop:
        checkpoint = begin()

        def film() -> Path | None:
            should_stop.told = "the run has finished; ending its film and what is left to send"
            return film_best(folder, plan, should_stop)

        journal = RunJournal(folder, plan.settings, display, film)
        folder.update(status="running", serial=serial)  # only now: what cannot begin leaves the run as it was
        if plan.log_location is not None:
            journal.note(f"replay log in {plan.log_location}, {_limits(plan.settings.replay.log.retention)}")
        if plan.annotation_table is not None:
            journal.note(f"labels are kept in {plan.annotation_table}, shared by all runs that name it")
        try:
            if checkpoint is not None:
                checkpoint = go_on_from(journal, checkpoint, plan.settings.evaluation.period_env_steps)
            if serial:
                from onibi.clusters.serial_run import SerialRun

                return SerialRun(plan, run_id, journal, should_stop, checkpoint).run()
            # Here, as a serial run has no need of Ray, which takes half a second.
            from onibi.clusters.coordinator.ray_session import ray_session
            from onibi.clusters.coordinator.store_losses import run_through_losses

            with ray_session(plan):
                return run_through_losses(plan, run_id, journal, should_stop, checkpoint)
        except BaseException as error:
            journal.abandon("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
            raise


def _limits(retention: RetentionSettings) -> str:
    limits = []
    if retention.bytes is not None:
        limits.append(bytes_text(retention.bytes))
    if retention.rows is not None:
        limits.append(f"{count_text(retention.rows)} rows")
    if retention.age_seconds is not None:
        limits.append(duration_text(retention.age_seconds))
    return f"at most {', '.join(limits)}" if limits else "all of it is kept"


class _ShouldStop:
    """Whether an orderly end was asked for: the first signal does, a second one ends at once."""

    def __init__(self) -> None:
        self._asked = False
        self.told = "saving a checkpoint and ending"
        """What the first signal sets off, in words."""

    def __call__(self) -> bool:
        return self._asked

    def ask(self, number: int, _: FrameType | None) -> None:
        """Take a signal. Raises: KeyboardInterrupt at the second one."""
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        log.warning("%s: %s; again to end at once", signal.Signals(number).name, self.told)


@contextmanager
def _stop_signals() -> Iterator[_ShouldStop]:
    """Ctrl-C, SIGTERM, and SIGHUP of a terminal that was closed ask for an orderly end; a second one ends at once."""
    should_stop = _ShouldStop()
    heard = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
        heard.append(signal.SIGHUP)
    try:
        before = {number: signal.signal(number, should_stop.ask) for number in heard}
    except ValueError:  # not in the main thread: whoever called us handles signals
        yield should_stop
        return
    try:
        yield should_stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
