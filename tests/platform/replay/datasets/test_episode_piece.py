"""Episodes put together from segments, with gaps wherever they may be."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from onibi.platform.replay.datasets.episode_piece import episode_pieces
from onibi.platform.replay.log.log_reader import ReplayLog


@pytest.fixture(scope="module")
def rows(logs) -> pa.Table:
    """One lane: an episode of 20 steps, one of 3, and 2 steps of a third."""
    lane = logs.Lane(0, np.random.default_rng(3))
    lane.episode(1, 20)
    lane.episode(2, 3, end="truncated")
    lane.episode(3, 2, end="none", final=False)
    logs.seal("memory://episode-pieces/log", [lane], segments=1)
    log = ReplayLog("memory://episode-pieces/log")
    return log.read(log.segments[0])


def pieces(logs, rows: pa.Table, missing=(), cuts=()):
    """(episode, first step, steps, begun, ended) of each piece, of rows without some and in several tables."""
    kept = rows.filter(~np.isin(rows.column("generation").to_numpy(), list(missing)))
    borders = [0, *cuts, kept.num_rows]
    tables = [(0, kept.slice(begin, end - begin)) for begin, end in pairwise(borders)]
    return [
        (piece.episode_id, int(piece.rows.columns["step"][0]), piece.steps, piece.begun, piece.ended)
        for piece in episode_pieces(logs.SPEC, tables)
    ]


@pytest.mark.parametrize("cuts", [(), (1,), (20,), (21,), (22,), (5, 6, 7), tuple(range(1, 27))])
def test_episodes_are_whole_however_the_log_is_cut_into_segments(logs, rows, cuts):
    # Of the last two step rows the second one has no next observation: one step.
    assert pieces(logs, rows, cuts=cuts) == [(1, 0, 20, True, True), (2, 0, 3, True, True), (3, 0, 1, True, False)]


@pytest.mark.parametrize("cuts", [(), (7,), (3, 7, 9)])  # the gap within a segment, and between two
def test_a_gap_makes_two_pieces_of_an_episode(logs, rows, cuts):
    assert pieces(logs, rows, missing=range(7, 14), cuts=cuts)[:2] == [(1, 0, 6, True, False), (1, 14, 6, False, True)]


def test_an_episode_whose_final_row_is_missing_ends_before_its_last_step(logs, rows):
    assert pieces(logs, rows, missing=[20])[:2] == [(1, 0, 19, True, False), (2, 0, 3, True, True)]


def test_a_lone_row_is_no_piece(logs, rows):
    assert pieces(logs, rows, missing=[*range(1, 20), 22, 23]) == [(3, 0, 1, True, False)]
