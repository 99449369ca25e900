"""Rewards frozen when a row came in, as a replay buffer that stores them would have it: arms of `relabelling` alone.

Onibi pays a row when it is trained on, by the newest reward table. Here a row is paid for ever by the table that was
the newest when it was inserted: no column is written, but for each table the place of every lane at that moment is
kept, and rows find their table by it. That is what a column written at insertion would hold, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onibi.actors.rollout import Rollout
from onibi.clusters.experiments.success_curve import success_figures
from onibi.clusters.experiments.trial_runs import check_whole
from onibi.clusters.run_journal import RunJournal, RunResult
from onibi.clusters.run_meter import RunMeter
from onibi.clusters.run_plan import RunPlan, plan_run
from onibi.clusters.serial_run import SerialRun
from onibi.clusters.sessions import read_run_settings
from onibi.learners.learner import Learner, Update
from onibi.platform.config import to_mapping
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.samplers.windows import Windows
from onibi.platform.rewards.mixer import NO_SOURCES, MixedRewards, RewardMixer, Sources
from onibi.platform.rewards.table import UNLABELLED, RewardTable
from onibi.platform.run_folder import create_run

Mode = Literal["gather", "frozen", "frozen_labelled"]
"""Paid by the newest table; by the one at insertion; likewise, and rows that had no label then are not learned from."""


@dataclass(frozen=True)
class _Rows:
    """Some rows of a batch, [N, …] each: what the mixer reads."""

    reward: NDArray[np.float32]
    used: NDArray[np.bool_]
    caption_id: NDArray[np.uint32]
    caption_count: NDArray[np.uint16]


class FrozenRewards:
    """A mixer that pays each row by the table which was the newest when it was inserted.

    Args:
        mixer: pays under one table.
        lanes: L of the ring.
    """

    def __init__(self, mixer: RewardMixer, lanes: int) -> None:
        self._mixer = mixer
        self._tables: list[RewardTable | None] = [None]
        self._since: NDArray[np.int64] = np.zeros((1, lanes), np.int64)  # [tables, L], first row that each one pays
        self.labelled: NDArray[np.bool_] = np.zeros(0, np.bool_)
        """[B] of the batch that was mixed last: whether every caption of the window had its labels at insertion."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._mixer, name)

    def note(self, table: RewardTable, cursor: NDArray[np.int64]) -> None:
        """Rows from ``cursor`` [L] on, one absolute number a lane, are paid by ``table``."""
        self._tables.append(table)
        self._since = np.concatenate([self._since, cursor[None]])

    def mix(self, rows: Windows, table: RewardTable | None, sources: Sources = NO_SOURCES) -> MixedRewards:
        """Rewards as ``RewardMixer.mix``, but by the rows' own tables; ``table`` says which is the newest alone."""
        total = np.zeros_like(rows.reward)
        components = {name: np.zeros_like(rows.reward) for name in self._mixer.components}
        labelled = np.ones(rows.used.shape, bool)
        parts: list[tuple[float, int]] = []
        for version, chosen in self._by_table(rows):
            paying = self._tables[version]
            part = _Rows(rows.reward[chosen], rows.used[chosen], rows.caption_id[chosen], rows.caption_count[chosen])
            mixed = self._mixer.mix(part, paying, sources)
            total[chosen] = mixed.total
            for name, values in mixed.components.items():
                components[name][chosen] = values
            if paying is None:
                labelled[chosen] = part.caption_id == 0
            else:
                labelled[chosen] = paying.caption_status[paying.caption_rows(part.caption_id)] != UNLABELLED
            parts.append((mixed.labelled_share, len(part.reward)))
        self.labelled = np.asarray((labelled | ~rows.used).all(axis=1))
        return MixedRewards(
            total=total,
            components=components,
            labelled_share=float(np.average([share for share, _ in parts], weights=[count for _, count in parts])),
            clipped_share=0.0,
            table_version=-1 if table is None else table.version,
        )

    def _by_table(self, rows: Windows) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """Each table that pays a row of the batch, with the rows [B, n] that it pays."""
        place = rows.generation[:, None] + np.arange(rows.reward.shape[1])  # of step i: row generation + i
        versions = (self._since[:, rows.lane][:, :, None] <= place).sum(axis=0) - 1
        for version in np.unique(versions).tolist():
            yield version, versions == version


