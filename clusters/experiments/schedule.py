"""Which runs of an experiment are missing, in which order they may start, and how long they will take."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from onibi.clusters.experiments.declaration import (
    Arm,
    CalledTrial,
    Experiment,
    TrainedTrial,
    Trial,
    evaluation_seed,
)
from onibi.clusters.experiments.result_table import ResultRow, ResultTable, config_hash
from onibi.platform.config import Settings, chosen_values
from onibi.platform.errors import ConfigError

Stage: TypeAlias = Literal["tuning", "final", "short"]


@dataclass(frozen=True)
class Job:
    """One run: a row of the table."""

    arm: Arm
    trial: Trial
    seed: int
    config_hash: str
    stage: Stage

    @property
    def key(self) -> tuple[str, int]:
        """What the row is found by."""
        return self.config_hash, self.seed

    @property
    def run_name(self) -> str:
        """Of the run's folder and log."""
        return f"{self.arm.name}-{self.seed}-{self.config_hash}"


@dataclass(frozen=True)
class ArmEstimate:
    """Runs of an arm that are missing, and the seconds of each; ``measured`` 0 marks a declared guess."""

    arm: str
    missing: int
    seconds: float
    measured: int


def trial_hash(trial: Trial, *, short: bool = False) -> str:
    """Of all that a run was told to do but its seed; another for a shortened run.

    Settings at their defaults do not count, or every new setting of Onibi's would make all rows those of other runs. A
    default that changes is a change of the code, as any other: raise the trial's ``revision``.

    Raises: ConfigError where the trial's preset is not there, its settings are not allowed, or a judge's file of the
    user's cannot be read.
    """
    told: dict[str, Any] = {"revision": trial.revision}
    if trial.preset is not None:
        told |= _settings_told(trial.preset, trial.overrides)
    if isinstance(trial, CalledTrial):
        told |= {"function": trial.function, "arguments": trial.arguments}
    else:
        protocol = {"episodes": trial.episodes, "checkpoint": trial.checkpoint, "evaluation_seed": evaluation_seed(0)}
        told["evaluation"] = protocol
        if trial.success_span is not None:
            told["success_span"] = list(trial.success_span)
    return config_hash({**told, **({"short": True} if short else {})})


def _settings_told(preset: str, overrides: Sequence[str]) -> dict[str, Any]:
    """What a run's settings resolve to on this machine, without its seed, and what the user's judge files say."""
    from onibi.clusters.run_settings import judges_chosen
    from onibi.clusters.sessions import read_run_settings

    settings = read_run_settings(preset, overrides)
    files = {}
    if settings.rewards.intrinsic is not None:  # else no label pays, and a run is the same whoever judges
        settings = judges_chosen(settings)  # "auto" is another judge on another machine
        judges = {"annotator": settings.annotator, **settings.annotators}
        files = {name: said for name, judge in judges.items() if (said := _judge_file(judge)) is not None}
    mapping = chosen_values(settings)
    mapping.pop("seed", None)
    mapping.get("evaluation", {}).pop("film_episodes", None)  # changes nothing that is measured; no trial films
    return {"settings": mapping, **({"judge_files": files} if files else {})}


def _judge_file(judge: Settings) -> str | None:
    """Hash of the user's own lexicon or prompt template; None of those that ship, which change with the code.

    Raises: ConfigError where it cannot be read.
    """
    from onibi.actors.annotators.lexicon import LEXICON_FOLDER, LexiconAnnotator, LexiconSettings
    from onibi.actors.annotators.prompt_template import read_prompt_template, shipped_prompts

    if isinstance(judge, LexiconSettings):
        is_shipped = (LEXICON_FOLDER / f"{judge.lexicon}.yaml").is_file()
        return None if is_shipped else LexiconAnnotator(judge).prompt_version
    prompt = getattr(judge, "prompt", None)  # of language models
    if not isinstance(prompt, str) or prompt in shipped_prompts():
        return None
    return config_hash({"template": repr(read_prompt_template(prompt))})


