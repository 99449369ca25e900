"""The shard as a Ray actor: admits fragments in turn, and tells the hub which captions were met (Ray shell)."""

from __future__ import annotations

import asyncio
import copy
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from onibi.platform.annotation.captions import text_hash
from onibi.platform.errors import LeaseError
from onibi.platform.fragment import CaptionText, EpisodeStatistics, Fragment
from onibi.platform.fragment_batch import from_batch
from onibi.platform.hub_calls import raised_there
from onibi.platform.hub_log import tell_warnings
from onibi.platform.policy import updates_of
from onibi.platform.process_usage import ProcessUsage, process_usage
from onibi.platform.replay.actor_leases import ActorLeases
from onibi.platform.replay.log.log_figures import log_metrics
from onibi.platform.replay.pacing import InsertionLine, WaitMeter
from onibi.platform.replay.ring.file import remove_ring
from onibi.platform.replay.sending_order import SendingOrder
from onibi.platform.replay.shard import Lease, Resolve, Shard
from onibi.platform.rewards.episode_ledger import EpisodeLedger
from onibi.platform.rewards.table import RewardTable

log = logging.getLogger(__name__)

_RECHECK_SECONDS = 0.005  # of the log's room, by the one insertion at the head of the line
_SIGHTINGS_SECONDS = 0.5
_TABLE_WAIT_SECONDS = 10.0
_TABLE_PAUSE_SECONDS = 0.1  # between two tables: each new caption may make one, and fragments come by the hundred
_HUB_RETRY_SECONDS = 1.0
_LANES_RECHECK_SECONDS = 0.25  # of free lanes, by an actor that waits for some


@dataclass(frozen=True, kw_only=True)
class OpenedShard:
    """What the coordinator is told of a shard that has started."""

    ring: str  # path on its node
    ring_kept: bool  # the ring is that of an earlier session of the run
    newest_caption: int  # highest caption id in the ring's rows
    inserted_rows: int
    readable_rows: int
    logged_captions: dict[int, CaptionText]  # of earlier sessions, from the log


