"""The replay shards as the coordinator sees them: one, or one beside each of several learners."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from onibi.clusters.caption_pay import make_ledger
from onibi.clusters.coordinator.patient_calls import end_shard
from onibi.clusters.coordinator.role_calls import start_actor
from onibi.clusters.coordinator.roles import open_run_shard
from onibi.clusters.coordinator.shard_looks import merged_look
from onibi.clusters.coordinator.store_node import StoreRoom
from onibi.clusters.run_plan import RunPlan
from onibi.clusters.run_state import captions_of, told_of_ring
from onibi.clusters.shard_plan import plan_of_shard
from onibi.platform.checkpoint import Checkpoint
from onibi.platform.fragment import CaptionText
from onibi.platform.replay.shard_actor import OpenedShard, ShardActor
from onibi.platform.rewards.table import RewardTable

Answer = Callable[[Any, str], Any]
"""Waits for a reference of someone: ``PatientCalls``."""


class ShardTeam:
    """Starts the shards, asks all of them at once, and shares the budget of env steps out among them.

    Args:
        plan: of the run; each shard has its part of it.
        run_id: names the rings.
        hub: its handle.
        room: on whose nodes they run.
        answer: waits for a shard.
        options: of Ray, for all.
        checkpoint: to resume from; None starts anew.
    """

    def __init__(
        self,
        plan: RunPlan,
        run_id: str,
        hub: Any,
        room: StoreRoom,
        answer: Answer,
        options: dict[str, Any],
        checkpoint: Checkpoint | None,
    ) -> None:
        self._answer = answer
        self._rows_until = math.inf
        self._limits: list[float] = []
        known = None if checkpoint is None else captions_of(checkpoint)
        self.handles: dict[str, Any] = {}
        """By role: ``shard`` is the first one, ``shard 1`` the next."""
        for number in range(plan.settings.placement.shards):
            share = plan_of_shard(plan, number)
            role = "shard" if number == 0 else f"shard {number}"
            self.handles[role] = start_actor(
                ShardActor,
                {**options, **room.shard_options(number)},
                functools.partial(open_run_shard, share.for_stores(), run_id, known),
                hub,
                make_ledger(share, checkpoint),
                plan.settings.replay.lane_timeout_seconds,
                role,
            )
        self.opened: list[OpenedShard] = []
        """What each told at its start."""

    def __len__(self) -> int:
        return len(self.handles)

    def start(self, newest_table: RewardTable) -> None:
        """Open the rings. Raises: as ``answer``; what opening one of them raised."""
        table = ray.put(newest_table)
        self.opened = self._ask(lambda shard: shard.start.remote(table))

    @property
    def named(self) -> dict[str, Any]:
        """Handles by what they are called in a message."""
        return {f"the replay {role}": handle for role, handle in self.handles.items()}

    def of(self, number: int) -> Any:
        """The shard of the actor or learner with this number."""
        return list(self.handles.values())[number % len(self)]

    @property
    def rings(self) -> list[str]:
        """Path of each ring, on its shard's node."""
        return [opened.ring for opened in self.opened]

    @property
    def inserted_rows_at_start(self) -> int:
        """Step rows that the rings had counted when they were opened."""
        return sum(opened.inserted_rows for opened in self.opened)

    @property
    def rings_kept(self) -> bool:
        """Whether all rings are those of an earlier session.

        One that has counted nothing was made by a session that was killed before it wrote down how it went on: what the
        others have counted is not the whole then.
        """
        return all(opened.ring_kept and opened.inserted_rows > 0 for opened in self.opened)

    @property
    def newest_caption(self) -> int:
        """The highest caption id in any ring."""
        return max(opened.newest_caption for opened in self.opened)

    @property
    def logged_captions(self) -> dict[int, CaptionText]:
        """Captions of earlier sessions by id, from the logs."""
        return {index: text for opened in self.opened for index, text in opened.logged_captions.items()}

    def steps_before(self, env_steps: int) -> tuple[int, ...]:
        """By shard, what is to be added to the rows that its ring has counted, times the shards, for the env steps of
        the run.

        Args:
            env_steps: of the run when the rings were opened.
        """
        return tuple(env_steps - len(self) * opened.inserted_rows for opened in self.opened)

    def told_of_rings(self) -> list[str]:
        """What is told where a run is resumed: whose rings it goes on with."""
        told = [told_of_ring(opened.readable_rows, opened.ring_kept) for opened in self.opened]
        return told if len(self) == 1 else [f"shard {number}: {each}" for number, each in enumerate(told)]

    def insert_up_to(self, rows_until: float) -> None:
        """Let no more in once all rings together have taken so many step rows; see ``ShardActor.insert_up_to``."""
        self._rows_until = rows_until
        self._share_out()

    def look(self) -> dict[str, Any]:
        """All that ``ShardActor.look`` tells, of all together."""
        looks = self._ask(lambda shard: shard.look.remote())
        inserted = [look["inserted_rows"] for look in looks]
        full = any(rows >= limit for rows, limit in zip(inserted, self._limits, strict=True))
        if full and sum(inserted) < self._rows_until:
            self._share_out()
        return merged_look(looks)

    def inserted_rows(self) -> int:
        """Step rows in all of the rings' time."""
        return sum(self._ask(lambda shard: shard.inserted_rows.remote()))

    def paid_by_key(self) -> NDArray[np.float64]:
        """[keys] what each caption key has been paid in rollouts."""
        parts = self._ask(lambda shard: shard.paid_by_key.remote())
        paid = np.zeros(max(map(len, parts)))
        for part in parts:
            paid[: len(part)] += part
        return paid

    def end(self, failed: bool, leaves_ring: bool, seconds: float) -> None:
        """End all: see ``end_shard``."""
        for shard in self.handles.values():
            end_shard(shard, failed, leaves_ring, seconds)

    def _share_out(self) -> None:
        """Share what is left of the budget out evenly. Where one has used up its share while others wait for their
        learners, which wait for its learner, it gets a new one: nothing comes in while that is counted.
        """
        if len(self) == 1 or math.isinf(self._rows_until):
            self._limits = [self._rows_until] * len(self)
        else:
            inserted = self._ask(lambda shard: shard.insert_up_to.remote(0.0))
            left = (self._rows_until - sum(inserted)) / len(self)
            self._limits = [rows + left for rows in inserted]
        limits = iter(self._limits)
        self._ask(lambda shard: shard.insert_up_to.remote(next(limits)))

    def _ask(self, call: Callable[[Any], Any]) -> list[Any]:
        asked = {name: call(handle) for name, handle in self.named.items()}
        return [self._answer(reference, name) for name, reference in asked.items()]
