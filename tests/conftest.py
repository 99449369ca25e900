"""What every test counts on, however pytest was started."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is.
settings.register_profile("onibi", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("onibi")

# A shell without job control starts what it puts in the background with SIGINT ignored, and that is inherited: the
# commands that the tests start and interrupt would not hear of it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

TESTS = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several workers (``-n``) a file's tests stay together, and those that start clusters are one worker's."""
    for item in items:
        file = item.path.relative_to(TESTS)
        item.add_marker(pytest.mark.xdist_group("clusters" if file.parts[0] == "clusters" else str(file)))
