"""What a run says of a Ray cluster that cannot be joined."""

from __future__ import annotations

import pytest
import ray

from onibi.clusters.coordinator.ray_session import ray_session
from onibi.clusters.run_plan import plan_run
from onibi.clusters.run_settings import RunSettings
from onibi.platform.config import read_settings
from onibi.platform.errors import ClusterError, ConfigError


@pytest.fixture
def plan(workshop):
    return plan_run(read_settings(RunSettings, workshop.settings()))


@pytest.mark.parametrize(
    ("address", "error", "told"),
    [
        ("127.0.0.1:1", ClusterError, r"no Ray cluster answers at RAY_ADDRESS 127\.0\.0\.1:1 .*ray start --head"),
        ("[::1]:99999", ClusterError, "no Ray cluster answers"),
        ("ray://127.0.0.1:10001", ConfigError, r"joins a cluster as one of its nodes.*onibi submit"),
        ("http://127.0.0.1:8265", ConfigError, "onibi submit --address"),
    ],
)
def test_an_address_where_no_cluster_is_is_told_at_once(plan, monkeypatch, address, error, told):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(error, match=told), ray_session(plan):
        pass
    assert not ray.is_initialized()
