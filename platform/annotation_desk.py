"""The annotation desk: captions come in, requests go out, labels come back, reward tables leave (design §4).

Plain state without threads, processes or clocks of its own; the run loop calls it, in serial mode directly.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from onibi.platform.annotator import AnnotationRequest
from onibi.platform.caption_queue import CaptionQueue, QueueState
from onibi.platform.captions import CaptionTable, KeyIndex, text_hash
from onibi.platform.config import Settings
from onibi.platform.errors import CaptionError
from onibi.platform.fragment import CaptionText
from onibi.platform.labels import Label, LabelTable, LabelValue
from onibi.platform.reward_table import LABELLED, NEVER_ASKED, UNLABELLED, RewardTable

log = logging.getLogger(__name__)

_VALUES = {LabelValue.HELPFUL: 1.0, LabelValue.UNHELPFUL: 0.0}


@dataclass(frozen=True, kw_only=True)
class AnnotationDeskSettings(Settings):
    """How keys wait for their labels."""

    queue_keys: int = 10_000  # most keys waiting; the oldest is dropped and comes back when it is met again
    lease_seconds: float = 120.0  # a taken key waits again after this time without a reply
    max_attempts: int = 3  # invalid replies after which a key is parked
    reuse: Literal["same_prompt", "any_prompt"] = "same_prompt"  # which labels of other runs and prompts count

    def __post_init__(self) -> None:
        if self.queue_keys < 1 or self.max_attempts < 1 or not self.lease_seconds > 0:
            raise ValueError(
                f"queue_keys {self.queue_keys} and max_attempts {self.max_attempts} must be 1 or more, "
                f"lease_seconds {self.lease_seconds} above 0"
            )


@dataclass(frozen=True, kw_only=True)
class CaptionReportRow:
    """One key in the table that a run leaves behind; ``label`` is "" while it has none, or "never asked"."""

    key: str
    example: str
    sightings: int  # rows
    label: str
    score: float
    annotator: str
    reply: str


class AnnotationDesk:
    """Caption table, queue, labels and reward table in one place.

    Args:
        settings: how keys wait.
        keys_per_caption: K.
        key_version: of the captioner.
        prompt_version: of the annotator: labels of other prompts are kept, and count with ``reuse: any_prompt`` only.
        clock: seconds, never falling; wall time in a run, a step counter in deterministic mode.
        labels: those of another run to start from.
    """

    def __init__(
        self,
        settings: AnnotationDeskSettings,
        *,
        keys_per_caption: int,
        key_version: str,
        prompt_version: str,
        clock: Callable[[], float],
        labels: LabelTable | None = None,
    ) -> None:
        self.settings = settings
        self.prompt_version = prompt_version
        self.captions = CaptionTable(keys_per_caption, key_version)
        self.labels = LabelTable() if labels is None else labels
        self._clock = clock
        self._queue = CaptionQueue(
            capacity_keys=settings.queue_keys, lease_seconds=settings.lease_seconds, max_attempts=settings.max_attempts
        )
        self._value = np.zeros(256, np.float32)
        self._labelled = np.zeros(256, np.uint8)
        self._tracked_keys = 0
        self._invalid_replies = 0
        self._unusable_labels = 0
        self._version = 0
        self._changed = True  # so that the first caller gets a table

    def intern(self, captions: list[CaptionText]) -> NDArray[np.uint32]:
        """Dense caption indices [len(captions)]; keys that need a label are offered to the queue.

        Raises: CaptionError as ``CaptionTable.intern``.
        """
        known = len(self.captions)
        try:
            indices = self.captions.intern(captions)
        finally:
            self._track_new_keys()
        new = self.captions.caption_keys[known:]
        # Only a caption with a labelled key changes what rows are worth; others are unlabelled in any table.
        self._changed |= bool(np.any(self._labelled[new[new >= 0]] == LABELLED))
        self._offer(indices)
        return indices

    def see(self, captions: NDArray[Any], rows: NDArray[Any] | None = None) -> None:
        """Captions were met in ``rows`` rows each (None: one row per entry): count them, and offer dropped keys again.

        Raises: CaptionError for an index that was not interned.
        """
        self.captions.count_sightings(captions, rows)
        self._offer(captions)

    def take(self, count: int) -> list[AnnotationRequest]:
        """At most ``count`` keys to judge, newest first; they come back after ``lease_seconds`` without a label."""
        now = self._clock()
        self._queue.expire(now)
        return [
            AnnotationRequest(key=key, key_text=self.captions.key(key).text, raw_text=self.captions.example(key))
            for key in self._queue.take(count, now)
        ]

    def has_requests(self) -> bool:
        """Whether ``take`` would give something now."""
        self._queue.expire(self._clock())
        return len(self._queue) > 0

    def put(self, labels: Iterable[Label]) -> None:
        """Take replies, late ones too. An invalid one is asked again; a key of another run is kept for who meets it."""
        labels = list(labels)
        self.labels.add(labels)
        retry, finished = [], []
        for label in labels:
            key = self.captions.key_index(label.key_hash)
            if label.value == LabelValue.INVALID:
                self._invalid_replies += 1
                if key is not None:
                    retry.append(key)
            elif not self._counts(label):
                self._unusable_labels += 1
            elif key is not None and self._labelled[key] != NEVER_ASKED:
                self._apply(key, label)
                finished.append(key)
        self._queue.finish(finished)
        parked = self._queue.parked
        self._queue.retry(retry, self._clock())
        if self._queue.parked > parked:
            log.warning(
                "%d caption keys got no readable label in %d replies and are asked no more; see the label table",
                self._queue.parked - parked,
                self.settings.max_attempts,
            )

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
        return RewardTable(
            version=self._version,
            caption_keys=self.captions.caption_keys,
            value=self._value[: self._tracked_keys].copy(),
            labelled=self._labelled[: self._tracked_keys].copy(),
        )

    def statistics(self) -> dict[str, float]:
        """Metrics, ``annotation/name``."""
        labelled = self._labelled[: self._tracked_keys]
        askable, decided = labelled != NEVER_ASKED, labelled == LABELLED
        helpful = decided & (self._value[: self._tracked_keys] > 0)
        sightings = self.captions.key_sightings
        asked_rows, decided_rows = int(sightings[askable].sum()), int(sightings[decided].sum())
        return {
            "annotation/captions": float(len(self.captions) - 1),
            "annotation/keys": float(self._tracked_keys),
            "annotation/keys_askable": float(askable.sum()),
            "annotation/keys_labelled": float(decided.sum()),
            "annotation/keys_helpful": float(helpful.sum()),
            "annotation/labelled_key_share": float(decided.sum() / askable.sum()) if askable.any() else 1.0,
            "annotation/labelled_sighting_share": decided_rows / asked_rows if asked_rows else 1.0,
            "annotation/queue_keys": float(len(self._queue)),
            "annotation/in_flight_keys": float(self._queue.in_flight),
            "annotation/parked_keys": float(self._queue.parked),
            "annotation/dropped_keys": float(self._queue.dropped),
            "annotation/expired_leases": float(self._queue.expired),
            "annotation/oldest_unlabelled_seconds": self._queue.oldest_age_seconds(self._clock()),
            "annotation/replies": float(len(self.labels)),
            "annotation/invalid_replies": float(self._invalid_replies),
            "annotation/unusable_labels": float(self._unusable_labels),
            "annotation/table_version": float(self.table_version),
        }

    def caption_report(self) -> list[CaptionReportRow]:
        """One row per key in index order, so that ``rewards_by_key`` lines up with it."""
        sightings = self.captions.key_sightings
        rows = []
        for index in range(self._tracked_keys):
            key = self.captions.key(index)
            label = self._label_of(key.text) if self._labelled[index] == LABELLED else None
            unlabelled = "never asked" if self._labelled[index] == NEVER_ASKED else ""
            rows.append(
                CaptionReportRow(
                    key=key.text,
                    example=self.captions.example(index),
                    sightings=int(sightings[index]),
                    label=unlabelled if label is None else label.value.value,
                    score=float("nan") if label is None else label.score,
                    annotator="" if label is None else label.annotator,
                    reply="" if label is None else label.reply,
                )
            )
        return rows

    def state(self) -> dict[str, pa.Table]:
        """Everything as Arrow tables ``captions``, ``keys``, ``labels``, ``queue``; the clock's reading goes along."""
        queue = self._queue.state()
        waiting = pa.table(
            {
                "key": pa.array([*(key for key, _, _ in queue.waiting), *queue.parked], pa.int32()),
                "first_offered": pa.array(
                    [*(first for _, first, _ in queue.waiting), *[0.0] * len(queue.parked)], pa.float64()
                ),
                "invalid_replies": pa.array(
                    [*(tries for _, _, tries in queue.waiting), *[0] * len(queue.parked)], pa.int32()
                ),
                "parked": pa.array([False] * len(queue.waiting) + [True] * len(queue.parked), pa.bool_()),
            }
        )
        counters = {
            "dropped": queue.dropped,
            "expired": queue.expired,
            "invalid_replies": self._invalid_replies,
            "unusable_labels": self._unusable_labels,
            "version": self._version,
            "changed": self._changed,
            "clock": self._clock(),
            "prompt_version": self.prompt_version,
        }
        return {
            **self.captions.to_arrow(),
            "labels": self.labels.to_arrow(),
            "queue": waiting.replace_schema_metadata({"counters": json.dumps(counters)}),
        }

    def restore(self, state: dict[str, pa.Table]) -> None:
        """Go on from ``state``: same indices, labels and queue; keys that were in flight are asked again.

        With another prompt version the old labels are kept and, but for ``reuse: any_prompt``, every key is asked anew.
        Raises: CaptionError where a table is missing, damaged, or of another captioner.
        """
        missing = sorted({"captions", "keys", "labels", "queue"} - set(state))
        if missing:
            raise CaptionError(f"annotation state: tables {missing} are missing among {sorted(state)}")
        captions = CaptionTable.from_arrow(state)
        mine = (self.captions.keys_per_caption, self.captions.key_version)
        if (captions.keys_per_caption, captions.key_version) != mine:
            raise CaptionError(
                f"annotation state: captions were made with K and key version "
                f"{(captions.keys_per_caption, captions.key_version)}, this run has {mine}; start a "
                "new run, its label table can start from the old one"
            )
        labels = LabelTable.from_arrow(state["labels"], source="annotation state, labels")
        counters = json.loads((state["queue"].schema.metadata or {}).get(b"counters", b"null"))
        if counters is None:
            raise CaptionError(
                "annotation state: table 'queue' has no counters in its metadata; was it written by "
                "AnnotationDesk.state?"
            )
        self.captions, self.labels = captions, labels
        self._tracked_keys = 0
        shift = self._clock() - counters["clock"]  # ages go on from where they stood, whatever the clock says now
        rows = state["queue"].to_pylist()
        same_prompt = counters["prompt_version"] == self.prompt_version
        self._queue.restore(
            QueueState(
                waiting=[
                    (KeyIndex(row["key"]), row["first_offered"] + shift, row["invalid_replies"] if same_prompt else 0)
                    for row in rows
                    if not row["parked"]
                ],
                parked=[KeyIndex(row["key"]) for row in rows if row["parked"] and same_prompt],
                dropped=counters["dropped"],
                expired=counters["expired"],
            )
        )
        self._invalid_replies, self._unusable_labels = counters["invalid_replies"], counters["unusable_labels"]
        self._track_new_keys()
        self._version, self._changed = counters["version"], counters["changed"] or not same_prompt
        if not same_prompt:
            self._offer(np.arange(len(captions)))

    def _track_new_keys(self) -> None:
        count = self.captions.key_count
        while count > len(self._value):
            self._value = np.concatenate([self._value, np.zeros_like(self._value)])
            self._labelled = np.concatenate([self._labelled, np.zeros_like(self._labelled)])
        for index in range(self._tracked_keys, count):
            key = self.captions.key(index)
            self._value[index], self._labelled[index] = 0.0, UNLABELLED if key.askable else NEVER_ASKED
            label = self._label_of(key.text) if key.askable else None
            if label is not None:
                self._apply(KeyIndex(index), label)
                self._queue.finish([KeyIndex(index)])
        self._tracked_keys = count

    def _offer(self, captions: NDArray[Any]) -> None:
        keys = self.captions.keys_of(captions)
        wanted = keys[self._labelled[keys] == UNLABELLED]
        if wanted.size:
            self._queue.offer((KeyIndex(key) for key in wanted.tolist()), self._clock())

    def _label_of(self, key_text: str) -> Label | None:
        return self.labels.get(
            text_hash(key_text), None if self.settings.reuse == "any_prompt" else self.prompt_version
        )

    def _counts(self, label: Label) -> bool:
        return self.settings.reuse == "any_prompt" or label.prompt_version == self.prompt_version

    def _apply(self, key: KeyIndex, label: Label) -> None:
        value = _VALUES[label.value]
        self._changed |= bool(self._labelled[key] != LABELLED or self._value[key] != value)
        self._value[key], self._labelled[key] = value, LABELLED
