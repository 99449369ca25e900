"""Areas under success curves, worked by hand, and when a run has arrived."""

from __future__ import annotations

import pytest

from onibi.clusters.experiments.success_curve import steps_to, success_area, success_figures
from onibi.platform.errors import TrainingError


@pytest.mark.parametrize(
    ("points", "first", "last", "area"),
    [
        ([(100.0, 1.0)], 0, 100, 0.5),  # a triangle: a run begins at 0
        ([(50.0, 0.5), (100.0, 1.0)], 0, 100, 0.5),
        ([(50.0, 1.0), (100.0, 1.0)], 0, 100, 0.75),
        ([(50.0, 1.0)], 0, 100, 0.75),  # the last evaluation stands until the end
        ([(50.0, 0.0), (100.0, 1.0)], 50, 100, 0.5),
        ([(50.0, 0.0), (100.0, 1.0)], 75, 100, 0.75),  # from ½ to 1, cut between two evaluations
        ([(50.0, 1.0), (100.0, 0.0)], 60, 90, 0.5),
        ([(200.0, 1.0)], 0, 100, 0.25),  # cut at 100, where the line stands at ½
        ([(50.0, 0.0), (100.0, 0.0)], 0, 100, 0.0),
    ],
)
def test_the_area_is_that_of_straight_lines_between_evaluations(points, first, last, area):
    assert success_area(points, first, last) == pytest.approx(area)


def test_a_run_arrives_at_the_first_evaluation_that_is_high_enough():
    points = [(10.0, 0.2), (20.0, 0.8), (30.0, 0.1)]
    assert steps_to(points, 0.8) == 20.0
    assert steps_to(points, 0.9) is None


def test_figures_come_from_the_environments_success_and_nothing_else():
    rows = [{"env_steps": 100.0, "success_rate": 1.0, "judged": 7.0, "intrinsic_return_mean": 9.0}]
    assert success_figures(rows, (0, 100)) == {"success_area": 0.5, "steps_to_80": 100.0}
    with pytest.raises(TrainingError, match="success_rate"):
        success_figures([{"env_steps": 100.0, "judged": 1.0}], (0, 100))


def test_a_span_without_steps_is_refused():
    with pytest.raises(ValueError, match="empty"):
        success_area([(1.0, 1.0)], 5, 5)
