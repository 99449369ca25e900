from __future__ import annotations

import pytest

from onibi.platform.replay.samplers.draws import PrioritySettings


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, [0.4, 0.4, 0.4]),
        ({"importance_exponent": 0.2, "importance_anneal_updates": 10}, [0.2, 0.6, 1.0]),
        ({"importance_exponent_final": 0.8, "importance_anneal_updates": 10}, [0.4, 0.6, 0.8]),
    ],
)
def test_the_importance_exponent_is_annealed_over_so_many_batches(given, expected):
    settings = PrioritySettings(**given)
    assert [settings.importance_exponent_at(batch) for batch in (0, 5, 20)] == pytest.approx(expected)


def test_an_exponent_that_would_never_be_reached_is_refused():
    with pytest.raises(ValueError, match="never reached while importance_anneal_updates is null"):
        PrioritySettings(importance_exponent_final=0.8)