class LabelledRowsLearner:
    """A learner that learns from windows alone whose captions had their labels at insertion.

    The others weigh nothing and what is left is averaged over: as if a batch of these windows had been drawn.
    """

    def __init__(self, learner: Learner, rewards: FrozenRewards) -> None:
        self._learner, self._rewards = learner, rewards

    def __getattr__(self, name: str) -> Any:
        return getattr(self._learner, name)

    def update(self, windows: Windows, reward: NDArray[np.float32]) -> Update:
        """One gradient step; a batch without a single such window moves nothing but Adam's moments."""
        kept = self._rewards.labelled
        weight = np.where(kept, windows.weight * np.float32(len(kept) / max(1, int(kept.sum()))), np.float32(0))
        return self._learner.update(replace(windows, weight=weight.astype(np.float32)), reward)


@dataclass(frozen=True)
class _FrozenPlan(RunPlan):
    """A run's plan whose mixer freezes rewards."""

    frozen: FrozenRewards | None = None
    labelled_alone: bool = False

    def make_mixer(self) -> RewardMixer:
        assert self.frozen is not None, "made with the plan"
        return self.frozen  # type: ignore[return-value]  # whatever it lacks it has from its mixer

    def make_learner(self) -> Learner:
        learner = super().make_learner()
        assert self.frozen is not None, "made with the plan"
        return LabelledRowsLearner(learner, self.frozen) if self.labelled_alone else learner  # type: ignore[return-value]


class _FrozenRun(SerialRun):
    """A serial run that tells its mixer which rows each table was there for."""

    def _collect(self, rollout: Rollout, meter: RunMeter) -> None:
        before = getattr(self, "_table", None)
        super()._collect(rollout, meter)
        if self._table is not before and self._table is not None:
            assert isinstance(self._plan, _FrozenPlan), "as it was given"
            assert self._plan.frozen is not None, "made with the plan"
            reader = RingReader(self._ring)
            try:
                self._plan.frozen.note(self._table, reader.snapshot().cursor.copy())
            finally:
                reader.close()


def run(*, seed: int, mode: Mode, preset: str, overrides: Sequence[str], span: tuple[int, int]) -> dict[str, Any]:
    """A serial run whose rewards are paid as ``mode`` says: a trial. Its folder is gone when it is over.

    Args:
        seed: of the run.
        mode: see ``Mode``.
        preset: of the run.
        overrides: of the preset.
        span: env steps between which success is summed up.
    Returns: ``success_area``, ``steps_to_80``, ``env_steps``, ``updates``, ``train_seconds`` and the ``curve``.
    Raises: TrainingError where the run did not end by its budget of env steps, with an evaluation.
    """
    settings = read_run_settings(preset, [*overrides, f"seed={seed}"])
    plan = plan_run(settings)
    owner: type[SerialRun] = SerialRun
    if mode != "gather":
        frozen = FrozenRewards(plan.make_mixer(), plan.lanes)
        plan = _FrozenPlan(**vars(plan), frozen=frozen, labelled_alone=mode == "frozen_labelled")
        owner = _FrozenRun
    with TemporaryDirectory(prefix="onibi-relabelling-") as folder:
        record = create_run(Path(folder), f"{mode}-{seed}")
        record.write_config(to_mapping(settings))
        journal = RunJournal(record, settings, display=False)
        result: RunResult = owner(plan, record.record().run_id, journal, lambda: False).run()
    check_whole(result, settings.budget.max_env_steps, f"relabelling, {mode}, seed {seed}")
    return {
        **success_figures(result.evaluations, span),
        "env_steps": result.env_steps,
        "updates": result.updates,
        "train_seconds": result.seconds,
        "judge": "success",
        "curve": " ".join(f"{row['env_steps']:.0f}:{row['success_rate']:.6g}" for row in result.evaluations),
    }
