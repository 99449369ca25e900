"""The annotation desk: captions come in, requests go out, labels come back, reward tables leave (docs/annotation.md).

Plain state without threads, processes or clocks of its own; the run loop calls it, in serial mode directly.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from onibi.platform.annotation.annotator import AnnotationRequest, PairRequest, Request
from onibi.platform.annotation.caption_queue import CaptionQueue, Rank
from onibi.platform.annotation.captions import CaptionTable, KeyIndex, text_hash
from onibi.platform.annotation.desk_report import CaptionReportRow, caption_report, desk_statistics
from onibi.platform.annotation.desk_state import DeskState, desk_from_arrow, desk_to_arrow
from onibi.platform.annotation.desk_table import reward_columns
from onibi.platform.annotation.docket import Docket
from onibi.platform.annotation.key_labels import KeyLabels, labelled_keys
from onibi.platform.annotation.labels import Judge, Label, LabelTable, Preference, PreferenceTable
from onibi.platform.annotation.pair_queue import PairQueue, RecentCaptions
from onibi.platform.annotation.score_uncertainty import uncertainty
from onibi.platform.annotation.settings import AnnotationSettings, idle_settings
from onibi.platform.annotation.sightings_window import SightingsWindow
from onibi.platform.fragment import CaptionText
from onibi.platform.rewards.table import LABELLED, NEVER_ASKED, RewardTable
from onibi.platform.rewards.table_component import TableComponentSettings
from onibi.platform.rewards.training import LabelledKeys, MemberScores

log = logging.getLogger(__name__)


class AnnotationDesk:
    """Caption table, queues, labels, preferences and reward table in one place.

    Args:
        settings: what is asked, and how labels count.
        keys_per_caption: K.
        key_version: of the captioner.
        judges: those of the run, whose labels count together; others' are kept, and count with ``reuse: any_prompt``
            only. Annotators with one judge share its queue.
        clock: seconds, never falling; wall time in a run, a step counter in deterministic mode.
        asks: keys one by one, or pairs of keys; None: keys.
        reward: how labels and scores become values; None pays nothing.
        window_rows: over how many of the newest rows a model's scores are normalised; None: all.
        seed: of the drawn pairs and the control ``permuted``; None: 0.
    """

    def __init__(
        self,
        settings: AnnotationSettings,
        *,
        keys_per_caption: int,
        key_version: str,
        judges: Sequence[Judge],
        clock: Callable[[], float],
        asks: Literal["keys", "pairs"] | None = None,
        reward: TableComponentSettings | None = None,
        window_rows: int | None = None,
        seed: int | None = None,
    ) -> None:
        self.settings = settings
        self.judges = tuple(dict.fromkeys(judges))
        self.asks = asks or "keys"
        self.captions = CaptionTable(keys_per_caption, key_version)
        self.labels = LabelTable()
        self.preferences = PreferenceTable()
        self._clock = clock
        self._seed = seed or 0
        self._env_steps = 0
        self._reward, self._window = reward, SightingsWindow(window_rows)
        self._scores: MemberScores | None = None
        self._figures: Mapping[str, float] = {}
        self._counters = dict.fromkeys(("invalid_replies", "unusable_labels", "asked_keys", "asked_pairs"), 0)
        self._version = self._data_version = 0
        self._changed = True  # so that the first caller gets a table
        for idle in idle_settings(settings, None if reward is None else reward.kind):
            log.warning(idle)
        self._begin()

    def _begin(self) -> None:
        desk = self.settings.desk
        limits: dict[str, Any] = {"lease_seconds": desk.lease_seconds, "max_attempts": desk.max_attempts}
        self._dockets = {
            judge: Docket(
                CaptionQueue(capacity_keys=desk.queue_keys, **limits),
                PairQueue(self.settings.pairs, **limits, seed=self._seed + number),
            )
            for number, judge in enumerate(self.judges)
        }
        self._recent = RecentCaptions(self.settings.pairs.recent_captions)
        self._keys = KeyLabels(self.judges, self.settings.votes, any_prompt=desk.reuse == "any_prompt")
        self._put_records: set[tuple[Any, ...]] = {_identity(record) for record in (*self.labels, *self.preferences)}
        self._read_records: set[tuple[Any, ...]] = set()

    def intern(self, captions: list[CaptionText]) -> NDArray[np.uint32]:
        """Dense caption indices [len(captions)]; keys that need a label are offered to the queues.

        Raises: CaptionError as ``CaptionTable.intern``.
        """
        known = len(self.captions)
        try:
            indices = self.captions.intern(captions)
        finally:
            self._track_new_keys()
        new = self.captions.caption_keys[known:]
        self._note_change(self._has_value(new[new >= 0]))
        self._offer(indices)
        return indices

    def see(self, captions: NDArray[Any], rows: NDArray[Any] | None = None) -> None:
        """Captions were met in ``rows`` rows each (None: one row per entry): count them, and offer dropped keys again.

        Raises: CaptionError for an index that was not interned.
        """
        self.captions.count_sightings(captions, rows)
        self._offer(captions)

    def advance(self, env_steps: int) -> None:
        """So many env steps were made: labels that ``delay_steps`` held back may pay now."""
        held_back, self._env_steps = self._held_back, max(self._env_steps, env_steps)
        self._changed |= held_back and not self._held_back
        self._window.note(self._env_steps, self.captions.key_sightings)

    def take(self, count: int, judge: Judge | None = None) -> list[AnnotationRequest]:
        """At most ``count`` keys for a judge (None: the first) to judge; they come back after ``lease_seconds``."""
        judge = self.judges[0] if judge is None else judge
        queue, now = self._dockets[judge].keys, self._clock()
        queue.expire(now)
        taken = queue.take(count, now, self._rank())
        self._counters["asked_keys"] += len(taken)
        return [self._request(key, self._keys.next_vote(judge, key), queue.lease(key)) for key in taken]

    def take_pairs(self, count: int, judge: Judge | None = None) -> list[PairRequest]:
        """At most ``count`` pairs of keys for a judge to compare; likewise."""
        pairs = self._dockets[self.judges[0] if judge is None else judge].pairs
        taken = pairs.take(count, self._clock(), self._recent)
        self._counters["asked_pairs"] += len(taken)
        return [
            PairRequest(first=self._request(pair[0]), second=self._request(pair[1]), lease=pairs.lease(pair))
            for pair in taken
        ]

    def waits_for(self, request: Request, judge: Judge) -> bool:
        """Whether a taken request is in flight still, under the lease that it was taken with."""
        return self._dockets[judge].holds(request)

    def renew(self, requests: Iterable[Request], judge: Judge) -> list[Request]:
        """Those of taken requests that are in flight still; their leases last as if they had begun now."""
        return self._dockets[judge].renew(requests, self._clock())

    def note_asked(self, requests: Sequence[Request], times: Literal[1, -1]) -> None:
        """Taken requests were not asked after all (-1), or are asked now."""
        for request in requests:
            self._counters["asked_keys" if isinstance(request, AnnotationRequest) else "asked_pairs"] += times

    def give_back(self, requests: Iterable[Request], judge: Judge | None = None) -> None:
        """Taken requests that their annotator will not answer: they wait again at once, unless they were handed on."""
        self._dockets[self.judges[0] if judge is None else judge].give_back(requests, self._clock())

    def put(self, records: Iterable[Label | Preference]) -> None:
        """Take replies, late ones too. An invalid one is asked again; a key of another run is kept for who meets it."""
        records = list(records)
        new = [record for record in records if _identity(record) not in self._read_records]
        self._put_records.update(map(_identity, new))
        parked = sum(docket.keys.parked for docket in self._dockets.values())
        for record in records:
            if not record.is_readable:
                self._retry(record)
        self._add(new)
        newly = sum(docket.keys.parked for docket in self._dockets.values()) - parked
        if newly > 0:
            log.warning(
                "%d caption keys got no readable label in %d replies and are asked no more; see the label table",
                newly,
                self.settings.desk.max_attempts,
            )

    def learn(self, records: Iterable[Label | Preference]) -> None:
        """Take what was read from a table on disk, where replies of this run may be, too: those count once.

        One that cannot be read changes nothing: it may be another run's, and no attempt of this one. This run's own is
        an attempt when it is put.
        """
        known = self._put_records | self._read_records
        records = [record for record in records if _identity(record) not in known]
        self._read_records.update(map(_identity, records))
        self._add(records)

    def training_data(self, newer_than: int) -> LabelledKeys | None:
        """What a reward model learns from; None where there is nothing newer, or labels are held back still."""
        if self._held_back or self._data_version <= newer_than:
            return None
        return labelled_keys(self.captions, self._keys, self.preferences.valid(self.judges), self._data_version)

    def set_scores(self, scores: MemberScores) -> None:
        """Take a reward model's newest scores."""
        self._scores = scores
        self._note_change(changed=True)

    @property
    def table_version(self) -> int:
        """Version of the table that ``table`` would give; from 1, rising."""
        return self._version + self._changed

    def table(self, newer_than: int) -> RewardTable | None:
        """The newest reward table, or None where its version is not above ``newer_than``. The first version is 1."""
        if self._changed:
            self._version += 1
            self._changed = False
        if self._version <= newer_than:
            return None
        found = reward_columns(
            self._reward,
            self._keys,
            self._window.counts(self.captions.key_sightings, self._env_steps),
            self._scores,
            held_back=self._held_back,
            seed=self._seed,
        )
        self._figures = found.figures
        return RewardTable(self._version, self.captions.caption_keys, found.value, found.labelled, found.columns)

    def statistics(self) -> dict[str, float]:
        """Metrics, ``annotation/name``."""
        counters = {**self._counters, "duplicate_labels": self._keys.duplicates, "table_version": self.table_version}
        queues = [docket.keys for docket in self._dockets.values()]
        pairs = [docket.pairs for docket in self._dockets.values()]
        replies = len(self.labels) + len(self.preferences)
        figures = desk_statistics(self.captions, self._keys, queues, pairs, counters, replies, self._clock())
        if self._env_steps:
            asked = self._counters["asked_keys"] + self._counters["asked_pairs"]
            figures["annotation/asked_per_million_steps"] = 1e6 * asked / self._env_steps
        return {**figures, **self._figures, **({} if self._scores is None else self._scores.metrics)}

    def caption_report(self) -> list[CaptionReportRow]:
        """One row per key in index order, so that ``rewards_by_key`` lines up with it."""
        return caption_report(self.captions, self._keys)

    def state(self) -> dict[str, pa.Table]:
        """Everything as Arrow tables ``captions``, ``keys``, ``labels``, ``preferences``, ``queue``."""
        return desk_to_arrow(
            DeskState(
                captions=self.captions,
                labels=self.labels,
                preferences=self.preferences,
                queues={judge: docket.keys.state() for judge, docket in self._dockets.items()},
                pair_draws={judge: docket.pairs.draws for judge, docket in self._dockets.items()},
                counters=self._counters,
                version=self._version,
                data_version=self._data_version,
                changed=self._changed,
                clock=self._clock(),
            )
        )

    def restore(self, state: dict[str, pa.Table]) -> None:
        """Go on from ``state``: same indices, labels and queues; what was in flight is asked again.

        A judge that is new has its keys asked anew, but for ``reuse: any_prompt``; old labels are kept.
        Raises: CaptionError where a table is missing, damaged, or of another captioner.
        """
        former = desk_from_arrow(state, self.captions.keys_per_caption, self.captions.key_version)
        self.captions, self.labels, self.preferences = former.captions, former.labels, former.preferences
        self._begin()
        shift = self._clock() - former.clock  # ages go on from where they stood, whatever the clock says now
        new = [judge for judge in self.judges if judge not in former.queues]
        for judge, docket in self._dockets.items():
            if judge not in new:
                docket.keys.restore(former.queues[judge].later(shift))
                docket.pairs.draws = former.pair_draws[judge]
        self._track_new_keys()
        self._finish_pairs(self.preferences)
        self._counters |= former.counters
        self._version, self._data_version = former.version, former.data_version
        same = set(former.queues) == set(self.judges)
        self._changed = former.changed or not same
        keys = np.arange(len(self._keys), dtype=np.int32)
        for judge, docket in self._dockets.items():
            missing = self._keys.missing(judge, keys)
            if judge in new:
                docket.keys.offer(map(KeyIndex, np.flatnonzero(missing == self.settings.votes).tolist()), self._clock())
            further = np.flatnonzero((missing > 0) & (missing < self.settings.votes))
            docket.keys.offer_further(map(KeyIndex, further.tolist()))

    @property
    def _held_back(self) -> bool:
        return self._env_steps < self.settings.delay_steps

    def _has_value(self, keys: NDArray[np.int32]) -> bool:
        """Whether the table may pay any of these keys; a new caption without one is worth 0, as unknown ones are."""
        if self._scores is not None and bool(np.any(keys < self._scores.members.shape[1])):
            return True
        is_paid_unlabelled = self._reward is not None and self._reward.control == "all_ones"
        return is_paid_unlabelled or bool(np.any(self._keys.status[keys] == LABELLED))

    def _note_change(self, changed: bool) -> None:
        self._changed |= changed and not self._held_back

    def _request(self, key: int, vote: int = 0, lease: int = 0) -> AnnotationRequest:
        text, example = self.captions.key(key).text, self.captions.example(key)
        return AnnotationRequest(key=KeyIndex(key), key_text=text, raw_text=example, vote=vote, lease=lease)

    def _rank(self) -> Rank | None:
        order = self.settings.queue.order
        if order == "newest":
            return None
        if order == "most_frequent":
            sightings = self.captions.key_sightings
            return lambda keys: sightings[keys]
        uncertain = uncertainty(self._scores, len(self._keys))
        return lambda keys: uncertain[keys]

    def _track_new_keys(self) -> None:
        before, count = len(self._keys), self.captions.key_count
        hashes = [text_hash(self.captions.key(index).text) for index in range(before, count)]
        for index, key_hash in zip(range(before, count), hashes, strict=True):
            self._keys.append(self.captions.key(index).askable, self.labels.valid(key_hash))
        if count > before:
            self._data_version += 1
            for judge, docket in self._dockets.items():
                keys = np.arange(before, count, dtype=np.int32)
                known = keys[self._keys.missing(judge, keys) == 0]
                docket.keys.finish(map(KeyIndex, known.tolist()), self._clock())
                for key_hash in hashes:
                    self._finish_pairs(docket.unheard.pop(key_hash, ()))

    def _offer(self, captions: NDArray[Any]) -> None:
        if self.asks == "pairs":
            for caption in np.unique(np.asarray(captions)).tolist():
                keys = self.captions.keys_of(np.array([caption]))
                self._recent.see(caption, keys[self._keys.status[keys] != NEVER_ASKED])
            return
        keys = self.captions.keys_of(captions)
        for judge, docket in self._dockets.items():
            docket.offer(keys, self._keys.missing(judge, keys), self.settings.votes, self._clock())

    def _add(self, records: list[Label | Preference]) -> None:
        labels = [record for record in records if isinstance(record, Label)]
        preferences = [record for record in records if isinstance(record, Preference)]
        self.labels.add(labels)
        self.preferences.add(preferences)
        for label in labels:
            if label.is_readable:
                self._add_label(label)
        self._finish_pairs(preferences)

    def _retry(self, record: Label | Preference) -> None:
        """Ask again what an annotator of this run gave no readable answer to, or no more."""
        self._counters["invalid_replies"] += 1
        docket = self._dockets.get(record.judge)
        if isinstance(record, Label):
            key = self.captions.key_index(record.key_hash)
            if docket is not None and key is not None:
                docket.keys.retry([key], self._clock())
            return
        first, second = map(self.captions.key_index, (record.first_hash, record.second_hash))
        if docket is not None and first is not None and second is not None:
            docket.pairs.retry([(first, second)])

    def _add_label(self, label: Label) -> None:
        if not self._keys.counts(label):
            self._counters["unusable_labels"] += 1
            return
        key = self.captions.key_index(label.key_hash)
        if key is None:
            return
        own = self._dockets.get(label.judge)
        # What waits or is in flight asks for the first vote that is missing: an answer to another one leaves it there.
        is_answer = own is not None and self._keys.next_vote(label.judge, key) == label.vote
        self._note_change(self._keys.add(key, label))
        self._data_version += 1
        for judge, docket in self._dockets.items():
            missing = int(self._keys.missing(judge, np.array([key]))[0])
            if missing == 0 or (docket is own and is_answer):
                docket.keys.finish([key], self._clock())
            if missing > 0 and docket is own and is_answer:
                docket.keys.offer_further([key])

    def _finish_pairs(self, preferences: Iterable[Preference]) -> None:
        for preference in preferences:
            if not preference.is_readable:
                continue
            docket = self._dockets.get(preference.judge)
            first, second = map(self.captions.key_index, (preference.first_hash, preference.second_hash))
            if docket is None:
                self._counters["unusable_labels"] += 1
            else:
                self._data_version += docket.finish_pair(preference, first, second)


def _identity(record: Label | Preference) -> tuple[Any, ...]:
    """Tells one reply from another, wherever it was read from."""
    if isinstance(record, Label):
        return record.key_hash, record.prompt_version, record.model, record.vote, record.time_seconds
    return record.first_hash, record.second_hash, record.prompt_version, record.model, record.time_seconds
