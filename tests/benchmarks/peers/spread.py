"""How a benchmark tells figures of several rounds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Median [least, most]; of one value itself."""
    median = f"{statistics.median(values):,.{digits}f}"
    return median if len(values) == 1 else f"{median} [{min(values):,.{digits}f}, {max(values):,.{digits}f}]"
