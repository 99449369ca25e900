"""Learners by kind; imported only when used."""

from __future__ import annotations

LEARNERS = {
    "appo": "onibi.learners.appo:AppoLearner",
    "dqn": "onibi.learners.dqn:DqnLearner",
    "impala": "onibi.learners.impala:ImpalaLearner",
    "pqn": "onibi.learners.pqn:PqnLearner",
    "r2d2": "onibi.learners.r2d2:R2d2Learner",
}
