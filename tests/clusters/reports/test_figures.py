"""Numbers are written short, and never wrong by their rounding."""

from __future__ import annotations

import math

import pytest

from onibi.clusters.reports.figures import bytes_text, count_text, duration_text, share_text, tick_text, value_text


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (count_text, 0, "0"),
        (count_text, 99.4, "99"),
        (count_text, 99.6, "100"),
        (count_text, 950, "950"),
        (count_text, 999, "999"),
        (count_text, 999.6, "1.00k"),
        (count_text, 1_000, "1.00k"),
        (count_text, 12_345, "12.3k"),
        (count_text, 99_960, "100k"),
        (count_text, 999_960, "1.00M"),
        (count_text, 4_560_000, "4.56M"),
        (count_text, -12_345, "-12.3k"),
        (count_text, 0.123, "0.12"),
        (count_text, None, "–"),
        (count_text, math.nan, "–"),
        (lambda value: tick_text(value, 0), 999, "999"),
        (lambda value: tick_text(value, 0), 100_000, "100k"),
        (lambda value: tick_text(value, 0), -1_500_000, "-1.5M"),
        (value_text, 0.0, "0"),
        (value_text, 0.12345, "0.123"),
        (value_text, 1.202, "1.2"),
        (value_text, 475.0, "475"),
        (value_text, 999.4, "999"),
        (value_text, 999.9, "1.00k"),
        (value_text, 6_594.0, "6.59k"),
        (value_text, 123_456.0, "123k"),
        (value_text, math.inf, "–"),
        (share_text, 0.0, "0%"),
        (share_text, 0.00001, "<0.01%"),
        (share_text, 0.0004, "0.04%"),
        (share_text, 0.075, "7.5%"),
        (share_text, 0.0996, "10%"),
        (share_text, 0.834, "83%"),
        (share_text, 1.0, "100%"),
        (duration_text, 0.4, "0:00"),
        (duration_text, 59.6, "1:00"),
        (duration_text, 3_599, "59:59"),
        (duration_text, 3_661, "1:01:01"),
        (duration_text, -1.0, "0:00"),
        (duration_text, math.inf, "–"),
        (bytes_text, 512, "512 B"),
        (bytes_text, 64 << 20, "64.0 MiB"),
        (bytes_text, 5 << 40, "5120.0 GiB"),
    ],
)
def test_figures_are_written_as(write, value, text):
    assert write(value) == text
