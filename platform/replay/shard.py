"""The replay shard: leases, captions and counters around the one ring writer. A plain class, without Ray."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from onibi.platform.errors import CaptionError, LeaseError, ReplayError, SpecError
from onibi.platform.fragment import CaptionText, EpisodeStatistics, Fragment
from onibi.platform.replay.fragment_captions import FragmentCaptions
from onibi.platform.replay.fragment_texts import FragmentTexts
from onibi.platform.replay.limiter import DrawnWord, Limiter
from onibi.platform.replay.log.log_figures import LogFigures
from onibi.platform.replay.log.log_writer import LogWriter
from onibi.platform.replay.pacing import Pacing, pacing
from onibi.platform.replay.ring.ages import RowAges, RowClock, row_ages
from onibi.platform.replay.ring.file import drawn_path, remove_ring
from onibi.platform.replay.ring.layout import RingLayout, lane_slots
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.ring.writer import RingWriter
from onibi.platform.spec import ReplaySpec

log = logging.getLogger(__name__)

Resolve = Callable[[list[CaptionText]], NDArray[np.uint32]]
"""Interns captions in the run's caption table; returns their dense ids in order."""


@dataclass(frozen=True, kw_only=True)
class Lease:
    """An actor's right to insert, until the same actor registers again."""

    actor: int
    incarnation: int  # stands in each of its fragments
    first_lane: int  # of the ring's
    lanes: int  # that it has: its environments
    next_sequence: int  # of its first fragment; each further one counts up by 1


