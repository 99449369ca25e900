"""`onibi experiment reward-noise`: what a judge's errors cost when an agent optimises what was learnt from them.

Stated before the run on its ten seeds:

* The proxy that one model gives is expected to bring more and more gold at first, to **peak, and to fall** as the
  policy moves on (over-optimisation; Gao et al., arXiv 2210.10760).
* The minimum of five members, and their mean less λ times their deviation (λ = 1), are expected to **keep 95% of
  their peak** at 10 nats (Coste et al., "Reward Model Ensembles Help Mitigate Overoptimization", arXiv 2310.02743),
  and to bring more gold there than one model. Of their plain mean nothing is expected.

5,000 captions of a grammar; gold is a sum over words and pairs of words; 500 preferences between captions as the base
policy brings them, 25% of the answers wrong; the reward model that ships, with its default settings, 30 passes.

The setting was chosen on seeds 101 to 103, with another draw of the same grammar, among three: pairs drawn from the
base policy, pairs drawn uniformly, and 100 passes instead of 30. There the first met the expectation, and it is what
happens in a run: rare captions are judged rarely. On the ten seeds it did not hold: see docs/experiments.md.

Differences from Coste et al.: captions instead of language-model answers, exact optimal policies instead of PPO and
best-of-n, bootstraps besides first parameters, members normalised before they are aggregated, the deviation instead of
the variance.
"""

from __future__ import annotations

from onibi.clusters.experiments.declaration import Arm, CalledTrial, Comparison, Experiment, ShortForm

PROXIES = {
    "single": ("mean", 1),
    "mean": ("mean", 5),
    "minimum": ("minimum", 5),
    "deviation": ("mean_less_deviation", 5),
}
"""Arm → (aggregate, members)."""

_SECONDS = {1: 4.0, 5: 8.0}  # guessed, on one core, by members


def _arm(name: str) -> Arm:
    aggregate, members = PROXIES[name]
    arguments = {
        "aggregate": aggregate,
        "members": members,
        "captions": 5_000,
        "pairs": 500,
        "flipped": 0.25,
        "together": 0.5,
        "deviation_weight": 1.0,
        "passes": 30,
    }
    return Arm(
        name=name,
        task="captions of a grammar",
        group=name,
        trial=CalledTrial(function="onibi.clusters.experiments.proxy_optimisation:run", arguments=arguments),
        guess_seconds=_SECONDS[members],
        figure="final_gold",
    )


EXPERIMENT = Experiment(
    name="reward-noise",
    summary="does an ensemble keep an agent from exploiting the errors of its judge?",
    seeds=tuple(range(1, 11)),
    arms=tuple(map(_arm, PROXIES)),
    comparisons=(
        Comparison(arm="minimum", other="single", expected="above", paired=True, claimed=False),
        Comparison(arm="deviation", other="single", expected="above", paired=True, claimed=False),
        Comparison(arm="mean", other="single", expected="not below", paired=True, claimed=False),
    ),
    short=ShortForm(arguments={"captions": 500, "pairs": 100}),
    picture="onibi.clusters.experiments.gold_curves:draw",
)
