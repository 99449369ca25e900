"""Ray clusters of several nodes on this machine."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager

import pytest
from ray.cluster_utils import Cluster


@pytest.fixture(scope="session")
def empty_cluster():
    """Makes clusters without a node: a context manager of (cluster, options of each node that is added)."""

    @contextmanager
    def make(object_store_mib=100):
        folder = tempfile.mkdtemp(prefix="onr", dir="/tmp")  # paths of sockets must stay under 108 bytes
        cluster = Cluster()
        try:
            yield cluster, {"object_store_memory": object_store_mib * 2**20, "num_gpus": 0, "temp_dir": folder}
        finally:
            cluster.shutdown()  # ends the processes that it began, and no others
            shutil.rmtree(folder, ignore_errors=True)

    return make
