"""How numbers are written for people: short, with their unit, the same in displays, tables and summaries."""

from __future__ import annotations

import math

UNKNOWN = "–"
"""Stands where there is no figure yet."""

_SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def count_text(value: float | None) -> str:
    """A count in three digits or four: 950, 12.3k, 4.56M."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    for scale, letter in _SCALES:
        # 999,960 would be written 1000k: rounding decides which scale it belongs to.
        if abs(value) >= scale * 0.9995:
            scaled = value / scale
            return f"{scaled:.{_decimals(scaled)}f}{letter}"
    return f"{value:.0f}" if float(value).is_integer() or abs(value) >= 99.5 else f"{value:.2g}"


def tick_text(value: float, _position: int) -> str:
    """A count at a tick of an axis, without the decimals of ``count_text``: 100k, 1.5M."""
    scale, letter = (1e6, "M") if abs(value) >= 1e6 else (1e3, "k") if abs(value) >= 1e3 else (1.0, "")
    return f"{value / scale:g}{letter}"


def value_text(value: float | None) -> str:
    """A loss, return or ratio in three significant digits."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if value == 0:
        return "0"
    return count_text(value) if abs(value) >= 999.5 else f"{value:.3g}"


def share_text(value: float | None) -> str:
    """A share of 1 as per cent: two digits, 0.04%, 7.5%, 83%."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    percent = 100 * value
    if 0 < percent < 0.01:
        return "<0.01%"
    return f"{percent:.2g}%" if percent < 9.95 else f"{percent:.0f}%"


def duration_text(seconds: float | None) -> str:
    """A duration as m:ss or h:mm:ss."""
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def bytes_text(size: float) -> str:
    """A size in binary units: 512 B, 64.0 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def _decimals(scaled: float) -> int:
    return 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0
