"""Learners by kind; imported only when used."""

from __future__ import annotations

LEARNERS = {
    "dqn": "onibi.learners.dqn:DqnLearner",
}
