"""Learners by kind; imported only when used."""

from __future__ import annotations

LEARNERS = {
    "appo": "onibi.learners.appo:AppoLearner",
    "dqn": "onibi.learners.dqn:DqnLearner",
    "impala": "onibi.learners.impala:ImpalaLearner",
    "pqn": "onibi.learners.pqn:PqnLearner",
}
