"""The proxy bench: exact policies, known worths, and a tool that runs."""

from __future__ import annotations

import numpy as np
import pytest

from onibi.clusters.experiments.caption_grammar import make_captions
from onibi.clusters.experiments.gold_curves import curves_by_arm, draw, kept_share
from onibi.clusters.experiments.proxy_optimisation import NATS, gold_column, judged_pairs, optimal_policy, run
from onibi.clusters.experiments.registry import imported
from onibi.clusters.experiments.reward_noise import EXPERIMENT


def kl(policy, base):
    return sum(p * np.log(p / q) for p, q in zip(policy, base, strict=True) if p > 0)


def world(count=400, seed=0):
    return make_captions(count, 0.5, np.random.default_rng(seed))


def test_captions_are_distinct_and_gold_is_standardised_under_the_base_policy():
    made = world(5_000)
    assert len(set(made.texts)) == 5_000
    assert made.base.sum() == pytest.approx(1.0)
    assert made.base @ made.gold == pytest.approx(0.0, abs=1e-9)
    assert made.base @ made.gold**2 == pytest.approx(1.0)
    with pytest.raises(ValueError, match="849600"):
        world(10**6)


@pytest.mark.parametrize("nats", [0.25, 2.0, 4.0])
def test_no_policy_at_the_same_distance_gains_more_of_the_proxy(nats):
    made, rng = world(), np.random.default_rng(1)
    proxy = rng.normal(size=400)
    best, distance = optimal_policy(made.base, proxy, nats)
    assert distance == pytest.approx(nats, abs=1e-6)
    assert kl(best, made.base) == pytest.approx(distance, abs=1e-9)
    for _ in range(20):  # other scores, tilted as far
        other, _ = optimal_policy(made.base, proxy + 0.3 * rng.normal(size=400), nats)
        assert kl(other, made.base) <= nats + 1e-6
        assert other @ proxy < best @ proxy


def test_a_distance_that_the_favourite_does_not_reach_ends_at_the_favourite():
    made = world()
    proxy = np.zeros(400)
    proxy[made.base.argmax()] = 1.0
    policy, distance = optimal_policy(made.base, proxy, 10.0)
    assert policy.max() == pytest.approx(1.0)
    assert distance == pytest.approx(-np.log(made.base.max()))


def test_a_judge_is_wrong_as_often_as_asked():
    made = world(2_000)
    data = judged_pairs(made, 20_000, 0.25, np.random.default_rng(0))
    truth = made.gold[data.pair_first] > made.gold[data.pair_second]
    assert (data.pair_preference != truth).mean() == pytest.approx(0.25, abs=0.015)  # standard error 0.003
    assert (judged_pairs(made, 500, 0.0, np.random.default_rng(0)).pair_preference == 1).mean() == pytest.approx(
        0.5, abs=0.1
    )


def test_a_trial_repeats_and_a_judge_without_errors_makes_a_better_proxy():
    small = {"seed": 1, "aggregate": "minimum", "members": 2, "captions": 400, "pairs": 300, "together": 0.5}
    small |= {"deviation_weight": 1.0, "passes": 6}
    noisy, again, clean = (run(flipped=flipped, **small) for flipped in (0.25, 0.25, 0.0))
    assert noisy == again
    assert clean["accuracy"] > noisy["accuracy"] > 0.55
    assert {gold_column(nats) for nats in NATS} < set(noisy)
    assert noisy["kept"] == pytest.approx(noisy["final_gold"] / noisy["peak_gold"])


def test_the_figure_tells_what_the_mean_over_seeds_keeps_of_its_peak(tmp_path):
    rising = {gold_column(nats): str(nats) for nats in NATS}
    falling = rising | {gold_column(10.0): "4.5", gold_column(9.0): "9"}
    rows = [{"arm": "single", "status": "ok", "stage": "final", **each} for each in (falling, falling)]
    rows += [{"arm": "mean", "status": "ok", "stage": "final", **rising}, {"arm": "mean", "status": "failed"}]
    curves = curves_by_arm(rows)
    assert kept_share(curves["single"]) == (0.5, 9.0)
    assert kept_share(curves["mean"]) == (1.0, 10.0)
    assert not draw([], tmp_path / "none.png", "nothing")
    assert draw(rows, tmp_path / "gold.png", "gold")
    assert (tmp_path / "gold.png").read_bytes()[:4] == b"\x89PNG"
    assert imported(EXPERIMENT.picture) is draw
