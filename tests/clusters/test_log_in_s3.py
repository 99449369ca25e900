"""The replay log of runs in an S3 bucket: a real HTTP server that speaks S3 (moto, in an environment of its own)."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import fs

from onibi.platform.replay.log.log_reader import ReplayLog
from onibi.platform.spec import ROLE_STEP

pytestmark = pytest.mark.slow

MOTO = "moto[server,s3]==5.2.5"
HOME = Path("~/.cache/onibi-tests/moto-5.2.5").expanduser()
AWS = {
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture(scope="module")
def moto():
    """The server's executable; installed at the first use."""
    found = HOME / "bin" / "moto_server"
    if not found.exists():
        subprocess.run([sys.executable, "-m", "venv", str(HOME)], check=True)
        made = subprocess.run([str(HOME / "bin" / "pip"), "install", "-q", MOTO], capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"{MOTO} cannot be installed here: {made.stderr.strip().splitlines()[-1]}")
    return found


class Store:
    """One server on a free port; its bucket is ``runs``."""

    def __init__(self, executable, log: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        with log.open("ab") as sink:
            self.process = subprocess.Popen(
                [str(executable), "-H", "127.0.0.1", "-p", str(self.port)],
                stdout=sink,
                stderr=sink,
                env={**os.environ, **AWS},
            )
        self._wait()
        filesystem = fs.S3FileSystem(
            endpoint_override=f"127.0.0.1:{self.port}", scheme="http", region="us-east-1", allow_bucket_creation=True
        )
        filesystem.create_dir("runs")

    def _wait(self):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/moto-api/", timeout=1).close()
            except OSError:
                time.sleep(0.1)
                continue
            return
        raise AssertionError("the S3 server did not come up")

    def url(self, folder: str) -> str:
        return f"s3://runs/{folder}?endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()


@pytest.fixture
def store(moto, tmp_path, monkeypatch):
    for name, value in AWS.items():
        monkeypatch.setenv(name, value)
    server = Store(moto, tmp_path / "moto.log")
    yield server
    server.stop()


def log_of(workshop, store, folder, name="run"):
    ring = json.loads((workshop.runs / name / "run.json").read_text(encoding="utf-8"))
    return ReplayLog(store.url(f"{folder}/{ring['run_id']}"))


def test_a_run_logs_into_a_bucket_and_goes_on_there_when_resumed(workshop, store, caplog):
    log = {"url": store.url("logs"), "segment_bytes": 4_096, "seal_seconds": 0.1}
    result = workshop.train(budget__max_env_steps=300, replay__log=log)
    sealed = log_of(workshop, store, "logs")
    assert sealed.verify() == []
    assert len(sealed.segments) > 1
    assert sealed.dataset().count_rows(filter=pa.compute.field("role") == ROLE_STEP) == result.env_steps
    assert sealed.captions().num_rows > 0
    with caplog.at_level("INFO"):
        resumed = workshop.resume(overrides=["budget.max_env_steps=500"])
    assert f"the replay ring is new: it begins with {sealed.rows:,} rows of the log" in caplog.text
    after = log_of(workshop, store, "logs")
    assert after.verify() == []
    assert after.rows > sealed.rows
    assert after.dataset().count_rows(filter=pa.compute.field("role") == ROLE_STEP) == resumed.env_steps


@pytest.mark.parametrize("on_error", ["continue", "stop"])
def test_a_store_that_goes_away_in_mid_run_ends_the_log_or_the_run(workshop, store, on_error):
    log = {"url": store.url("logs"), "segment_bytes": 4_096, "seal_seconds": 0.1, "on_error": on_error}
    process = workshop.start(budget__max_env_steps=10**7, replay__log=log)
    try:
        workshop.wait_for(lambda: workshop.history() and workshop.history()[-1]["replay/log_segments"] > 2, 90, process)
        store.stop()
        if on_error == "stop":
            assert process.wait(120) == 1, workshop.log_of()
        else:
            workshop.wait_for(lambda: workshop.history()[-1]["replay/log_failed"] == 1, 120, process)
            steps = workshop.history()[-1]["actors/env_steps"]
            workshop.wait_for(lambda: workshop.history()[-1]["actors/env_steps"] > steps + 100, 60, process)
    finally:
        process.kill()
        process.wait()
    text = workshop.log_of()
    assert "the replay log at s3://runs/logs/" in text
    assert "Traceback" not in text


@pytest.mark.timeout(900)
def test_a_store_that_is_out_of_reach_for_a_while_gets_the_rows_that_follow_and_none_twice(workshop, store):
    """A server that stands still answers late: requests that were given up may be carried out after all."""
    log = {"url": store.url("logs"), "segment_bytes": 4_096, "seal_seconds": 0.1}
    process = workshop.start(overrides=["budget.max_env_steps=100000000", "budget.max_seconds=900"], replay__log=log)
    try:
        workshop.wait_for(lambda: workshop.history() and workshop.history()[-1]["replay/log_segments"] > 2, 90, process)
        store.process.send_signal(signal.SIGSTOP)
        workshop.wait_for(lambda: workshop.history()[-1]["replay/log_failed"] == 1, 400, process)
        sealed = workshop.history()[-1]["replay/log_sealed_rows"]
        store.process.send_signal(signal.SIGCONT)
        workshop.wait_for(
            lambda: (
                workshop.history()[-1]["replay/log_failed"] == 0
                and workshop.history()[-1]["replay/log_sealed_rows"] > sealed + 100
            ),
            120,
            process,
        )
        process.terminate()
        assert process.wait(60) == 0
    finally:
        store.process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()
    after = log_of(workshop, store, "logs")
    assert after.verify() == []
    table = pa.concat_tables([after.read(segment) for segment in after.segments]).select(["lane", "generation"])
    assert len(set(zip(*table.to_pydict().values(), strict=True))) == table.num_rows > sealed