@dataclass(frozen=True, kw_only=True)
class InsertResult:
    """``repeated``: the fragment had been committed before; acknowledged, not written again."""

    repeated: bool
    caption_id: NDArray[np.uint32]
    """[E, R] dense caption of each row, 0 behind a lane's rows; [0, 0] where the fragment was repeated."""

    def sightings(self) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Distinct captions of the fragment, the empty one left out, and in how many rows each of them is."""
        captions, rows = np.unique(self.caption_id[self.caption_id != 0], return_counts=True)
        return captions, rows


@dataclass(frozen=True, kw_only=True)
class ShardCounters:
    """Figures of one shard. ``inserted_rows`` survive a restart (in the ring); the rest counts from this start."""

    inserted_rows: int  # step rows = env steps
    readable_rows: int  # committed rows still there, final rows included
    drawn_rows: int  # as the limiter counts them
    fragments: int
    repeated: int
    gaps: int  # fragments before which others are missing
    foreign_heads: int  # lanes that went on with another observation than they had left
    refused: int  # fragments refused with an error
    captions: int  # distinct captions met


class Shard:
    """Takes fragments of all actors of a node into its ring. Group = actor; lane = group × envs_per_actor + env."""

    def __init__(self, writer: RingWriter, limiter: Limiter, resolve: Resolve) -> None:
        """Take over an open writer; use ``create`` or ``reopen``.

        Raises: ReplayError where there is no room for the drawn word: the writer is closed then, a new ring removed.
        """
        self._writer, self._limiter = writer, limiter
        try:
            DrawnWord.create(drawn_path(writer.path))
        except ReplayError:
            new = not writer.committed().any()
            writer.close()
            if new:
                remove_ring(writer.path)
            raise
        self._drawn = DrawnWord(drawn_path(writer.path), writable=False)
        self._captions = FragmentCaptions(writer.path, resolve)
        self._texts = FragmentTexts(writer.path, writer.layout.spec)
        self._episodes: list[EpisodeStatistics] = []
        self._envs = np.zeros(writer.layout.groups, np.int64)
        self._log: LogWriter | None = None
        self._clock = RowClock()
        self._reader: RingReader | None = None  # of row_ages, when first asked
        self._counted, self._counted_commits = (0, 0), -1
        self._fragments = self._repeated = self._gaps = self._foreign_heads = self._refused = 0

    @classmethod
    def create(
        cls,
        path: Path | str,
        spec: ReplaySpec,
        *,
        max_actors: int,
        envs_per_actor: int,
        capacity_rows: int,
        window_rows: int,
        run_id: str,
        limiter: Limiter,
        resolve: Resolve,
    ) -> Shard:
        """A new, empty ring of ``capacity_rows`` rows, shared evenly by ``max_actors × envs_per_actor`` lanes.

        Args:
            window_rows: the longest window that will be drawn, look-back included (n for n-step learners).
        Raises: ReplayError where it exists, the memory is not there, or lanes would be too short.
        """
        lanes = max_actors * envs_per_actor
        writer = RingWriter.create(
            path,
            spec,
            groups=max_actors,
            lanes_per_group=envs_per_actor,
            slots=lane_slots(capacity_rows, lanes),
            window_rows=window_rows,
            run_id=run_id,
        )
        return cls(writer, limiter, resolve)

    @classmethod
    def reopen(cls, path: Path | str, *, run_id: str, limiter: Limiter, resolve: Resolve) -> Shard:
        """Go on with the ring that an earlier shard of this run left; actors have to register again.

        Raises: ReplayError where it is damaged, of another run, or still written.
        """
        return cls(RingWriter.open(path, run_id), limiter, resolve)

    @property
    def path(self) -> Path:
        """What readers open."""
        return self._writer.path

    @property
    def spec(self) -> ReplaySpec:
        """The row layout."""
        return self._writer.layout.spec

    @property
    def layout(self) -> RingLayout:
        """The ring's groups, lanes and columns."""
        return self._writer.layout

    def is_free(self, group: int) -> bool:
        """Whether no actor has the group."""
        return self._writer.is_free(group)

    def attach_log(self, log_writer: LogWriter) -> None:
        """Log every row from now on; ``close`` closes the log too."""
        self._log = log_writer
        self._texts.merge(log_writer.opened.texts)

    def texts(self) -> pa.Table:
        """What the hashes in Text columns stand for, as far as this shard was told: ``text_table.TEXT_SCHEMA``."""
        return self._texts.to_arrow()

    def may_register(self, group: int) -> bool:
        """Whether ``register`` and ``retire`` would not wait for the log now. Raises: as ``log_figures``."""
        if self._log is not None:
            self._log.check()
        return self._log is None or self._log.has_copied(self._lanes_of_group(group))

    def register(self, actor: int, envs: int) -> Lease:
        """Begin a new incarnation of an actor: open episodes of its lanes are closed, older incarnations refused from
        now on. Lanes of the group that it has no environment for are released.

        Raises: ReplayError where the ring has no room for the actor or its environments.
        """
        layout = self._writer.layout
        if not 1 <= envs <= layout.lanes_per_group:
            raise ReplayError(
                f"{self.path}: actor {actor} asks for {envs} lanes, allowed are 1 to {layout.lanes_per_group}; "
                "start the shard with a larger envs_per_actor"
            )
        self._wait_for_log(actor)
        incarnation = self._writer.register(actor)
        self._envs[actor] = envs
        self._tell_log(actor, layout.lanes_per_group, [])
        if envs < layout.lanes_per_group:
            self._wait_for_log(actor)
            self._writer.release_lanes(actor, envs)
        return Lease(
            actor=actor,
            incarnation=incarnation,
            first_lane=actor * layout.lanes_per_group,
            lanes=envs,
            next_sequence=0,
        )

    def retire(self, actor: int) -> None:
        """An actor is gone and not replaced: its rows are no longer drawn, its group may be registered by another one.

        Raises: ReplayError where the ring has no such actor.
        """
        if not self._writer.is_free(actor):
            self.register(actor, self._writer.layout.lanes_per_group)  # by nobody: closes its episodes, logs them
            self._wait_for_log(actor)
            self._writer.retire(actor)
            self._envs[actor] = 0

    def insert(self, fragment: Fragment) -> InsertResult:
        """Commit a fragment; may be called again with the same one.

        Raises:
            LeaseError: its incarnation is not the registered one.
            CaptionError: a caption hash came without its text.
            SpecError: two texts of a Text column have one hash.
            ReplayError: it does not fit the ring, or a hash of a Text column came without its text. Nothing was
                written in any of these cases.
        """
        try:
            return self._insert(fragment)
        except (ReplayError, CaptionError, SpecError):
            self._refused += 1
            raise

    def _insert(self, fragment: Fragment) -> InsertResult:
        incarnation, last = self._writer.lease(fragment.actor)
        if fragment.incarnation == incarnation and fragment.sequence <= last:
            self._repeated += 1
            return InsertResult(repeated=True, caption_id=np.zeros((0, 0), np.uint32))
        registered = self._envs[fragment.actor]
        if fragment.incarnation == incarnation and registered not in (0, fragment.envs):
            raise LeaseError(
                f"{self.path}: actor {fragment.actor} registered {registered} environments, its "
                f"fragment has {fragment.envs}; register again with the new number"
            )
        columns = dict(fragment.columns)
        hashes = columns.pop("caption_hash", None)
        if hashes is None:
            raise ReplayError(
                f"{self.path}: fragment of actor {fragment.actor} has no column 'caption_hash' (uint64 [E, R])"
            )
        columns["caption_id"], new_captions = self._captions.take(fragment, hashes)
        if self._log is not None:
            self._log.learn(new_captions)  # before anything is refused: they are told as new once
        new_texts = self._texts.take(fragment)
        if self._log is not None:
            self._log.learn_texts(new_texts)
            self._log.wait_for_room(*self._lanes_of(fragment))
        outcome = self._writer.insert(
            fragment.actor,
            incarnation=fragment.incarnation,
            sequence=fragment.sequence,
            rows_per_lane=fragment.rows_per_lane,
            columns=columns,
            states=fragment.states,
        )
        self._fragments += 1
        self._gaps += outcome.gap
        self._foreign_heads += outcome.foreign_heads
        if outcome.gap or outcome.foreign_heads:
            log.warning(
                "actor %d, fragment %d: %s; open episodes of these lanes were cut",
                fragment.actor,
                fragment.sequence,
                "fragments before it are missing"
                if outcome.gap
                else f"{outcome.foreign_heads} lanes do not go on where they ended",
            )
        self._episodes.extend(fragment.episodes)
        self._tell_log(fragment.actor, fragment.envs, fragment.episodes)
        return InsertResult(repeated=False, caption_id=columns["caption_id"])

    def may_insert(self, rows: int) -> bool:
        """Whether the limiter lets ``rows`` more step rows in now."""
        inserted, readable = self._counts()
        return self._limiter.may_insert(rows, inserted=inserted, drawn=self._drawn.value, readable=readable)

    def pacing(self) -> Pacing:
        """Which side the limiter holds back now, and why."""
        inserted, readable = self._counts()
        return pacing(self._limiter, inserted=inserted, drawn=self._drawn.value, readable=readable)

    def row_ages(self, now: float, newest_update: int) -> RowAges:
        """How old each lane's rows are; call it about once a second, with the same clock."""
        if self._reader is None:
            self._reader = self._writer.reader()
        return row_ages(self._reader, self._clock, now, newest_update)

    def log_has_room(self, fragment: Fragment) -> bool:
        """Whether the log lets the fragment in now; where not, ``insert`` would wait for the disk.

        Never again where the log has failed and the run is to stop then: ``log_figures`` raises that.
        """
        return self._log is None or self._log.has_room(*self._lanes_of(fragment))

    def log_figures(self) -> LogFigures | None:
        """What became of the logged rows; None without a log.

        Raises: ReplayError where the log has failed and the run is to stop then.
        """
        if self._log is None:
            return None
        self._log.check()
        return self._log.figures()

    def logged_captions(self) -> dict[int, CaptionText]:
        """Captions by id that the log held when it was attached: of earlier sessions of the run."""
        return {} if self._log is None else self._log.opened.captions

    def counters(self) -> ShardCounters:
        """Figures up to now."""
        inserted, readable = self._counts()
        return ShardCounters(
            inserted_rows=inserted,
            readable_rows=readable,
            drawn_rows=self._drawn.value,
            fragments=self._fragments,
            repeated=self._repeated,
            gaps=self._gaps,
            foreign_heads=self._foreign_heads,
            refused=self._refused,
            captions=len(self._captions),
        )

    def committed(self) -> list[int]:
        """The number of the last commit of each group, for a checkpoint."""
        return [int(number) for number in self._writer.committed()]

    def take_episodes(self) -> list[EpisodeStatistics]:
        """Statistics of the episodes that ended since the last call."""
        taken, self._episodes = self._episodes, []
        return taken

    def close(self) -> None:
        """Seal the log and free the writer's lock.

        The ring's files stay, for a resume; ``ring.file.remove_ring`` removes them.
        """
        if self._log is not None:
            self._log.close()
        self._reader = None
        self._writer.close()

    def _counts(self) -> tuple[int, int]:
        """Step rows in all of the ring's time, and committed rows that are still there."""
        commits = int(self._writer.committed().sum())
        if commits != self._counted_commits:  # an actor that waits asks some hundred times a second
            readable = self._writer.record("cursor") - self._writer.record("oldest")
            self._counted = int(self._writer.record("inserted").sum()), int(readable.sum())
            self._counted_commits = commits
        return self._counted

    def _wait_for_log(self, group: int) -> None:
        """Return when all rows of a group are copied for the log: released ones could not be any more."""
        if self._log is not None:
            self._log.wait_for_copy(self._lanes_of_group(group))

    def _lanes_of_group(self, group: int) -> slice:
        lanes = self._writer.layout.lanes_per_group
        return slice(group * lanes, (group + 1) * lanes)

    def _lanes_of(self, fragment: Fragment) -> tuple[int, NDArray[np.int64]]:
        """First lane and rows per lane, within what a ring accepts: whether the fragment fits is told by the writer."""
        layout = self._writer.layout
        rows = np.asarray(fragment.rows_per_lane, np.int64)[: layout.lanes_per_group]
        return fragment.actor * layout.lanes_per_group, np.clip(rows, 0, layout.slots // 4)

    def _tell_log(self, group: int, envs: int, episodes: list[EpisodeStatistics]) -> None:
        if self._log is None:
            return
        first = group * self._writer.layout.lanes_per_group
        ended = [replace(episode, lane=first + episode.lane) for episode in episodes]
        self._log.note(first, self._writer.record("cursor")[group, :envs], ended)
