"""What the learner's process computes for bonuses, by ``kind``. One file and one line each."""

from __future__ import annotations

BONUS_MODULES = {
    "e3b": "onibi.learners.bonuses.inverse_dynamics:InverseDynamics",
    "key_counts": "onibi.learners.bonuses.run_counts:KeyRunCounts",
    "noveld": "onibi.learners.bonuses.rnd:NovelDModule",
    "observation_counts": "onibi.learners.bonuses.run_counts:ObservationRunCounts",
    "rnd": "onibi.learners.bonuses.rnd:RndModule",
}
