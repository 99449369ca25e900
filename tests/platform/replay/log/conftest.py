from __future__ import annotations

import pytest

from tests.platform.replay.log.log_workbench import Workbench


@pytest.fixture
def bench(rows, ring_path, tmp_path):
    bench = Workbench(rows, ring_path, tmp_path / "log")
    yield bench
    if bench.shard is not None:
        bench.shard.close()
