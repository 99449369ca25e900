from __future__ import annotations

import pytest

from onibi.learners.exploration import ExplorationSettings
from onibi.learners.r2d2 import R2d2Learner
from onibi.learners.r2d2_settings import R2d2Settings
from onibi.learners.support import SupportSettings
from onibi.platform.replay.samplers.draws import PrioritySettings

SUPPORT = SupportSettings(low=-20.0, high=20.0, bins=41, spacing="symlog")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"value_loss": "hl_gauss", "value_rescaling": 1e-3}, r"value_rescaling is read by .*symlog"),
        ({"value_loss": "quantile", "value_rescaling": 1e-3}, "value_rescaling is read by value_loss mse and huber"),
        ({"value_loss": "mse", "support": SUPPORT}, "support is read by"),
        ({"value_loss": "mse", "value_rescaling": 1e-3, "exploration": ExplorationSettings(temperature=1.0)}, "one of"),
        ({"length": 10, "period": 11}, "never be learned from"),
        ({"priorities": None, "priority_largest_share": 0.5}, "priority_largest_share is read with priorities alone"),
    ],
)
def test_options_that_would_not_act_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        R2d2Settings(**{"length": 80, "period": 40} | given)


def test_a_state_has_the_size_of_its_cell_and_priorities_may_be_left_out():
    assert R2d2Settings().state_size == 2 * 128 + 1
    assert R2d2Learner.needs(R2d2Settings(priorities=None)).draws.priorities is None
    assert isinstance(R2d2Learner.needs(R2d2Settings()).draws.priorities, PrioritySettings)
