"""The ledger of episodes against a plain sum over rows."""

from __future__ import annotations

import numpy as np
import pytest

from onibi.platform.fragment import EpisodeStatistics, Fragment
from onibi.platform.rewards.episode_ledger import EpisodeLedger
from onibi.platform.rewards.table import LABELLED, UNLABELLED, RewardTable

CAPTIONS, KEYS, WIDTH = 6, 5, 2
CAPTION_KEYS = np.array([[-1, -1], [0, -1], [1, 2], [2, 0], [3, 4], [4, -1]], np.int32)


def table_of(version: int, rng: np.random.Generator) -> RewardTable:
    labelled = rng.integers(0, 2, KEYS).astype(np.uint8)
    value = np.where(labelled == LABELLED, rng.integers(0, 4, KEYS) / 4, 0).astype(np.float32)
    return RewardTable(version, CAPTION_KEYS, value, labelled)


def lane_rows(rng: np.random.Generator, rows: int, episode: int):
    """Rows (episode, role, caption, counts) with a final row behind each end; the next free episode id."""
    found = []
    while len(found) < rows:
        length = int(rng.integers(1, 6))
        for _ in range(length):
            found.append((episode, 0, int(rng.integers(CAPTIONS)), rng.integers(1, 5, WIDTH)))
        found.append((episode, 1, 0, np.zeros(WIDTH, np.int64)))
        episode += 1
    return found


@pytest.mark.parametrize("power", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("seed", range(4))
def test_each_episode_is_paid_the_sum_of_its_steps_by_the_table_of_their_time(seed, power):
    rng = np.random.default_rng(seed)
    ledger = EpisodeLedger(power)
    lanes = [lane_rows(rng, 60, 1_000 * lane) for lane in range(3)]
    totals, by_key, places = {}, np.zeros(KEYS), [0, 0, 0]
    closed_ever = {}
    for version in range(12):
        table = table_of(version, rng)
        taken = [int(rng.integers(0, 6)) for _ in lanes]  # a lane may bring nothing
        height = max(taken) + 1
        columns = {
            "role": np.full((3, height), 7, np.uint8),
            "episode_id": np.full((3, height), -9, np.int64),
            "caption_count": np.full((3, height, WIDTH), 9, np.uint16),
        }
        ids = np.full((3, height), 5, np.uint32)
        ended = []
        for lane, count in enumerate(taken):
            chunk = lanes[lane][places[lane] : places[lane] + count]
            places[lane] += count
            taken[lane] = len(chunk)
            for row, (episode, role, caption, counts) in enumerate(chunk):
                columns["role"][lane, row], columns["episode_id"][lane, row] = role, episode
                columns["caption_count"][lane, row], ids[lane, row] = counts, caption
                if role == 1:
                    ended.append(EpisodeStatistics(lane, episode, 0.0, 1, terminated=True))
                    continue
                paid = [
                    (table.value[key] / counts[place] ** power, key)
                    for place, key in enumerate(CAPTION_KEYS[caption])
                    if key >= 0
                ]
                best = max((each for each, _ in paid), default=0.0)
                totals[episode] = totals.get(episode, 0.0) + best
                equals = [key for each, key in paid if each == best]
                for key in equals:
                    by_key[key] += best / len(equals)
            # The head row looks like a step, and is none.
            columns["role"][lane, len(chunk)] = 0
            columns["episode_id"][lane, len(chunk)] = 1_000 * lane
        fragment = Fragment(0, 0, version, np.array(taken, np.int32), columns, episodes=ended)
        closed = ledger.add(fragment, ids, table)
        assert set(closed) == {each.episode_id for each in ended}
        for episode, paid in closed.items():
            assert paid == pytest.approx(totals[episode], abs=1e-5)
            assert episode not in closed_ever
            closed_ever[episode] = paid
    assert len(closed_ever) >= 5
    assert sum(paid > 0 for paid in closed_ever.values()) >= 3
    assert ledger.paid_by_key == pytest.approx(by_key, abs=1e-4)


def one_step(episode: int, caption: int, *, over: bool) -> Fragment:
    columns = {
        "role": np.zeros((1, 2), np.uint8),
        "episode_id": np.full((1, 2), episode, np.int64),
        "caption_count": np.ones((1, 2, WIDTH), np.uint16),
    }
    ended = [EpisodeStatistics(0, episode, 0.0, 1, terminated=True)] if over else []
    return Fragment(0, 0, 0, np.array([1], np.int32), columns, episodes=ended)


def test_a_label_that_comes_late_pays_only_the_steps_after_it():
    ledger = EpisodeLedger(0.0)
    unlabelled = RewardTable(1, CAPTION_KEYS, np.zeros(KEYS, np.float32), np.full(KEYS, UNLABELLED, np.uint8))
    labelled = RewardTable(2, CAPTION_KEYS, np.full(KEYS, 0.25, np.float32), np.full(KEYS, LABELLED, np.uint8))
    ids = np.full((1, 2), 1, np.uint32)
    assert ledger.add(one_step(7, 1, over=False), ids, unlabelled) == {}
    assert ledger.add(one_step(7, 1, over=True), ids, labelled) == {7: 0.25}
    assert ledger.paid_by_key.tolist() == [0.25, 0, 0, 0, 0]


def test_an_episode_is_closed_once_and_its_sum_forgotten():
    ledger = EpisodeLedger(0.0)
    table = RewardTable(1, CAPTION_KEYS, np.full(KEYS, 1.0, np.float32), np.full(KEYS, LABELLED, np.uint8))
    ids = np.full((1, 2), 1, np.uint32)
    assert ledger.add(one_step(7, 1, over=True), ids, table) == {7: 1.0}
    assert ledger.add(one_step(7, 1, over=True), ids, table) == {7: 1.0}


def test_what_each_key_was_paid_grows_with_the_table():
    ledger = EpisodeLedger(0.0)
    small = RewardTable(1, CAPTION_KEYS[:2], np.array([1.0], np.float32), np.array([LABELLED], np.uint8))
    large = RewardTable(2, CAPTION_KEYS, np.full(KEYS, 0.5, np.float32), np.full(KEYS, LABELLED, np.uint8))
    ids = np.full((1, 2), 5, np.uint32)
    assert ledger.add(one_step(1, 5, over=True), ids, small) == {1: 0.0}, "a caption newer than the table pays nothing"
    assert ledger.paid_by_key.tolist() == [0.0]
    ledger.add(one_step(2, 5, over=True), ids, large)
    ledger.add(one_step(3, 1, over=True), np.full((1, 2), 1, np.uint32), large)
    assert ledger.paid_by_key.tolist() == [0.5, 0, 0, 0, 0.5]


def test_fragments_in_which_nothing_was_said_pay_nobody_and_close_their_episodes():
    ledger = EpisodeLedger(0.0)
    table = RewardTable(1, CAPTION_KEYS, np.full(KEYS, 1.0, np.float32), np.full(KEYS, LABELLED, np.uint8))
    silence = np.zeros((1, 2), np.uint32)
    assert ledger.add(one_step(7, 0, over=False), silence, table) == {}
    assert ledger.paid_by_key.tolist() == [0.0] * KEYS
    assert ledger.add(one_step(8, 1, over=False), np.full((1, 2), 1, np.uint32), table) == {}
    assert ledger.add(one_step(8, 0, over=True), silence, table) == {8: 1.0}, "paid before the silence"
    assert ledger.add(one_step(7, 0, over=True), silence, table) == {7: 0.0}