@ray.remote(num_cpus=0.05)
class ShardActor:
    """One ring and its writer. Insertions wait in the order in which they came, the first one for the limiter; those of
    one actor in the order in which it sent them.

    Args:
        open_shard: opens the ring in this process, given how captions are resolved; also returns whether the ring is
            that of an earlier session, and its highest caption id.
        hub: the hub's handle.
        ledger: books what captions are paid in this process.
        lane_timeout_seconds: silence of an actor after which another one may take its lanes.
        role: what it is called where its warnings are told.
    """

    def __init__(
        self,
        open_shard: Callable[[Resolve], tuple[Shard, bool, int]],
        hub: Any,
        ledger: EpisodeLedger,
        lane_timeout_seconds: float,
        role: str = "shard",
    ) -> None:
        tell_warnings(role, hub.note.remote)
        self._caption_ids: dict[int, int] = {}
        # Raised by `start`: of an exception in a constructor Ray tells no more than its text, traceback and all.
        self._fault: Exception | None = None
        try:
            self._shard, self._kept, self._newest_caption = open_shard(self._resolve)
            self._leases = ActorLeases(self._shard, lane_timeout_seconds, time.monotonic())
        except Exception as error:  # noqa: BLE001 (raised later)
            self._fault = error
        self._registrations: Counter[int] = Counter()  # of each actor: a dead one's must not take a living one's lanes
        self._waiting_for_lanes: set[int] = set()
        self._inserting: Counter[int] = Counter()  # by group; who waits here is not silent
        self._hub = hub
        self._ledger = copy.deepcopy(ledger)  # what Ray hands over is read-only
        self._table: RewardTable | None = None
        self._waits = WaitMeter()
        self._line = InsertionLine(self._waits)
        self._order = SendingOrder()
        self._log_waited_seconds = 0.0
        self._last_row = math.inf
        self._first_insertion: float | None = None
        self._sightings: dict[int, int] = {}
        self._episodes: list[tuple[EpisodeStatistics, float]] = []
        self._newest_versions: dict[int, int] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._task_fault: Exception | None = None  # raised by `look`: nobody waits for the background work

    async def start(self, newest_table: RewardTable) -> OpenedShard:
        """Begin the background work; call once. Raises: what opening the ring raised."""
        if self._fault is not None:
            raise self._fault
        self._table = newest_table
        self._tasks = [
            asyncio.create_task(self._repeat(self._follow_table)),
            asyncio.create_task(self._repeat(self._send_sightings)),
        ]
        counters = self._shard.counters()
        return OpenedShard(
            ring=str(self._shard.path),
            ring_kept=self._kept,
            newest_caption=self._newest_caption,
            inserted_rows=counters.inserted_rows,
            readable_rows=counters.readable_rows,
            logged_captions=self._shard.logged_captions(),
        )

    async def register(self, actor: int, envs: int) -> Lease:
        """A lease for a new incarnation of an actor, when there are lanes for it; ``Lease.actor`` is its group."""
        self._registrations[actor] += 1
        mine = self._registrations[actor]
        while (lease := self._lease(actor, envs)) is None:
            self._waiting_for_lanes.add(actor)
            await asyncio.sleep(_LANES_RECHECK_SECONDS)
            if self._registrations[actor] != mine:
                raise LeaseError(f"actor {actor} has registered again meanwhile; this registration is void")
        self._waiting_for_lanes.discard(actor)
        self._order.begin(lease.actor, lease.incarnation, lease.next_sequence)
        self._newest_versions.pop(lease.actor, None)  # of whoever had the lanes before: it acts no more
        return lease

    async def insert_up_to(self, step_rows: float) -> int:
        """Let no more in once the ring has taken ``step_rows`` in all: the fragment that gets there is the last.

        Returns: how many it has taken.
        """
        self._last_row = step_rows
        return self._shard.counters().inserted_rows

    async def insert(self, batch: pa.RecordBatch) -> None:
        """Commit a fragment when the limiter lets it in; answered when the next one may be sent.

        Raises: as ``Shard.insert``.
        """
        fragment = from_batch(batch)
        self._inserting[fragment.actor] += 1
        try:
            await self._insert(fragment)
        finally:
            self._inserting[fragment.actor] -= 1
            self._leases.heard(fragment.actor, time.monotonic())

    async def _insert(self, fragment: Fragment) -> None:
        await self._order.turn(fragment.actor, fragment.incarnation, fragment.sequence)
        async with self._line.turn(f"actor {fragment.actor}", lambda: self._may_insert(fragment.env_steps)):
            began = time.monotonic()
            while not self._shard.log_has_room(fragment):
                await asyncio.sleep(_RECHECK_SECONDS)
            self._log_waited_seconds += time.monotonic() - began
            await self._learn_captions(fragment.new_captions)
            inserted = self._shard.insert(fragment)
            self._shard.take_episodes()
            if inserted.repeated:
                return
            if self._first_insertion is None:
                self._first_insertion = time.monotonic()
            self._meet(zip(*(part.tolist() for part in inserted.sightings()), strict=True))
            assert self._table is not None, "start() comes before the first fragment"
            paid = self._ledger.add(fragment, inserted.caption_id, self._table)
            self._episodes += [(episode, paid.get(episode.episode_id, 0.0)) for episode in fragment.episodes]
            self._newest_versions[fragment.actor] = int(fragment.columns["policy_version"].max(initial=-1))

    def _age_of_first_insertion(self) -> float:
        return 0.0 if self._first_insertion is None else time.monotonic() - self._first_insertion

    def _may_insert(self, rows: int) -> bool:
        return self._shard.may_insert(rows) and self._shard.counters().inserted_rows < self._last_row

    async def look(self) -> dict[str, Any]:
        """Counters, and the episodes that ended since the last look with their intrinsic returns.

        Raises: ReplayError where the log has failed and the run is to stop then; what the background work failed of.
        """
        if self._task_fault is not None:
            raise self._task_fault
        logged = self._shard.log_figures()
        episodes, self._episodes = self._episodes, []
        updates = updates_of(np.array(list(self._newest_versions.values()), np.int64))
        ages = self._shard.row_ages(time.monotonic(), int(updates.max(initial=0)))
        pacing = self._shard.pacing()
        waiting = {"actors/waiting_for_lanes": float(len(self._waiting_for_lanes))}
        return {
            **asdict(self._shard.counters()),
            "first_insertion_age_seconds": self._age_of_first_insertion(),
            "waited_seconds": self._waits.seconds_for("learner"),
            "pacing": pacing.metrics() | ages.metrics() | waiting,
            "held_back": pacing.text(),
            "log": {} if logged is None else log_metrics(logged),
            "log_failure": "" if logged is None else logged.failure,
            "log_waited_seconds": self._log_waited_seconds,
            "policy_updates": updates.tolist(),
            "episodes": episodes,
            "pay": self._ledger.take_pay(),
        }

    async def usage(self) -> ProcessUsage:
        """Processor time, and how long insertions waited for the limiter and for the log's disk."""
        waited = self._waits.seconds_for("learner")
        return process_usage({"insertions waited": waited, "insertions waited for the log": self._log_waited_seconds})

    async def inserted_rows(self) -> int:
        """Step rows in all of the ring's time; unlike ``look``, takes no episodes away."""
        return self._shard.counters().inserted_rows

    async def paid_by_key(self) -> NDArray[np.float64]:
        """[keys] what each caption key has been paid in rollouts."""
        return self._ledger.paid_by_key

    async def committed(self) -> list[int]:
        """The last commit of each group, for a checkpoint."""
        return self._shard.committed()

    async def close(self, failed: bool = False, leaves_ring: bool = False) -> None:
        """Seal the log and remove the ring: a run that ends in order leaves no memory behind. What stays is a ring that
        another session will want: where that is known (``leaves_ring``), or an earlier session's that a run has failed
        to go on with, before it inserted anything.
        """
        if self._fault is not None:
            return
        for task in self._tasks:
            task.cancel()
        untouched = self._kept and self._shard.counters().fragments == 0
        self._shard.close()
        if not leaves_ring and not (failed and untouched):
            remove_ring(self._shard.path)

    def _lease(self, actor: int, envs: int) -> Lease | None:
        now = time.monotonic()
        for group, count in self._inserting.items():
            if count:
                self._leases.heard(group, now)
        return self._leases.register(actor, envs, now)

    async def _learn_captions(self, captions: list[CaptionText]) -> None:
        """Ask the hub for all unknown captions at once, before the ring is written: nothing waits inside a commit."""
        unknown = {text_hash(caption.text): caption for caption in captions}
        unknown = {name: caption for name, caption in unknown.items() if name not in self._caption_ids}
        if unknown:
            indices = await self._hub.intern.remote(list(unknown.values()))
            self._caption_ids.update(zip(unknown, indices.tolist(), strict=True))

    def _resolve(self, captions: list[CaptionText]) -> NDArray[np.uint32]:
        return np.array([self._caption_ids[text_hash(caption.text)] for caption in captions], np.uint32)

    async def _repeat(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do a piece of background work for ever. A hub that is out of reach for a moment does not end it."""
        is_told = False
        while True:
            try:
                await work()
            except ray.exceptions.RayError as error:
                if (fault := raised_there(error)) is not None:
                    self._task_fault = fault
                    return
                if not is_told:
                    is_told = True
                    log.warning("the hub does not answer (%s); it is asked again", str(error).partition("\n")[0])
                await asyncio.sleep(_HUB_RETRY_SECONDS)
            except Exception as error:  # noqa: BLE001 (raised later)
                self._task_fault = error
                return

    async def _follow_table(self) -> None:
        version = -1 if self._table is None else self._table.version
        table = await self._hub.table_after.remote(version, _TABLE_WAIT_SECONDS)
        if table is not None:
            self._table = table
            await asyncio.sleep(_TABLE_PAUSE_SECONDS)

    async def _send_sightings(self) -> None:
        await asyncio.sleep(_SIGHTINGS_SECONDS)
        if not self._sightings:
            return
        met, self._sightings = self._sightings, {}
        captions, rows = np.array(list(met), np.uint32), np.array(list(met.values()), np.int64)
        try:
            await self._hub.see.remote(captions, rows)
        except ray.exceptions.RayError:
            self._meet(met.items())  # the next ones take them along
            raise

    def _meet(self, sightings: Iterable[tuple[int, int]]) -> None:
        """Count captions that were met, with the rows of each, until the hub has them."""
        for caption, rows in sightings:
            self._sightings[caption] = self._sightings.get(caption, 0) + rows
