"""Tracking sends everything once, keeps secrets, and never holds a run up. All against real MLflow."""

from __future__ import annotations

import logging
import math
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from onibi.platform.mlflow_store import MlflowStore, Refused
from onibi.platform.tracking import (
    MlflowTracker,
    NullTracker,
    TrackedRun,
    TrackingSettings,
    open_tracker,
    tracking_uri,
)

CONFIG = {"learner": {"kind": "dqn", "learning_rate": 5e-4}, "annotator": {"api_key": "sk-secret", "max_tokens": 16}}
FLUSH_SECONDS = 120.0  # generous: a first connection imports MLflow and makes its tables


@pytest.fixture(scope="module")
def runs_root(tmp_path_factory):
    """One SQLite store for the module: its tables take seconds to make."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield tmp_path_factory.mktemp("runs")


def run_of(name: str, config: dict = CONFIG) -> TrackedRun:
    return TrackedRun(run_id=f"id-{name}", name=name, config=config, tags={"onibi.preset": "test"})


def track(root: Path, run: TrackedRun, settings: TrackingSettings | None = None) -> tuple[MlflowTracker, list[str]]:
    started: list[str] = []
    tracker = open_tracker(settings or TrackingSettings(), run, root, lambda run_id, _: started.append(run_id))
    assert isinstance(tracker, MlflowTracker)
    return tracker, started


def client_of(uri: str):
    from mlflow.tracking import MlflowClient

    return MlflowClient(uri)


def test_figures_params_config_and_files_arrive_and_the_run_is_finished(runs_root, tmp_path):
    tracker, started = track(runs_root, run_of("all"))
    for step in range(1, 1501):  # more than one batch
        tracker.log({"learner/loss": 1 / step, "actors/env_steps": step * 10.0}, step * 10)
    (tmp_path / "table.csv").write_text("key,label\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "weights").write_bytes(b"w")
    tracker.artifact(tmp_path / "table.csv", "captions")
    tracker.artifact(tmp_path / "folder", "checkpoint")
    tracker.artifact(tmp_path / "table.csv", "")
    assert tracker.close("FINISHED", FLUSH_SECONDS)
    assert (tracker.statistics().sent_points, tracker.statistics().dropped_points) == (3000, 0)

    client = client_of(tracker.uri)
    run = client.get_run(started[0])
    losses = client.get_metric_history(started[0], "learner/loss")
    assert sorted((point.step, point.value) for point in losses) == [(step * 10, 1 / step) for step in range(1, 1501)]
    assert run.info.status == "FINISHED" and run.info.run_name == "all"
    assert run.data.tags["onibi.run_id"] == "id-all" and run.data.tags["onibi.preset"] == "test"
    assert run.data.params == {
        "learner.kind": "dqn",
        "learner.learning_rate": "0.0005",
        "annotator.api_key": "***",
        "annotator.max_tokens": "16",
    }
    names = {
        entry.path for folder in ("", "captions", "checkpoint") for entry in client.list_artifacts(started[0], folder)
    }
    assert {"config.yaml", "table.csv", "captions/table.csv", "checkpoint/weights"} <= names
    everything = b"".join(path.read_bytes() for path in runs_root.rglob("*") if path.is_file())
    assert b"learning_rate" in everything and b"sk-secret" not in everything


def test_a_resumed_run_goes_on_in_the_same_mlflow_run_and_keeps_its_params(runs_root):
    first, started = track(runs_root, run_of("resumed"))
    first.log({"learner/loss": 3.0}, 10)
    assert first.close("KILLED", FLUSH_SECONDS)
    changed = {"learner": {"kind": "dqn", "learning_rate": 0.1}, "new": 1}
    second, started_again = track(runs_root, run_of("resumed", changed))
    second.log({"learner/loss": 2.0}, 20)
    assert second.close("FINISHED", FLUSH_SECONDS)
    assert started == started_again
    assert second.statistics().failures == 0
    client = client_of(second.uri)
    run = client.get_run(started[0])
    assert run.data.params["learner.learning_rate"] == "0.0005" and run.data.params["new"] == "1"
    assert [point.step for point in client.get_metric_history(started[0], "learner/loss")] == [10, 20]
    assert run.info.status == "FINISHED"


def test_infinite_figures_are_left_out_nan_is_kept_and_names_are_made_allowed(runs_root):
    tracker, started = track(runs_root, run_of("odd"))
    tracker.log({"a/inf": math.inf, "a/minus": -math.inf, "a/nan": math.nan, "a/x(1)=é": 1.0, "n" * 300: 2.0}, 1)
    assert tracker.close("FINISHED", FLUSH_SECONDS)
    metrics = client_of(tracker.uri).get_run(started[0]).data.metrics
    assert sorted(metrics) == ["a/nan", "a/x_1___", "n" * 250]
    assert math.isnan(metrics["a/nan"])


def test_what_is_refused_is_counted_and_does_not_hold_up_the_rest(runs_root, tmp_path, caplog):
    tracker, started = track(runs_root, run_of("refused"))
    tracker.artifact(tmp_path / "absent.png", "")
    tracker.log({"a/b": 1.0}, 1)
    with caplog.at_level(logging.WARNING):
        assert tracker.close("FINISHED", FLUSH_SECONDS)
    assert "absent.png is not there any more" in caplog.text
    assert tracker.statistics().failures == 1
    assert client_of(tracker.uri).get_run(started[0]).data.metrics == {"a/b": 1.0}


def test_a_run_deleted_in_mlflow_meanwhile_costs_its_figures_and_no_time(runs_root):
    tracker, started = track(runs_root, run_of("deleted"))
    tracker.log({"a/b": 1.0}, 1)
    wait_until(lambda: tracker.statistics().sent_points == 1)
    client_of(tracker.uri).delete_run(started[0])
    tracker.log({"a/b": 2.0, "a/c": 3.0}, 2)
    wait_until(lambda: tracker.statistics().dropped_points == 2)  # refused for good: not asked again
    assert not tracker.close("FINISHED", FLUSH_SECONDS)
    assert tracker.statistics().sent_points == 1


def test_figures_that_a_failing_store_did_not_take_are_counted_at_the_end(runs_root, tmp_path, caplog, capfd):
    source, _ = track(runs_root, run_of("first"))
    assert source.close("FINISHED", FLUSH_SECONDS)
    shutil.copy(runs_root / "mlflow.db", tmp_path / "mlflow.db")
    tracker, _ = track(tmp_path, run_of("failing"), TrackingSettings(retry_seconds=0.05))
    tracker.log({"a/b": 1.0}, 1)
    wait_until(lambda: tracker.statistics().sent_points == 1)
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("ALTER TABLE metrics RENAME TO gone")
    database.close()
    tracker.log({"a/b": 2.0, "a/c": 3.0}, 2)
    wait_until(lambda: tracker.statistics().failures >= 2)
    with caplog.at_level(logging.WARNING):
        assert not tracker.close("FINISHED", 1.0)
    assert "2 figures and files did not reach" in caplog.text
    assert "Traceback" not in capfd.readouterr().err + caplog.text, "MLflow printed one for each attempt"


def test_no_password_of_the_server_is_logged(tmp_path, caplog):
    settings = TrackingSettings(uri=f"http://user:s3cret@127.0.0.1:{free_port()}", retry_seconds=0.05)
    tracker, _ = track(tmp_path, run_of("nobody"), settings)
    wait_until(lambda: tracker.statistics().failures >= 1)
    tracker.close("FAILED", 0.1)
    assert "does not answer" in caplog.text and "127.0.0.1" in caplog.text
    assert "s3cret" not in caplog.text


def test_a_refusal_is_told_without_the_servers_password(tmp_path):
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import BAD_REQUEST

    def refuse():
        raise MlflowException("API request to http://user:s3cret@host/api failed", BAD_REQUEST)

    with pytest.raises(Refused, match=r"http://\*\*\*@host/api failed"):
        MlflowStore("http://user:s3cret@host", "x", None, 1)._asked(refuse)


def test_the_buffer_drops_its_oldest_figures_and_says_so_once(tmp_path, caplog):
    settings = TrackingSettings(uri=f"http://127.0.0.1:{free_port()}", buffer_points=10, retry_seconds=0.05)
    tracker, started = track(tmp_path, run_of("nobody"), settings)
    with caplog.at_level(logging.WARNING):
        for step in range(25):
            tracker.log({"a": 1.0}, step)
        assert not tracker.close("FINISHED", 0.5)
    assert tracker.statistics().dropped_points == 15 and started == []
    assert caplog.text.count("oldest figures are dropped") == 1
    assert "10 figures and files did not reach" in caplog.text


def test_the_uri_is_the_setting_then_the_environment_then_a_file_of_all_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    assert tracking_uri(TrackingSettings(uri="http://here"), tmp_path) == "http://here"
    assert tracking_uri(TrackingSettings(), tmp_path) == "http://elsewhere"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking_uri(TrackingSettings(), tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"


def test_disabled_tracking_makes_no_file_and_no_thread(tmp_path):
    threads = threading.active_count()
    tracker = open_tracker(TrackingSettings(enabled=False), run_of("off"), tmp_path, lambda *_: pytest.fail("started"))
    tracker.log({"a": 1.0}, 1)
    tracker.artifact(tmp_path, "")
    assert tracker.close("FINISHED", 0.0) and isinstance(tracker, NullTracker)
    assert threading.active_count() == threads and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "faulty", [{"buffer_points": 0}, {"retry_seconds": 0.0}, {"retry_seconds": 99.0}, {"request_timeout_seconds": 0}]
)
def test_settings_that_cannot_work_are_refused(faulty):
    with pytest.raises(ValueError, match=r"buffer_points|request_timeout_seconds"):
        TrackingSettings(**faulty)


@pytest.mark.slow  # an MLflow server takes 12 to 25 seconds to start, and it starts twice
def test_a_server_killed_midway_costs_the_run_no_time_and_no_figure(tmp_path, caplog, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    port = free_port()
    server = start_server(tmp_path, port)
    settings = TrackingSettings(uri=f"http://127.0.0.1:{port}", retry_seconds=0.2, retry_limit_seconds=0.5)
    try:
        tracker, started = track(tmp_path / "runs", run_of("through"), settings)
        tracker.log({"learner/loss": 0.0}, 0)
        wait_until(lambda: tracker.statistics().sent_points == 1)
        kill_group(server)
        with caplog.at_level(logging.INFO):
            for step in range(1, 6):
                tracker.log({"learner/loss": float(step)}, step)  # returns though nobody listens
            wait_until(lambda: tracker.statistics().failures >= 2)
            server = start_server(tmp_path, port)
            tracker.log({"learner/loss": 6.0}, 6)
            assert tracker.close("FINISHED", FLUSH_SECONDS)
        assert caplog.text.count("does not answer") == 1 and caplog.text.count("answers again") == 1
        assert tracker.statistics().sent_points == 7 and tracker.statistics().dropped_points == 0
        client = client_of(settings.uri or "")
        history = client.get_metric_history(started[0], "learner/loss")
        assert sorted((point.step, point.value) for point in history) == [(step, float(step)) for step in range(7)]
        assert client.get_run(started[0]).info.status == "FINISHED"
    finally:
        kill_group(server)


def test_an_experiment_that_was_deleted_is_told_by_what_to_do(tmp_path, runs_root, caplog):
    root = tmp_path / "runs"
    root.mkdir()
    shutil.copy(runs_root / "mlflow.db", root)  # its tables take seconds to make
    client = client_of(tracking_uri(TrackingSettings(), root))
    client.delete_experiment(client.get_experiment_by_name("onibi").experiment_id)
    with caplog.at_level(logging.WARNING):
        tracker, _ = track(root, run_of("late"))
        tracker.log({"learner/loss": 1.0}, 1)
        assert not tracker.close("FINISHED", FLUSH_SECONDS)
    assert "its experiment 'onibi' is deleted. Restore it (mlflow experiments restore" in caplog.text


def test_runs_that_were_killed_are_ended_in_mlflow_by_the_next_session_and_no_others(runs_root, caplog):
    for name in ("dead", "alive"):
        store = MlflowStore(tracking_uri(TrackingSettings(), runs_root), "onibi", runs_root / "mlartifacts", 15)
        store.open(f"id-{name}", name, {}, CONFIG)
    next_one = MlflowTracker(TrackingSettings(), run_of("next"), runs_root, lambda *_: None, lambda: {"id-dead"})
    assert next_one.close("FINISHED", FLUSH_SECONDS)
    client = client_of(next_one.uri)
    (experiment,) = client.search_experiments(filter_string="name = 'onibi'")
    runs = client.search_runs([experiment.experiment_id])
    ended = {run.info.run_name: run.info.status for run in runs}
    assert (ended["dead"], ended["alive"], ended["next"]) == ("KILLED", "RUNNING", "FINISHED")

    with caplog.at_level(logging.INFO):
        asked = Path("nowhere").read_text
        one = MlflowTracker(TrackingSettings(), run_of("one"), runs_root, lambda *_: None, asked)
        one.log({"learner/loss": 1.0}, 1)
        assert one.close("FINISHED", FLUSH_SECONDS)
    assert "killed runs are not ended" in caplog.text, "and nothing else of it"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition, seconds: float = FLUSH_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "gave up waiting"
        time.sleep(0.05)


def start_server(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """A real MLflow server on loopback, answering; in a process group of its own, as it has workers."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/server.db",
        "--artifacts-destination",
        str(folder / "files"),
    ]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}
    with (folder / "server.log").open("ab") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
    try:
        wait_until(lambda: server.poll() is not None or answers(port))
        assert server.poll() is None, (folder / "server.log").read_text()
    except BaseException:
        kill_group(server)
        raise
    return server


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def kill_group(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()
