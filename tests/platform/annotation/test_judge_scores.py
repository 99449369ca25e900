from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from onibi.platform.annotation.judge_scores import judge_scores, roc_auc


def arrays(truth, score):
    return np.array(truth, np.bool_), np.array(score, np.float64)


def test_auc_counts_pairs_and_a_tie_half():
    # helpful 0.9 0.5, unhelpful 0.5 0.1 0.7: wins 0.9 > all three = 3; 0.5 > 0.1 = 1, ties 0.5 = ½: 4.5 of 6
    assert roc_auc(*arrays([1, 1, 0, 0, 0], [0.9, 0.5, 0.5, 0.1, 0.7])) == 4.5 / 6
    assert roc_auc(*arrays([1, 0], [0.3, 0.3])) == 0.5
    assert roc_auc(*arrays([1, 0], [1, 0])) == 1.0
    assert roc_auc(*arrays([1, 0], [0, 1])) == 0.0


@pytest.mark.parametrize("seed", range(20))
def test_auc_is_that_of_others_with_and_without_ties(seed):
    rng = np.random.default_rng(seed)
    truth = rng.random(60) < 0.3
    truth[:2] = True, False
    score = rng.integers(0, 5 + 100 * (seed % 2), 60) / 7.0
    expected = mannwhitneyu(score[truth], score[~truth]).statistic / (truth.sum() * (~truth).sum())
    assert roc_auc(truth, score) == pytest.approx(expected, abs=1e-12)


def test_figures_are_those_of_sklearn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(3)
    truth, score = rng.random(200) < 0.3, rng.integers(0, 9, 200) / 8.0
    called = score >= 0.5
    found = scores(truth, score, called)
    assert found.auc.value == pytest.approx(metrics.roc_auc_score(truth, score), abs=1e-12)
    assert found.precision.value == pytest.approx(metrics.precision_score(truth, called))
    assert found.recall.value == pytest.approx(metrics.recall_score(truth, called))


def test_auc_of_one_kind_of_caption_is_no_number_and_of_a_broken_score_an_error():
    assert np.isnan(roc_auc(*arrays([1, 1], [0.1, 0.2])))
    with pytest.raises(ValueError, match="1 of 2 scores are not finite"):
        roc_auc(*arrays([1, 0], [np.nan, 0.2]))


def scores(truth, score, called, labelled=None, resamples=400, seed=0):
    truth, score = arrays(truth, score)
    labelled = np.ones(len(truth), np.bool_) if labelled is None else np.array(labelled, np.bool_)
    rng = np.random.default_rng(seed)
    return judge_scores(truth, score, np.array(called, np.bool_), labelled, rng, resamples=resamples)


def test_precision_and_recall_by_hand_where_two_captions_have_no_label():
    # Called helpful with a label: 0, 1, 3; of them 0 and 1 are helpful. Helpful in all: 0, 1, 2, 4.
    found = scores([1, 1, 1, 0, 1, 0], [0.9, 0.8, 0.2, 0.7, 0.9, 0.9], [1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 0, 0])
    assert (found.captions, found.helpful, found.labelled) == (6, 4, 4)
    assert found.precision.value == 2 / 3
    assert found.recall.value == 2 / 4
    assert found.unlabelled_share == pytest.approx(2 / 6)
    assert found.auc.value == 2 / 3  # 0.9 and 0.8 win against 0.7, 0.2 loses; those without a label are left out


def test_intervals_hold_the_truth_as_often_as_they_say():
    # Helpful scores are normal with mean 1, unhelpful with mean 0: AUC = Φ(1 / √2) = 0.7602.
    rng, held = np.random.default_rng(0), 0
    for trial in range(60):
        truth = np.arange(120) < 40
        score = rng.normal(size=120) + truth
        auc = scores(truth, score, score > 0.5, seed=trial).auc
        assert auc.low <= auc.value <= auc.high
        held += auc.low <= 0.7602 <= auc.high
    assert 51 <= held <= 60  # of 60, 57 expected


def test_more_captions_make_intervals_narrower():
    rng = np.random.default_rng(1)
    truth = rng.random(2000) < 0.3
    score = rng.normal(size=2000) + truth
    few, many = scores(truth[:100], score[:100], score[:100] > 0.5).auc, scores(truth, score, score > 0.5).auc
    assert (many.high - many.low) < 0.5 * (few.high - few.low)


def test_a_judge_that_calls_nothing_helpful_has_no_precision():
    found = scores([1, 0, 0], [0.1, 0.1, 0.1], [0, 0, 0])
    assert np.isnan(found.precision.value)
    assert np.isnan(found.precision.low)
    assert (found.recall.value, found.auc.value) == (0.0, 0.5)


def test_arrays_that_do_not_fit_and_too_few_resamples_are_refused():
    with pytest.raises(ValueError, match=r"arrays of \[2, 3\] captions"):
        scores([1, 0], [0.1, 0.2], [1, 0, 0])
    with pytest.raises(ValueError, match="resamples is 9"):
        scores([1, 0], [0.1, 0.2], [1, 0], resamples=9)
