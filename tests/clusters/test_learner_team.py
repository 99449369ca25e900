"""How slices of training are asked for: one ahead of that which is made, of all learners alike."""

from __future__ import annotations

import dataclasses
import itertools

from onibi.clusters.learner_team import LearnerTeam
from onibi.learners.learner_actor import LearnerNews

NEWS = LearnerNews(updates=1, drawn_rows=8, waited_seconds=0.0, metrics={}, figures={})


class Asked:
    """Stands for the handle of a learner's process: remembers how often it was asked to train."""

    def __init__(self):
        self.train, self.slices, self._numbers = self, 0, itertools.count()

    def remote(self, seconds):
        assert seconds > 0
        self.slices += 1
        return f"{id(self)}-{next(self._numbers)}"


def team_of(*roles):
    team = LearnerTeam(hub=None, ring="ring", node="node")
    team.handles = {role: Asked() for role in roles}
    return team, team._train()


def test_the_next_slice_waits_at_the_learner_while_one_is_made():
    team, asked = team_of("learner")
    assert list(asked.values()) == ["learner", "learner"]
    assert list(team.heard("learner", NEWS).values()) == ["learner"]
    assert team.handles["learner"].slices == 3
    assert team.news is NEWS


def test_several_learners_are_asked_for_the_same_slices():
    team, asked = team_of("learner", "learner 1")
    assert len(asked) == 4
    assert team.heard("learner 1", NEWS) == {}
    assert team.news is None, "the first one speaks for all"
    assert team.heard("learner 1", NEWS) == {}, "nobody is asked for more than all have answered"
    assert sorted(team.heard("learner", NEWS).values()) == ["learner", "learner 1"]
    assert sorted(team.heard("learner", NEWS).values()) == ["learner", "learner 1"]
    assert [handle.slices for handle in team.handles.values()] == [4, 4]


def test_an_interval_tells_what_any_of_its_slices_told_and_the_next_one_only_what_is_new():
    team, _ = team_of("learner", "learner 1")
    for role, metrics in [
        ("learner", {"learner/loss": 2.0, "learner/table_version": 1.0}),
        ("learner", {"learner/loss": 1.0, "learner/table_version": 2.0}),
        ("learner 1", {"learner/loss": 9.0}),
        ("learner", {"learner/table_version": 3.0}),  # it waited for the limiter
    ]:
        team.heard(role, dataclasses.replace(NEWS, metrics=metrics))
    assert team.take_metrics() == {"learner/loss": 1.0, "learner/table_version": 3.0}
    assert team.take_metrics() == {}