class Schedule:
    """What an experiment still has to run.

    Args:
        experiment: the declaration.
        table: rows that are there.
        arms: those asked for, in order.
        seeds: in place of each arm's; None: the declared ones.
        short: shortened runs, with the first of each arm's seeds.
        retry: rows of failed runs count as missing.
    """

    def __init__(
        self,
        experiment: Experiment,
        table: ResultTable,
        arms: Sequence[Arm],
        seeds: tuple[int, ...] | None,
        *,
        short: bool,
        retry: bool,
    ) -> None:
        self.experiment, self.table, self.short = experiment, table, short
        self.missing: dict[str, str] = {}
        """Arms that cannot run, with the reason: most often a preset that is not there."""
        self._seeds = seeds
        self._retried: set[tuple[str, int]] = set()
        self._retry = retry
        self._hashes: dict[str, str] = {}
        for arm in arms:
            overlap = set() if arm.tuning is None or short else set(self.seeds_of(arm)) & set(arm.tuning.seeds)
            if overlap:
                raise ConfigError(f"arm {arm.name} is tuned on seeds {sorted(overlap)}: judge it on others.")
        self.arms: list[Arm] = []
        for arm in arms:
            try:
                self._trials(arm)
            except ConfigError as error:
                lines = str(error).splitlines()
                counts_faults = len(lines) > 1 and lines[0].endswith(":")  # "2 faults in the settings:"
                self.missing[arm.name] = lines[1 if counts_faults else 0].strip()
            else:
                self.arms.append(arm)

    def seeds_of(self, arm: Arm) -> tuple[int, ...]:
        """Those that the arm is judged on."""
        seeds = self._seeds or self.experiment.seeds_of(arm)
        return seeds[: self.experiment.short.seeds] if self.short else seeds

    def open_jobs(self, in_flight: Collection[tuple[str, int]]) -> Iterator[Job]:
        """Runs that are missing and may start now, in the arms' order; final ones wait for their arm's tuning."""
        return (job for arm in self.arms for job in self._arm_jobs(arm) if self._is_open(job, in_flight))

    def finished(self, job: Job) -> None:
        """A row of ``job`` was added: a failed one is not tried again in this session."""
        self._retried.add(job.key)

    def tuned(self, arm: Arm) -> float | None:
        """The value that tuning chose; None where it is not over, every value failed, or nothing is tuned."""
        if arm.tuning is None:
            return None
        means: list[float] = []
        for value in arm.tuning.values:
            rows = [self.table.find(self._hash(self._changed(arm, value)), seed) for seed in self._tuning_seeds(arm)]
            if any(row is None or self._counts_as_missing(row) for row in rows):
                return None
            scores = [score_of(row, arm.figure) for row in rows if row is not None]
            means.append(float(np.mean(scores)))  # NaN where a run failed or its score is not finite
        sign = 1.0 if arm.higher_is_better else -1.0
        ranked = [-math.inf if math.isnan(mean) else sign * mean for mean in means]
        if max(ranked) == -math.inf:
            return None
        return arm.tuning.values[int(np.argmax(ranked))]

    def final_rows(self, arm: Arm) -> list[ResultRow]:
        """Rows that the arm is judged by, failed ones included, in the seeds' order."""
        if arm.name in self.missing:
            return []
        trial = self._final_trial(arm)
        if trial is None:
            return []
        found = (self.table.find(self._hash(trial), seed) for seed in self.seeds_of(arm))
        return [row for row in found if row is not None]

    def tuning_rows(self, arm: Arm) -> list[ResultRow]:
        """Rows of the arm's tuning as it is declared now, failed ones included; none of older settings."""
        if arm.tuning is None or arm.name in self.missing:
            return []
        found = (self.table.find(*job.key) for job in self._tuning_jobs(arm))
        return [row for row in found if row is not None]

    def estimates(self) -> list[ArmEstimate]:
        """For each arm with missing runs."""
        estimates = []
        for arm in self.arms:
            jobs = [job for job in self._all_jobs(arm) if self._is_open(job, ())]
            if jobs:
                seconds, measured = self._seconds(arm)
                estimates.append(ArmEstimate(arm.name, len(jobs), seconds, measured))
        return estimates

    def seconds(self, arm: Arm) -> float:
        """Expected of one run of the arm."""
        return self._seconds(arm)[0]

    def _seconds(self, arm: Arm) -> tuple[float, int]:
        hashes = {self._hash(trial) for trial in self._trials(arm)}
        rows = [row for row in self.table.rows if row["config_hash"] in hashes and row.get("status") == "ok"]
        told = (score_of(row, "wall_seconds") for row in rows)
        times = [seconds for seconds in told if math.isfinite(seconds)]  # a hand may have been at the table
        if times:
            return float(np.mean(times)), len(times)
        most = self.experiment.short.guess_seconds if self.short else math.inf
        return min(arm.guess_seconds, most), 0

    def _is_open(self, job: Job, in_flight: Collection[tuple[str, int]]) -> bool:
        if job.key in in_flight:
            return False
        row = self.table.find(*job.key)
        return row is None or self._counts_as_missing(row)

    def _counts_as_missing(self, row: ResultRow) -> bool:
        key = row["config_hash"], int(row["seed"])
        return self._retry and not math.isfinite(score_of(row, "score")) and key not in self._retried

    def _arm_jobs(self, arm: Arm) -> list[Job]:
        trial = self._final_trial(arm)
        return self._tuning_jobs(arm) if trial is None else self._final_jobs(arm, trial)

    def _all_jobs(self, arm: Arm) -> list[Job]:
        """Those of the final stage too, though it is not known yet with which value: for counting alone."""
        if arm.tuning is None:
            return self._arm_jobs(arm)
        trial = self._final_trial(arm)
        tuning = self._tuning_jobs(arm)
        if trial is None and not any(self._is_open(job, ()) for job in tuning):
            return tuning  # over, and no value came of it
        return tuning + self._final_jobs(arm, self._changed(arm, arm.tuning.values[0]) if trial is None else trial)

    def _tuning_jobs(self, arm: Arm) -> list[Job]:
        assert arm.tuning is not None, "only a tuned arm has no trial yet"
        trials = [self._changed(arm, value) for value in arm.tuning.values]
        stage = self._stage("tuning")
        return [Job(arm, trial, seed, self._hash(trial), stage) for trial in trials for seed in self._tuning_seeds(arm)]

    def _final_jobs(self, arm: Arm, trial: Trial) -> list[Job]:
        stage = self._stage("final")
        return [Job(arm, trial, seed, self._hash(trial), stage) for seed in self.seeds_of(arm)]

    def _stage(self, stage: Stage) -> Stage:
        return "short" if self.short else stage

    def _final_trial(self, arm: Arm) -> Trial | None:
        if arm.tuning is None:
            return self.experiment.trial_of(arm, short=self.short)
        value = self.tuned(arm)
        return None if value is None else self._changed(arm, value)

    def _tuning_seeds(self, arm: Arm) -> tuple[int, ...]:
        assert arm.tuning is not None, "asked of tuned arms alone"
        return arm.tuning.seeds[:1] if self.short else arm.tuning.seeds

    def _changed(self, arm: Arm, value: float) -> Trial:
        assert arm.tuning is not None, "asked of tuned arms alone"
        return self.experiment.trial_of(arm, short=self.short).changed(arm.tuning.name, value)

    def _trials(self, arm: Arm) -> list[Trial]:
        """Every trial that the arm may run. Raises: ConfigError where one of them cannot be."""
        if arm.tuning is None:
            trials = [self.experiment.trial_of(arm, short=self.short)]
        else:
            trials = [self._changed(arm, value) for value in arm.tuning.values]
        for trial in trials:
            self._hash(trial)
        return trials

    def _hash(self, trial: Trial) -> str:
        key = repr(trial)
        if key not in self._hashes:
            self._hashes[key] = trial_hash(trial, short=self.short)
        return self._hashes[key]


def score_of(row: ResultRow, figure: str) -> float:
    """The row's figure of this name; NaN where the run failed or gave none."""
    if row.get("status") != "ok":
        return math.nan
    try:
        return float(row.get(figure) or math.nan)
    except ValueError:
        return math.nan


def job_message(job: Job, runs_folder: Path) -> dict[str, object]:
    """What a worker is told, as plain values."""
    return {
        "kind": "trained" if isinstance(job.trial, TrainedTrial) else "called",
        "trial": dataclasses.asdict(job.trial),
        "seed": job.seed,
        "run_name": job.run_name,
        "runs_folder": str(runs_folder),
    }


def total_seconds(estimates: Sequence[ArmEstimate], jobs: int) -> float:
    """Wall-clock seconds of all missing runs, ``jobs`` at a time: the work shared evenly, at least the longest run."""
    work = sum(each.missing * each.seconds for each in estimates)
    return max(work / jobs, max((each.seconds for each in estimates), default=0.0))
