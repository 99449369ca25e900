"""The Grafana of grafana_server.py, which is no module that tests could import."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


def _loaded():
    spec = importlib.util.spec_from_file_location("grafana_server", Path(__file__).parent / "grafana_server.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def grafana_module():
    return _loaded()


@pytest.fixture
def grafana(grafana_module):
    """A server that fails the test where it was sent something that no Grafana takes."""
    server = grafana_module.GrafanaServer()
    yield server
    server.close()
    assert server.faults == []
