from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onibi.platform.errors import CaptionError
from onibi.platform.rewards.table import (
    LABELLED,
    NEVER_ASKED,
    UNLABELLED,
    RewardTable,
    caption_rewards,
    rewards_by_key,
)


def u16(*counts):
    return np.array(counts, np.uint16)


@pytest.fixture
def table():
    # Captions: 0 empty, 1 "newt", 2 "newt, door", 3 "wall", 4 "new key". Keys: newt helpful, door unhelpful, wall, new.
    return RewardTable(
        version=3,
        caption_keys=np.array([[-1, -1], [0, -1], [1, 0], [2, -1], [3, 1]], np.int32),
        value=np.array([1, 0, 0, 0], np.float32),
        labelled=np.array([LABELLED, LABELLED, NEVER_ASKED, UNLABELLED], np.uint8),
    )


def reward_of(table, caption, *counts, power=3.0):
    reward, labelled = caption_rewards(table, np.uint32(caption)[None], u16(counts), power)
    assert reward.dtype == np.float32
    return float(reward[0]), bool(labelled[0])


def test_a_helpful_key_pays_1_over_n_to_the_power(table):
    assert reward_of(table, 1, 1, 0) == (1.0, True)
    assert reward_of(table, 1, 2, 0) == (0.125, True)  # 1 / 2³
    assert reward_of(table, 1, 2, 0, power=1.0) == (0.5, True)
    assert reward_of(table, 1, 9, 0, power=0.0) == (1.0, True)


def test_the_best_key_of_a_caption_pays(table):
    assert reward_of(table, 2, 1, 2) == (0.125, True)  # max(0 / 1, 1 / 2³)


def test_empty_and_never_asked_captions_pay_nothing_and_wait_for_nothing(table):
    assert reward_of(table, 0, 0, 0) == (0.0, True)
    assert reward_of(table, 3, 1, 0) == (0.0, True)


def test_what_has_no_label_yet_pays_nothing_and_says_so(table):
    assert reward_of(table, 4, 1, 1) == (0.0, False)


def test_captions_newer_than_the_table_are_unlabelled(table):
    assert reward_of(table, 5, 1, 0) == (0.0, False)
    assert reward_of(table, 2**32 - 1, 1, 0) == (0.0, False)


def test_keys_newer_than_the_table_are_unlabelled(table):
    newer = RewardTable(
        version=4, caption_keys=np.array([[-1], [7]], np.int32), value=table.value, labelled=table.labelled
    )
    reward, labelled = caption_rewards(newer, np.array([1], np.uint32), u16([1]), 3.0)
    assert (reward.tolist(), labelled.tolist()) == ([0.0], [False])


def test_a_key_that_was_not_counted_pays_nothing(table):
    assert reward_of(table, 1, 0, 0) == (0.0, True)


def test_a_key_pays_at_most_1_202_in_an_episode(table):
    counts = np.zeros((65_535, 2), np.uint16)
    counts[:, 0] = np.arange(1, 65_536)
    reward, _ = caption_rewards(table, np.full(65_535, 1, np.uint32), counts, 3.0)
    assert reward.astype(np.float64).sum() == pytest.approx(1.2020569, abs=1e-5)  # ζ(3)


def test_no_table_rows_at_all_is_no_error():
    empty = RewardTable(
        version=1,
        caption_keys=np.zeros((0, 2), np.int32),
        value=np.zeros(0, np.float32),
        labelled=np.zeros(0, np.uint8),
    )
    reward, labelled = caption_rewards(empty, np.array([0, 1], np.uint32), u16([1, 0], [1, 0]), 3.0)
    assert (reward.tolist(), labelled.tolist()) == ([0.0, 0.0], [False, False])


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 6))
def test_rewards_equal_those_of_a_loop(seed, power):
    rng = np.random.default_rng(seed)
    captions, keys, K = int(rng.integers(1, 6)), int(rng.integers(1, 6)), int(rng.integers(1, 4))
    caption_keys = rng.integers(-1, keys + 1, (captions, K)).astype(np.int32)
    value, labelled = rng.random(keys).astype(np.float32), rng.integers(0, 3, keys).astype(np.uint8)
    value[labelled != LABELLED] = 0
    table = RewardTable(version=1, caption_keys=caption_keys, value=value, labelled=labelled)
    ids, counts = (
        rng.integers(0, captions + 2, (7, 3)).astype(np.uint32),
        rng.integers(0, 5, (7, 3, K)).astype(np.uint16),
    )
    reward, mask = caption_rewards(table, ids, counts, power)
    by_key = np.zeros(keys)
    for place in np.ndindex(7, 3):
        paid, known = [(0.0, -1)], ids[place] < captions
        for j, key in enumerate(caption_keys[ids[place]] if known else []):
            if key >= 0:
                known &= key < keys and labelled[key] != UNLABELLED
                if key < keys and counts[place][j] > 0:
                    paid.append((value[key] / float(counts[place][j]) ** power, key))
        best = max(pay for pay, _ in paid)
        assert reward[place] == pytest.approx(best, rel=1e-5)
        assert mask[place] == known
        if best > 0:
            equals = [key for pay, key in paid if pay == best]
            for key in equals:
                by_key[key] += best / len(equals)
    paid_by_key = rewards_by_key(table, ids, counts, power)
    assert paid_by_key.sum() == pytest.approx(reward.astype(np.float64).sum(), rel=1e-5)
    assert paid_by_key == pytest.approx(by_key, rel=1e-5)


def test_keys_that_pay_alike_share_what_their_caption_was_paid():
    whole = RewardTable(1, np.array([[0, 1], [1, 2]], np.int32), np.ones(3, np.float32), np.ones(3, np.uint8))
    ids, counts = np.array([0, 0, 1], np.uint32), u16([[1, 1], [1, 2], [2, 1]])
    assert rewards_by_key(whole, ids, counts, 3.0).tolist() == [1.5, 0.5, 1.0]


def test_a_table_works_after_a_journey_between_processes(table):
    there = pickle.loads(pickle.dumps(table))
    assert reward_of(there, 2, 1, 1) == reward_of(table, 2, 1, 1)


def test_wrong_shapes_and_powers_are_refused(table):
    with pytest.raises(CaptionError, match=r"expected \(1, 2\)"):
        caption_rewards(table, np.array([1], np.uint32), u16([1, 1, 1]), 3.0)
    with pytest.raises(CaptionError, match="count_power"):
        caption_rewards(table, np.array([1], np.uint32), u16([1, 1]), -1.0)
    with pytest.raises(CaptionError, match="expected"):
        RewardTable(version=1, caption_keys=table.caption_keys, value=table.value[:2], labelled=table.labelled)
