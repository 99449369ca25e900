"""Whether rows make sense beyond their checksums: generations that rise, episodes that end where their flags say."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from onibi.platform.counted import counted
from onibi.platform.errors import SegmentError
from onibi.platform.replay.datasets.row_columns import LaneRows, joined, lanes_of
from onibi.platform.replay.log.log_reader import Damage, ReplayLog, Segment
from onibi.platform.replay.log.segment_format import spec_of_segment
from onibi.platform.replay.text_table import text_columns
from onibi.platform.spec import ROLE_FINAL, ROLE_STEP

_CHECKED = ("role", "terminated", "truncated", "episode_id", "step")
_GAPS_TOLD = 2
"""Gaps of one segment that are told one by one."""


def verify_log(log: ReplayLog) -> tuple[list[Damage], list[str]]:
    """Read everything: checksums, row counts, generations of each lane, borders of episodes.

    Returns: damage, by file; and what is no damage but worth knowing: torn files, rows that the log never got.
    """
    damage = log.verify()
    damaged = {found.name for found in damage}
    notes = [f"{name}: torn, its segment was never sealed; no part of the log" for name in log.torn]
    known = _known_texts(log)
    newest: dict[tuple[int, int], LaneRows] = {}
    removed = 0
    for segment in log.segments:
        name = segment.rows_path.rsplit("/", 1)[-1]
        if name in damaged:
            # What follows cannot be compared with what cannot be read; a missing segment is told once.
            for lane in segment.lanes:
                newest.pop((segment.shard, lane), None)
            continue
        try:
            lanes, texts = _segment_lanes(log, segment)
        except SegmentError as error:
            if log.removed(segment):
                removed += 1
            else:
                damage.append(Damage(name=name, fault=str(error)))
            for lane in segment.lanes:
                newest.pop((segment.shard, lane), None)
            continue
        notes += [f"{name}: {note}" for note in _lost_texts(lanes, texts, known)]
        gaps: list[tuple[int, int, int]] = []
        for rows in lanes:
            place = (segment.shard, rows.lane)
            before = newest.get(place)
            both = rows if before is None else joined([before, rows])
            damage += [Damage(name=name, fault=fault) for fault in _faults(both)]
            gaps += _gaps(both)
            newest[place] = rows.part(len(rows) - 1, len(rows))
        notes += [f"{name}: {note}" for note in _gap_notes(gaps)]
    if removed:
        notes.append(f"{removed} segments were removed by the run's retention meanwhile; not all of them was checked")
    return damage, notes


def _segment_lanes(log: ReplayLog, segment: Segment) -> tuple[list[LaneRows], tuple[str, ...]]:
    """The lanes with what is checked of them, and the names of Text columns. By the segment's own layout: that of the
    log is read from its newest segment, which may be the damaged one.
    """
    table = log.read(segment)
    spec = spec_of_segment(table.schema)
    texts = text_columns(spec)
    lanes = [
        LaneRows(
            lane=rows.lane,
            generation=rows.generation,
            columns={name: rows.columns[name] for name in (*_CHECKED, *texts)},
        )
        for rows in lanes_of(spec, table)
    ]
    return lanes, texts


def _known_texts(log: ReplayLog) -> frozenset[int] | None:
    """Hashes whose texts the log has; None where that cannot be told, as ``ReplayLog.verify`` says already."""
    try:
        return frozenset(log.texts()["text_hash"].to_pylist())
    except SegmentError:
        return None


def _lost_texts(lanes: list[LaneRows], columns: tuple[str, ...], known: frozenset[int] | None) -> Iterator[str]:
    if known is None or not lanes:
        return
    for name in columns:
        hashes = np.unique(np.concatenate([rows.columns[name].reshape(-1) for rows in lanes])).tolist()
        lost = [hashed for hashed in hashes if hashed and hashed not in known]
        if lost:
            yield f"hashes in {name!r} that have no text in the log, as it died with its process: {len(lost)}"


def _gaps(rows: LaneRows) -> Iterator[tuple[int, int, int]]:
    """(lane, first row, last row) of what is not there."""
    for at in np.flatnonzero(np.diff(rows.generation) > 1).tolist():
        yield rows.lane, int(rows.generation[at]) + 1, int(rows.generation[at + 1]) - 1


def _gap_notes(gaps: list[tuple[int, int, int]]) -> Iterator[str]:
    """One for each gap of a segment, or one for all: a run that was killed leaves one in every lane."""
    if len(gaps) <= _GAPS_TOLD:
        for lane, first, last in gaps:
            yield f"lane {lane}: rows {first} to {last} are not in the log; no window crosses the gap"
        return
    rows = sum(last - first + 1 for _, first, last in gaps)
    lanes = sorted({lane for lane, _, _ in gaps})
    yield (
        f"{counted(rows, 'row')} of {counted(len(lanes), 'lane')} ({lanes[0]} to {lanes[-1]}) are not in the log; no "
        f"window crosses the {counted(len(gaps), 'gap')}"
    )


def _faults(rows: LaneRows) -> Iterator[str]:
    """Each kind of fault once, with the first row that shows it."""
    generation, columns = rows.generation, rows.columns
    if (np.diff(generation) <= 0).any():
        at = int(np.argmax(np.diff(generation) <= 0))
        yield f"lane {rows.lane}: row {int(generation[at + 1])} comes after row {int(generation[at])}"
        return
    role, flagged = columns["role"], (columns["terminated"] | columns["truncated"]) != 0
    in_piece = (np.diff(generation) == 1) & (role[:-1] == ROLE_STEP)  # of each row but the first: it goes on
    checks = (
        (~np.isin(role, (ROLE_STEP, ROLE_FINAL)), "has a role that is neither 0 nor 1"),
        (flagged & (role == ROLE_FINAL), "is final, and terminated or truncated"),
        (_late(in_piece & flagged[:-1] & (role[1:] != ROLE_FINAL)), "follows an episode's end and is not final"),
        (_late(in_piece & (np.diff(columns["episode_id"]) != 0)), "is of another episode than the step before it"),
        (_late(in_piece & (np.diff(columns["step"]) != 1)), "has a step that does not follow the one before it"),
    )
    for wrong, what in checks:
        if wrong.any():
            first, count = int(generation[np.argmax(wrong)]), int(np.count_nonzero(wrong))
            yield f"lane {rows.lane}: row {first} {what} ({count} such rows)"


def _late(wrong: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """From pairs of rows to the later row of each."""
    return np.concatenate([[False], wrong])
