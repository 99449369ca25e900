"""Which keys a reward model is least sure of."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onibi.platform.annotation.score_uncertainty import uncertainty
from onibi.platform.rewards.training import MemberScores


def test_uncertainty_is_the_members_deviation_on_a_common_scale():
    # Members agree on the order of the first two keys, whatever their scales, and not on the last two.
    members = np.array([[0.0, 1.0, 2.0, 3.0], [0.0, 10.0, 30.0, 20.0]], np.float32)
    unsure = uncertainty(MemberScores(version=1, members=members), keys=5)
    assert unsure[:2] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert unsure[2] == pytest.approx(unsure[3])
    assert unsure[2] > 0.1
    assert math.isinf(unsure[4])


def test_one_member_is_least_sure_where_its_log_odds_are_even_or_of_a_ranking_in_its_middle():
    members = np.array([[-3.2, -3.0, -2.8, -2.8, 0.05, -9.0]], np.float32)  # most keys are surely unhelpful
    unsure = uncertainty(MemberScores(version=1, members=members), keys=6)
    assert unsure[4] == pytest.approx(-abs(1 / (1 + math.exp(-0.05)) - 0.5), abs=1e-6)
    assert unsure.argmax() == 4
    ranked = MemberScores(version=1, members=members, compared=np.ones(6, bool), pairs=9)
    assert uncertainty(ranked, keys=6).argmax() == 0, "log-odds of nothing: nearest to the mean"
