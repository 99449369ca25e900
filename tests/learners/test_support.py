from __future__ import annotations

import math

import pytest

from onibi.learners.support import Support, SupportSettings, resolve_sigma, resolve_support
from onibi.platform.errors import ConfigError


def test_edges_are_the_ends_and_centres_lie_between():
    support = Support(-1.0, 1.0, 4)
    assert support.edges.tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert support.centres.tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert support.width == 0.5


def test_auto_leaves_a_tenth_of_the_range_at_either_end():
    support = resolve_support(SupportSettings(), (0.0, 2.0))
    assert (support.low, support.high) == pytest.approx((-0.2, 2.2))


def test_a_range_that_is_set_is_taken_as_it_is_whatever_the_bounds():
    assert resolve_support(SupportSettings(low=-3.0, high=1.0, bins=7), (0.0, 2.0)) == Support(-3.0, 1.0, 7)


@pytest.mark.parametrize("bounds", [None, (-math.inf, 1.0), (0.0, math.inf), (1.0, 1.0)])
def test_auto_without_usable_bounds_says_which_setting_to_give(bounds):
    with pytest.raises(ConfigError, match=r"support\.low"):
        resolve_support(SupportSettings(), bounds)


def test_the_width_of_the_gaussian_is_given_in_bins_or_in_values():
    support = Support(0.0, 10.0, 20)
    assert resolve_sigma(SupportSettings(), support) == 0.375  # ¾ · ½
    assert resolve_sigma(SupportSettings(sigma_bins=2.0), support) == 1.0
    assert resolve_sigma(SupportSettings(sigma_value=2.0), support) == 2.0


def test_symlog_bins_are_equal_in_symlog_units_and_lie_in_value_units():
    e = math.e
    support = Support(1 - e, e**3 - 1, 4, "symlog")  # −1 to 3 in symlog units
    assert support.edges.tolist() == pytest.approx([-1.0, 0.0, 1.0, 2.0, 3.0])
    assert support.width == pytest.approx(1.0)
    assert support.centres.tolist() == pytest.approx([1 - e**0.5, e**0.5 - 1, e**1.5 - 1, e**2.5 - 1])
    assert support.atoms.tolist() == pytest.approx([1 - e, e ** (1 / 3) - 1, e ** (5 / 3) - 1, e**3 - 1])


def test_linear_atoms_reach_from_end_to_end():
    assert Support(-1.0, 1.0, 5).atoms.tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]


def test_symlog_auto_leaves_a_tenth_of_the_symlog_range_at_either_end():
    support = resolve_support(SupportSettings(spacing="symlog"), (0.0, math.e**10 - 1))
    assert (support.low, support.high) == pytest.approx((1 - math.e, math.e**11 - 1))
    assert support.spacing == "symlog"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"low": 0.0}, "go together"),
        ({"low": 1.0, "high": 1.0}, "not below"),
        ({"sigma_bins": 1.0, "sigma_value": 1.0}, "set one"),
        ({"spacing": "symlog", "sigma_value": 1.0}, "set sigma_bins instead"),
        ({"spacing": "symlog", "sigma_bins": 0.2}, "sigma_bins is 0.2: a Gaussian narrower than 0.35 of a symlog bin"),
    ],
)
def test_half_a_range_and_two_widths_are_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        SupportSettings(**settings)
