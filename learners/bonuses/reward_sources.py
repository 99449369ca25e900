"""What a learner's loop hands to the reward mixer beside a batch, and the modules that this comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from onibi.learners.bonuses.bonus_module import BonusModule, ModulePlace, PayingModule, part_of, prefixed
from onibi.learners.bonuses.registry import BONUS_MODULES
from onibi.platform.config import load_class
from onibi.platform.errors import CheckpointError
from onibi.platform.replay.episode_pay import EpisodePay
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.row_view import RowView
from onibi.platform.replay.samplers.draws import Batch
from onibi.platform.replay.samplers.frame_stack import FrameStack
from onibi.platform.rewards.bonus_columns import bonus_leaves
from onibi.platform.rewards.bonus_settings import (
    E3bSettings,
    bonus_column,
    is_batch_component,
    is_row_component,
)
from onibi.platform.rewards.mixer import RewardMixer, Sources
from onibi.platform.rewards.settings import INTRINSIC, RewardSettings
from onibi.platform.rewards.table import RewardTable
from onibi.platform.spec import ReplaySpec


def needs_sources(rewards: RewardSettings) -> bool:
    """Whether the mixer needs more than a batch and the table."""
    cap = rewards.intrinsic is not None and rewards.intrinsic.episode_cap is not None
    return bool(rewards.bonuses) or cap or RewardMixer(rewards).scheduled


class RewardSources:
    """Modules by the name of their bonus, the sums for ``episode_cap``, and the env steps for schedules.

    The env steps are those whose rows are in the ring's header, and ``steps_before``: they are known to every learner,
    at most one commit old.

    Args:
        rewards: of the run.
        reader: a mapping of the ring that nobody else closes.
        spec: row layout.
        stack: which leaves come as frame stacks.
        seed: of the modules' networks.
        device: where they compute.
        lanes: that are drawn from; None: all.
        steps_before: env steps of the run whose rows are in no ring any more.
        steps_per_row: env steps of the run for each row of this ring: other shards have as many.
    """

    def __init__(
        self,
        rewards: RewardSettings,
        reader: RingReader,
        spec: ReplaySpec,
        *,
        stack: FrameStack | None,
        seed: int,
        device: str,
        lanes: Sequence[int] | None = None,
        steps_before: int = 0,
        steps_per_row: int = 1,
    ) -> None:
        self._reader, self._stack = reader, stack
        self._steps_before, self._steps_per_row = steps_before, steps_per_row
        self._scheduled = RewardMixer(rewards).scheduled
        self._rows = [name for name, bonus in rewards.bonuses.items() if is_row_component(bonus)]
        self._paying = [name for name, bonus in rewards.bonuses.items() if is_batch_component(bonus)]
        self.modules: dict[str, BonusModule] = {}
        """By the bonus's name."""
        for number, (name, bonus) in enumerate(rewards.bonuses.items()):
            if is_batch_component(bonus) or isinstance(bonus, E3bSettings):
                owner = load_class(BONUS_MODULES, bonus.kind)
                numbers = isinstance(bonus, E3bSettings) or not hasattr(bonus, "scope")
                leaves = bonus_leaves(name, bonus, spec, numbers=numbers)
                self.modules[name] = owner(bonus, ModulePlace(name, reader, spec, leaves, seed + 2 * number, device))
        table = rewards.intrinsic
        capped = table is not None and table.episode_cap is not None
        self._episode_pay = EpisodePay(reader, lanes, table.count_power) if table is not None and capped else None

    def gather(self, batch: Batch, table: RewardTable | None) -> Sources:
        """What the mixer needs for a batch."""
        view = RowView(batch, self._stack)
        before: dict[str, NDArray[np.float32]] = {}
        if self._episode_pay is not None:
            before[INTRINSIC] = self._episode_pay.before(table, view.lane, view.row)
        return Sources(
            rows={name: view.column(bonus_column(name)) for name in self._rows},
            modules={name: cast("PayingModule", self.modules[name]).pay(view, table) for name in self._paying},
            paid_before=before,
            env_steps=self._env_steps() if self._scheduled else 0,
        )

    def _env_steps(self) -> int:
        return self._steps_before + self._steps_per_row * self._reader.snapshot().inserted_rows

    def learn(self) -> None:
        """Let all modules take in the rows that are new."""
        for module in self.modules.values():
            module.learn()

    def metrics(self) -> dict[str, float]:
        """``bonus/NAME_FIGURE`` of all modules."""
        return {
            f"bonus/{name}_{figure}": value
            for name, module in self.modules.items()
            for figure, value in module.metrics().items()
        }

    def weights(self) -> dict[str, NDArray[Any]]:
        """What actors need, named ``NAME.ARRAY``."""
        return {
            key: each for name, module in self.modules.items() for key, each in prefixed(name, module.weights()).items()
        }

    def state(self) -> dict[str, NDArray[Any]]:
        """Copies of all that resuming needs, named ``NAME.ARRAY``."""
        return {
            key: each for name, module in self.modules.items() for key, each in prefixed(name, module.state()).items()
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from ``state``. Raises: CheckpointError where it lacks a bonus, or has one of other settings."""
        for name, module in self.modules.items():
            mine = part_of(name, state)
            if not mine:
                raise CheckpointError(
                    f"the checkpoint knows nothing of rewards.bonuses.{name}: it was saved under other settings. "
                    "Resume with those, or start a new run."
                )
            module.restore(mine)

    def close(self) -> None:
        """Let go of the ring's memory."""
        self._reader.close()
