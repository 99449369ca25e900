"""The annotation desk in a checkpoint: Arrow tables ``captions``, ``keys``, ``labels``, ``preferences``, ``queue``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from onibi.platform.annotation.caption_queue import QueueState
from onibi.platform.annotation.captions import CaptionTable, KeyIndex
from onibi.platform.annotation.labels import Judge, LabelTable, PreferenceTable
from onibi.platform.errors import CaptionError

_QUEUE_SCHEMA = pa.schema(
    [
        pa.field("judge", pa.int32()),  # index of ``judges`` in the metadata
        pa.field("key", pa.int32()),
        pa.field("first_offered", pa.float64()),
        pa.field("invalid_replies", pa.int32()),
        pa.field("parked", pa.bool_()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class DeskState:
    """What a desk goes on from."""

    captions: CaptionTable
    labels: LabelTable
    preferences: PreferenceTable
    queues: Mapping[Judge, QueueState]
    pair_draws: Mapping[Judge, int]
    counters: Mapping[str, int]
    version: int
    data_version: int
    changed: bool
    clock: float  # its reading when this was made


def desk_to_arrow(state: DeskState) -> dict[str, pa.Table]:
    """As tables."""
    rows: list[dict[str, Any]] = []
    for judge, queue in enumerate(state.queues.values()):
        rows += [
            {"judge": judge, "key": key, "first_offered": first, "invalid_replies": replies, "parked": False}
            for key, first, replies in queue.waiting
        ]
        rows += [
            {"judge": judge, "key": key, "first_offered": 0.0, "invalid_replies": 0, "parked": True}
            for key in queue.parked
        ]
    plain = {
        "judges": [
            {**asdict(judge), "dropped": queue.dropped, "expired": queue.expired, "pair_draws": state.pair_draws[judge]}
            for judge, queue in state.queues.items()
        ],
        "counters": dict(state.counters),
        "version": state.version,
        "data_version": state.data_version,
        "changed": state.changed,
        "clock": state.clock,
    }
    waiting = pa.Table.from_pylist(rows, schema=_QUEUE_SCHEMA)
    return {
        **state.captions.to_arrow(),
        "labels": state.labels.to_arrow(),
        "preferences": state.preferences.to_arrow(),
        "queue": waiting.replace_schema_metadata({"counters": json.dumps(plain)}),
    }


def desk_from_arrow(tables: Mapping[str, pa.Table], keys_per_caption: int, key_version: str) -> DeskState:
    """The state that ``desk_to_arrow`` wrote.

    Raises: CaptionError where a table is missing, damaged, or of another captioner than K and key version tell.
    """
    missing = sorted({"captions", "keys", "labels", "queue"} - set(tables))
    if missing:
        raise CaptionError(f"annotation state: tables {missing} are missing among {sorted(tables)}")
    captions = CaptionTable.from_arrow(dict(tables))
    if (captions.keys_per_caption, captions.key_version) != (keys_per_caption, key_version):
        raise CaptionError(
            f"annotation state: captions were made with K and key version "
            f"{(captions.keys_per_caption, captions.key_version)}, this run has {(keys_per_caption, key_version)}; "
            "start a new run, its label table can start from the old one"
        )
    labels = LabelTable.from_arrow(tables["labels"], source="annotation state, labels")
    preferences = PreferenceTable()  # states that were written before there were any lack the table
    if "preferences" in tables:
        preferences = PreferenceTable.from_arrow(tables["preferences"], source="annotation state, preferences")
    plain = json.loads((tables["queue"].schema.metadata or {}).get(b"counters", b"null"))
    if plain is None:
        raise CaptionError(
            "annotation state: table 'queue' has no counters in its metadata; was it written by AnnotationDesk.state?"
        )
    # A state that was written before judges were told apart: labels count as ever, who waited is offered anew.
    judges: list[dict[str, Any]] = plain.get("judges", [])
    queues: dict[Judge, QueueState] = {}
    rows = tables["queue"].to_pylist() if judges else []
    for number, told in enumerate(judges):
        mine = [row for row in rows if row["judge"] == number]
        queues[Judge(told["prompt_version"], told["model"], told["goal"])] = QueueState(
            waiting=[
                (KeyIndex(row["key"]), row["first_offered"], row["invalid_replies"])
                for row in mine
                if not row["parked"]
            ],
            parked=[KeyIndex(row["key"]) for row in mine if row["parked"]],
            dropped=told["dropped"],
            expired=told["expired"],
        )
    return DeskState(
        captions=captions,
        labels=labels,
        preferences=preferences,
        queues=queues,
        pair_draws=dict(zip(queues, (told["pair_draws"] for told in judges), strict=True)),
        counters=plain.get("counters", {}),
        version=plain["version"],
        data_version=plain.get("data_version", 0),
        changed=plain["changed"],
        clock=plain["clock"],
    )
