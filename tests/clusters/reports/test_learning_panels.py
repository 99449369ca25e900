"""The panels of a learning curve show what was measured: no dip, no flat line, no empty frame that was not there."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from onibi.clusters.reports.learning_panels import PANELS, draw_panel, smoothed


def rows_of(key, values, every=100.0):
    return [{"actors/env_steps": every * (index + 1), key: float(value)} for index, value in enumerate(values)]


def drawn(title, rows, evaluations=()):
    (panel,) = (each for each in PANELS if each.title == title)
    axis = Figure().subplots()
    draw_panel(axis, panel, rows, list(evaluations))
    return axis


def test_an_axis_shows_its_numbers_and_no_offset():
    axis = drawn("Loss", rows_of("learner/loss", 1.2 + 1e-6 * np.arange(9)))
    FigureCanvasAgg(axis.figure).draw()
    assert axis.yaxis.get_offset_text().get_text() == ""


def test_a_line_through_few_points_goes_through_them():
    axis = drawn("Loss", rows_of("learner/loss", [1.0, 3.0]))
    (line,) = axis.lines
    assert line.get_ydata().tolist() == [1.0, 3.0]  # their mean at both would be a flat line
    assert line.get_marker() == "o"


def test_a_smoothed_curve_begins_and_ends_where_the_measured_one_does():
    rising = np.arange(100.0)
    np.testing.assert_allclose(smoothed(rising, 0.06), rising)
    np.testing.assert_allclose(smoothed(np.tile([0.0, 1.0, 2.0], 40), 3 / 120)[1:-1], 1.0)
    assert smoothed(rising[:10], 0.06).tolist() == rising[:10].tolist()


def test_moments_at_an_end_are_the_share_of_all_that_lie_near():
    moments = np.array([0.0, *[1.0] * 8, 0.0])
    assert smoothed(moments, 0.4, balanced=False)[0] == pytest.approx(2 / 3)  # 0 1 1
    assert smoothed(moments, 0.4)[0] == 0.0
    axis = drawn("Share of time held back by the limiter", rows_of("replay/actors_stalled", [0, 1] * 50))
    (line,) = axis.lines  # no thin one that jumps between 0 and 1
    assert np.ptp(line.get_ydata()) < 0.1


def test_lines_that_coincide_are_both_seen_and_have_room_above():
    delays = ("annotation/label_delay_p50_seconds", "annotation/label_delay_p95_seconds")
    rows = [{"actors/env_steps": 100.0 * step, **dict.fromkeys(delays, 4.9)} for step in range(1, 40)]
    axis = drawn("Seconds from caption to label", rows)
    below, above = axis.lines
    assert (below.get_linestyle(), above.get_linestyle()) == ("-", "--")
    assert axis.get_ylim() == (0.0, pytest.approx(1.12 * 4.9))


def test_all_panels_have_one_axis_of_env_steps():
    rows = rows_of("learner/loss", np.ones(50))
    rows[9]["actors/episode_return"] = 1.0
    evaluations = [{"env_steps": 6_000.0, "return_mean": 1.0}]
    limits = {drawn(title, rows, evaluations).get_xlim() for title in ("Loss", "Episode return")}
    assert limits == {(-120.0, 6_120.0)}


def test_numbers_of_keys_are_whole():
    axis = drawn("Caption keys", rows_of("annotation/keys", [1, 1, 2, 3]))
    assert all(float(tick).is_integer() for tick in axis.get_yticks())
