"""Figures of the annotation desk: its metrics, and the table of captions that a run leaves behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onibi.platform.annotation.caption_queue import CaptionQueue
from onibi.platform.annotation.captions import CaptionTable
from onibi.platform.annotation.key_labels import KeyLabels
from onibi.platform.annotation.labels import HELPFUL_SCORE
from onibi.platform.annotation.pair_queue import PairQueue
from onibi.platform.rewards.table import LABELLED, NEVER_ASKED


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


def caption_report(captions: CaptionTable, keys: KeyLabels) -> list[CaptionReportRow]:
    """One row per key in index order; of several labels the newest one's verdict, and the mean score of all."""
    sightings = captions.key_sightings
    rows = []
    for index in range(len(keys)):
        label = keys.newest(index) if keys.status[index] == LABELLED else None
        unlabelled = "never asked" if keys.status[index] == NEVER_ASKED else ""
        rows.append(
            CaptionReportRow(
                key=captions.key(index).text,
                example=captions.example(index),
                sightings=int(sightings[index]),
                label=unlabelled if label is None else label.value.value,
                score=float("nan") if label is None else float(keys.score[index]),
                annotator="" if label is None else label.annotator,
                reply="" if label is None else label.reply,
            )
        )
    return rows


def desk_statistics(
    captions: CaptionTable,
    keys: KeyLabels,
    queues: Sequence[CaptionQueue],
    pairs: Sequence[PairQueue],
    counters: Mapping[str, int],
    replies: int,
    now: float,
) -> dict[str, float]:
    """Metrics ``annotation/name``; of several queues sums, and the age of the oldest key in any of them."""
    askable, decided = keys.status != NEVER_ASKED, keys.status == LABELLED
    helpful = decided & (keys.score >= HELPFUL_SCORE)
    sightings = captions.key_sightings[: len(keys)]
    delays = [delay for queue in queues for delay in queue.delays_seconds]
    asked_rows, decided_rows = int(sightings[askable].sum()), int(sightings[decided].sum())
    return {
        "annotation/captions": float(len(captions) - 1),
        "annotation/keys": float(len(keys)),
        "annotation/keys_askable": float(np.count_nonzero(askable)),
        "annotation/keys_labelled": float(np.count_nonzero(decided)),
        "annotation/keys_helpful": float(np.count_nonzero(helpful)),
        "annotation/labelled_key_share": float(decided.sum() / askable.sum()) if askable.any() else 1.0,
        "annotation/labelled_sighting_share": decided_rows / asked_rows if asked_rows else 1.0,
        "annotation/queue_keys": float(sum(len(queue) for queue in queues)),
        "annotation/in_flight_keys": float(sum(queue.in_flight for queue in queues)),
        "annotation/parked_keys": float(sum(queue.parked for queue in queues)),
        "annotation/dropped_keys": float(sum(queue.dropped for queue in queues)),
        "annotation/expired_leases": float(sum(queue.expired for queue in queues)),
        "annotation/oldest_unlabelled_seconds": max((queue.oldest_age_seconds(now) for queue in queues), default=0.0),
        **{
            f"annotation/label_delay_p{share}_seconds": float(np.percentile(delays, share))
            for share in (50, 95)
            if delays
        },
        "annotation/replies": float(replies),
        "annotation/pairs_judged": float(sum(queue.judged for queue in pairs)),
        "annotation/in_flight_pairs": float(sum(queue.in_flight for queue in pairs)),
        **{f"annotation/{name}": float(value) for name, value in counters.items()},
    }
