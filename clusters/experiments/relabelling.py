"""`onibi experiment relabelling`: is it worth anything that late labels change the rows that are already in replay?

Stated before the first run: ``dqn`` with ``hl_gauss`` on MiniHack KeyRoom-S5, labels from the lexicon, collected from
the start and released all at once at 150,000 env steps; the ring holds every row of the run. Three arms:

* gather: Onibi as it is. A row is paid by the newest table when it is trained on.
* frozen: a row is paid for ever by the table that was there when it was inserted, as a buffer of rewards would have it.
* frozen-labelled: likewise, and rows whose captions had no label then are not learned from.

Score: the area under the success curve from the release to 400,000 env steps. Expected: gather above both. Seeds 21 to
25. The frozen arms are settings of this experiment alone; how they are made is told in ``frozen_rewards.py``.
"""

from __future__ import annotations

from onibi.clusters.experiments.declaration import Arm, CalledTrial, Comparison, Experiment, ShortForm

RELEASE, END = 150_000, 400_000
"""Env steps at which the labels pay from, and at which a run ends."""

_OVERRIDES = {
    "annotator.kind": "lexicon",
    "annotator.lexicon": "nethack",
    "annotation.delay_steps": RELEASE,
    "rewards.intrinsic.kind": "retrieval",
    "rewards.intrinsic.coefficient": 0.1,
    "rewards.intrinsic.count_power": 3.0,
    "environment.kwargs.penalty_step": 0,
    "learner.value_loss": "hl_gauss",
    "learner.support.high": 2.8,
    "replay.capacity_rows": 500_000,
    "replay.log.enabled": "false",
    "evaluation.period_env_steps": 25_000,
    "evaluation.episodes": 48,
    "evaluation.judge": "success",
    "budget.max_env_steps": END,
    "budget.max_seconds": "null",
    "checkpoint.period_seconds": 600,
    "tracking.enabled": "false",
}
_MODES = {"gather": "gather", "frozen": "frozen", "frozen-labelled": "frozen_labelled"}


def _arm(name: str, mode: str) -> Arm:
    return Arm(
        name=name,
        task="KeyRoom-S5, labels from 150 k",
        group=name,
        trial=CalledTrial(
            function="onibi.clusters.experiments.frozen_rewards:run",
            arguments={"mode": mode, "span": (RELEASE, END)},
            preset="minihack-oni",
            overrides=tuple(f"{setting}={value}" for setting, value in _OVERRIDES.items()),
            revision=2,  # in rows of the first one, episodes that NLE's step limit ended show a blank last map
        ),
        figure="success_area",
        score_range=(0.0, 1.0),
        guess_seconds=260.0,
    )


EXPERIMENT = Experiment(
    name="relabelling",
    summary="is it worth anything that late labels change the rows already in replay?",
    seeds=(21, 22, 23, 24, 25),
    arms=tuple(_arm(name, mode) for name, mode in _MODES.items()),
    comparisons=tuple(
        Comparison(arm="gather", other=other, expected="above", test="permutation") for other in list(_MODES)[1:]
    ),
    picture="onibi.clusters.experiments.success_figure:draw",
    short=ShortForm(
        settings={
            "annotation.delay_steps": 3_000,
            "budget.max_env_steps": 6_000,
            "evaluation.period_env_steps": 3_000,
            "evaluation.episodes": 8,
        },
        arguments={"span": (3_000, 6_000)},
        guess_seconds=60.0,
    ),
)
