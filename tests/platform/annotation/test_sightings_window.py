from __future__ import annotations

import numpy as np
import pytest

from onibi.platform.annotation.sightings_window import SightingsWindow
from onibi.platform.errors import CaptionError


@pytest.mark.parametrize("seed", range(5))
def test_the_window_holds_its_rows_and_at_most_a_sixteenth_more(seed):
    rng, rows, keys = np.random.default_rng(seed), 320, 6
    window, log, counts = SightingsWindow(rows), [], np.zeros(0, np.int64)
    for _ in range(300):
        fresh = rng.integers(0, keys, rng.integers(1, 12))  # the keys of a fragment's rows; new ones come later
        fresh = np.minimum(fresh, len(log) // 100 + 1)
        log += fresh.tolist()
        counts = np.bincount(log, minlength=len(counts)).astype(np.int64)
        window.note(len(log), counts)
        found = window.counts(counts, len(log))
        assert found.sum() >= min(rows, len(log))
        assert found.sum() <= min(rows * 17 // 16 + 12, len(log))
        assert (found == np.bincount(log[len(log) - found.sum() :], minlength=len(counts))).all()
    assert len(log) > 3 * rows


def test_without_a_length_all_rows_count():
    window, counts = SightingsWindow(None), np.array([3, 4])
    window.note(7, counts)
    assert window.counts(counts + 5, 10**9).tolist() == [8, 9]
    with pytest.raises(CaptionError, match="1 or more"):
        SightingsWindow(0)
