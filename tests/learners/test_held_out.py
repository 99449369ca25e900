from __future__ import annotations

import numpy as np
import pytest

from onibi.learners.reward_models.held_out import (
    area_under_curve,
    bootstrap_copies,
    calibration_error,
    is_held_out,
    pair_accuracy,
    pair_hashes,
)
from onibi.platform.annotation.captions import text_hash

HASHES = np.array([text_hash(f"caption {number}") for number in range(20_000)], np.uint64)


@pytest.mark.parametrize("seed", range(10))
def test_the_area_under_the_curve_is_the_share_of_pairs_in_order(seed):
    rng = np.random.default_rng(seed)
    score, positive = rng.integers(0, 6, 40).astype(float), rng.random(40) < 0.4
    wins = [1.0 if high > low else 0.5 if high == low else 0.0 for high in score[positive] for low in score[~positive]]
    assert area_under_curve(score, positive) == pytest.approx(np.mean(wins))
    assert area_under_curve(score, np.ones(40, bool)) is None


def test_pair_accuracy_leaves_ties_out_and_counts_equal_chances_half():
    chance, preference = np.array([0.9, 0.2, 0.5, 0.1, 0.7]), np.array([1.0, 1.0, 0.0, 0.0, 0.5])
    assert pair_accuracy(chance, preference) == (1 + 0 + 0.5 + 1) / 4
    assert pair_accuracy(np.array([0.3]), np.array([0.5])) is None


def test_the_calibration_error_by_hand():
    # Bin 0.2: chance 0.25, outcome 0 and 1: gap 0.25. Bin 0.9: chance 1, outcome 1: gap 0. Weights 2 and 2.
    chance, outcome = np.array([0.25, 0.25, 1.0, 1.0]), np.array([0.0, 1.0, 1.0, 1.0])
    assert calibration_error(chance, outcome, np.ones(4)) == pytest.approx(0.125)
    assert calibration_error(chance, outcome, np.array([1.0, 0.0, 0.0, 0.0])) == pytest.approx(0.25)
    assert calibration_error(np.zeros(0), np.zeros(0), np.zeros(0)) is None


def test_the_held_out_share_is_met_and_a_larger_share_holds_out_the_same_keys_and_more():
    small, large = is_held_out(HASHES, 0.1), is_held_out(HASHES, 0.3)
    assert small.mean() == pytest.approx(0.1, abs=0.01)  # 20,000 keys: standard error 0.002
    assert large.mean() == pytest.approx(0.3, abs=0.015)
    assert (large | ~small).all()
    assert not is_held_out(HASHES, 0.0).any()


def test_bootstraps_are_poisson_differ_by_member_and_do_not_hang_on_what_is_held_out():
    copies = bootstrap_copies(HASHES, 0, 1)
    assert copies.mean() == pytest.approx(1.0, abs=0.03)  # standard error 0.007
    assert copies.var() == pytest.approx(1.0, abs=0.06)
    assert (copies == 0).mean() == pytest.approx(np.exp(-1), abs=0.015)
    for others in (bootstrap_copies(HASHES, 1, 1), bootstrap_copies(HASHES, 0, 2)):
        assert abs(np.corrcoef(copies, others)[0, 1]) < 0.03
    assert abs(np.corrcoef(copies, is_held_out(HASHES, 0.3))[0, 1]) < 0.03
    assert (bootstrap_copies(HASHES[:50], 0, 1) == copies[:50]).all()  # an item keeps its copies when others arrive


def test_pairs_have_hashes_of_their_own_that_know_the_order():
    first, second = HASHES[:1_000], HASHES[1_000:2_000]
    hashes = np.concatenate([pair_hashes(first, second), pair_hashes(second, first), pair_hashes(first, first)])
    assert len(np.unique(hashes)) == 3_000
