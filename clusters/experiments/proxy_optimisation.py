"""A reward model learnt from a noisy judge, and what optimising against it brings: the trial of `reward-noise`.

Of all policies at most k nats away from a base policy, the one that gains most of a proxy reward s tilts it:

    π(c) ∝ base(c) · exp(s(c)/τ),    τ such that KL(π ‖ base) = Σ_c π(c) log(π(c)/base(c)) = k

So there is nothing to train but the reward model, and no optimiser to blame.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.clusters.experiments.caption_grammar import GradedCaptions, make_captions
from onibi.learners.reward_models.fitted_model import fit_offline
from onibi.learners.reward_models.settings import RewardModelSettings
from onibi.platform.rewards.table_chain import Aggregate, aggregated, row_moments
from onibi.platform.rewards.training import LabelledKeys

NATS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0)
"""Distances from the base policy at which gold is measured."""

_BISECTIONS = 80
_GREATEST_SHARPNESS = 1e6  # 1/τ: beyond it the policy is the proxy's favourite alone
_SMALL = 1e-9


def gold_column(nats: float) -> str:
    """Name of the figure that holds the gold at a distance."""
    return f"gold_at_{nats:g}"


def run(
    *,
    seed: int,
    aggregate: Aggregate,
    members: int,
    captions: int,
    pairs: int,
    flipped: float,
    together: float,
    deviation_weight: float,
    passes: int,
) -> dict[str, float]:
    """Fit a reward model to noisy preferences and optimise against it.

    Args:
        seed: of captions, worths, preferences and model; arms of one seed see the same ones.
        aggregate: how members become the proxy.
        members: N.
        captions: distinct ones.
        pairs: judged ones, drawn from the base policy.
        flipped: share of them with the wrong answer.
        together: see ``make_captions``.
        deviation_weight: λ.
        passes: over the pairs, in training.
    Returns: ``gold_at_…`` for all ``NATS``, in standard deviations of gold under the base policy; ``final_gold``, the
        last of them; ``peak_gold``, ``peak_nats``; ``kept``, the last as a share of the peak; ``reached_nats``;
        ``correlation`` of proxy and gold over captions; ``accuracy`` of the proxy on all pairs of base captions.
    """
    world = make_captions(captions, together, np.random.default_rng([seed, 1]))
    data = judged_pairs(world, pairs, flipped, np.random.default_rng([seed, 2]))
    settings = dataclasses.replace(RewardModelSettings(), members=members, held_out_share=0.0)
    model = fit_offline(data, settings, "ranking", seed=seed, passes=passes)
    raw = model.reference.members.astype(np.float64)
    mean, deviation = row_moments(raw, world.base, _SMALL)
    proxy = aggregated((raw - mean) / deviation, aggregate, deviation_weight)
    gold, reached = [], 0.0
    for nats in NATS:
        policy, reached = optimal_policy(world.base, proxy, nats)
        gold.append(float(policy @ world.gold))
    peak = int(np.argmax(gold))
    return {
        **{gold_column(nats): value for nats, value in zip(NATS, gold, strict=True)},
        "final_gold": gold[-1],
        "peak_gold": gold[peak],
        "peak_nats": NATS[peak],
        "kept": gold[-1] / gold[peak],
        "reached_nats": reached,
        "correlation": float(np.corrcoef(proxy, world.gold)[0, 1]),
        "accuracy": _accuracy(world, proxy, np.random.default_rng([seed, 3])),
    }


def judged_pairs(world: GradedCaptions, pairs: int, flipped: float, rng: np.random.Generator) -> LabelledKeys:
    """Preferences between captions as the base policy brings them; each answer is wrong with chance ``flipped``."""
    count = len(world.texts)
    first = rng.choice(count, size=pairs, p=world.base)
    second = rng.choice(count, size=pairs, p=world.base)
    second[first == second] = (second[first == second] + 1) % count
    preference = (world.gold[first] > world.gold[second]).astype(np.float32)
    wrong = rng.random(pairs) < flipped
    preference[wrong] = 1 - preference[wrong]
    nothing: Any = np.zeros(0, np.int32)
    return LabelledKeys(
        version=1,
        key_texts=world.texts,
        askable=np.ones(count, bool),
        sightings=np.ones(count, np.int64),
        label_key=nothing,
        label_score=nothing.astype(np.float32),
        pair_first=first.astype(np.int32),
        pair_second=second.astype(np.int32),
        pair_preference=preference,
    )


def optimal_policy(
    base: NDArray[np.float64], proxy: NDArray[np.float64], nats: float
) -> tuple[NDArray[np.float64], float]:
    """The policy of the highest mean proxy within ``nats`` of ``base``, and its distance.

    The distance falls short where the proxy's favourite caption alone is nearer.
    """
    low, high = 0.0, 1.0
    while _tilted(base, proxy, high)[1] < nats and high < _GREATEST_SHARPNESS:
        low, high = high, 2 * high
    if high < _GREATEST_SHARPNESS:
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            if _tilted(base, proxy, middle)[1] < nats:
                low = middle
            else:
                high = middle
    return _tilted(base, proxy, high)


def _tilted(
    base: NDArray[np.float64], proxy: NDArray[np.float64], sharpness: float
) -> tuple[NDArray[np.float64], float]:
    """The policy base · exp(sharpness · proxy), normalised, and its distance from base."""
    exponent = np.log(base) + sharpness * proxy
    policy = np.exp(exponent - exponent.max())
    policy /= policy.sum()
    present = policy > 0
    return policy, float(policy[present] @ np.log(policy[present] / base[present]))


def _accuracy(world: GradedCaptions, proxy: NDArray[np.float64], rng: np.random.Generator) -> float:
    """Share of 10,000 pairs from the base policy that the proxy orders as gold does."""
    first, second = rng.choice(len(world.texts), size=(2, 10_000), p=world.base)
    apart = world.gold[first] != world.gold[second]
    agrees = (proxy[first] > proxy[second]) == (world.gold[first] > world.gold[second])
    return float(agrees[apart].mean())
