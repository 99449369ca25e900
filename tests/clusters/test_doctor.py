"""The doctor finds what is missing, and only what a run needs makes it fail."""

from __future__ import annotations

import http.server
import io
import os
import socket
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

from onibi.clusters import doctor
from onibi.clusters.doctor import examine
from onibi.clusters.reports.doctor_findings import DoctorRow, Finding, doctor_table, exit_code
from onibi.platform.errors import ConfigError
from onibi.platform.replay.ring.file import RING_SUFFIX
from onibi.platform.replay.ring.writer import RingWriter
from onibi.platform.run_folder import create_run
from onibi.platform.shell_words import path_as_typed
from onibi.platform.spec import ArraySpec, ReplaySpec


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def rows_of(tmp_path, name: str, ray_address: str | None = None, config: str | None = None) -> list[DoctorRow]:
    memory = tmp_path / "shm"
    memory.mkdir(exist_ok=True)
    return [row for row in examine(tmp_path / "runs", memory, ray_address, config) if row.name == name]


def test_this_machine_can_run_and_every_finding_that_is_not_good_has_a_hint(tmp_path):
    create_run(tmp_path / "runs", "a")
    (tmp_path / "shm").mkdir()
    rows = examine(tmp_path / "runs", tmp_path / "shm", None)
    assert exit_code(rows) == 0, rows
    assert all(row.hint for row in rows if row.finding is not Finding.GOOD)
    (runs,) = [row for row in rows if row.name == "runs folder"]
    assert "1 run," in runs.found
    (torch,) = [row for row in rows if row.name == "torch"]
    assert "CPU only" in torch.found or torch.finding is Finding.GOOD


def test_a_needed_package_that_is_missing_is_an_error_and_an_optional_one_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "_NEEDED", ("numpy", "onibi_no_such_package"))
    monkeypatch.setattr(doctor, "_OPTIONAL", (("onibi_nor_this", "games", "minatar"),))
    (needed,) = rows_of(tmp_path, "onibi_no_such_package")
    (optional,) = rows_of(tmp_path, "onibi_nor_this")
    assert (needed.finding, optional.finding) == (Finding.MISSING, Finding.WARNING)
    python = path_as_typed(Path(sys.executable))
    assert optional.hint == f"{python} -m pip install 'onibi[minatar]'" and "games" in optional.found
    assert needed.hint == f"{python} -m pip install onibi brings it"
    assert exit_code([needed]) == 1 and exit_code([optional]) == 0


@pytest.mark.parametrize(
    ("preset", "packages"),
    [
        ("cartpole-dqn", set()),
        ("atari-pong-dqn", {"ale_py"}),
        ("lunarlander-dqn", {"Box2D"}),
        ("minatar-breakout-dqn", {"minatar"}),
        ("minigrid-doorkey-oni", {"minigrid"}),
        ("minihack-oni", {"nle", "minihack"}),
        ("nethack-oni", {"nle"}),
    ],
)
def test_a_preset_is_told_what_it_needs_and_of_all_else_only_what_is_not_good(preset, packages, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "_NEEDED", ("numpy",))  # torch takes seconds
    (tmp_path / "shm").mkdir()
    rows = examine(tmp_path / "runs", tmp_path / "shm", None, preset)
    optional = {name for name, _, _ in doctor._OPTIONAL}
    assert {row.name for row in rows} & optional == packages
    plain = [row for row in rows if row.name not in (*packages, "model server", "all else")]
    assert all(row.finding is not Finding.GOOD for row in plain)
    assert exit_code(rows) == 0
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in optional else "1.0")
    rows = examine(tmp_path / "runs", tmp_path / "shm", None, preset)
    assert {row.name for row in rows if row.finding is Finding.MISSING} == packages
    assert {row.name for row in rows} & optional == packages, "what is missing and not needed is not told"


def test_a_run_is_looked_at_by_name_by_folder_and_as_last(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "_NEEDED", ("numpy",))
    (tmp_path / "shm").mkdir()
    run = create_run(tmp_path / "runs", "first-try")
    run.write_config({"environment": {"id": "MinAtar/Breakout-v1"}, "learner": {"kind": "dqn"}})
    monkeypatch.chdir(tmp_path)
    for name in ("first-try", "runs/first-try", "last"):
        assert f"{name} asks none" in [row.found for row in examine(tmp_path / "runs", tmp_path / "shm", None, name)]
    with pytest.raises(ConfigError, match=r"'first-tyr' is neither .* nor a file.* No run in .*runs has this name"):
        examine(tmp_path / "runs", tmp_path / "shm", None, "first-tyr")
    with pytest.raises(ConfigError, match="none: is not there"):
        examine(tmp_path / "none", tmp_path / "shm", None, "last")


def test_of_a_preset_and_a_run_with_one_name_the_preset_is_meant_and_the_folder_is_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "_NEEDED", ("numpy",))
    (tmp_path / "shm").mkdir()
    run = create_run(tmp_path / "runs", "cartpole-dqn")
    run.write_config({"environment": {"id": "LunarLander-v3"}, "learner": {"kind": "dqn"}})
    of_preset = examine(tmp_path / "runs", tmp_path / "shm", None, "cartpole-dqn")
    of_run = examine(tmp_path / "runs", tmp_path / "shm", None, str(run.path))
    assert ("Box2D" in {row.name for row in of_preset}, "Box2D" in {row.name for row in of_run}) == (False, True)


def test_each_extra_that_a_preset_needs_has_a_row():
    assert {"minatar", "Box2D"} <= {name for name, _, _ in doctor._OPTIONAL}
    assert doctor._version("Box2D") is not None, "the name that is imported is the one that is looked for"


def test_shared_memory_that_is_not_there_is_an_error_and_too_little_a_warning(tmp_path, monkeypatch):
    (row,) = [row for row in examine(tmp_path / "runs", tmp_path / "absent", None) if row.name == "shared memory"]
    assert row.finding is Finding.MISSING and "absent" in row.found
    monkeypatch.setattr(doctor, "_SHARED_MEMORY_LEAST_BYTES", 1 << 60)
    (row,) = rows_of(tmp_path, "shared memory")
    assert row.finding is Finding.WARNING and "--shm-size" in row.hint


def test_a_ring_without_a_living_writer_is_listed_with_what_to_do(tmp_path):
    assert rows_of(tmp_path, "orphaned ring") == []
    path = tmp_path / "shm" / f"left{RING_SUFFIX}"
    path.write_bytes(b"no header")
    (row,) = rows_of(tmp_path, "orphaned ring")
    assert str(path) in row.found and f"rm {path}" in row.hint and row.finding is Finding.WARNING


def test_a_killed_runs_ring_is_listed_with_the_name_to_resume(tmp_path):
    rows_of(tmp_path, "orphaned ring")  # makes the folders
    run = create_run(tmp_path / "runs", "shot")
    spec = ReplaySpec(observation=(ArraySpec(name="observation", dtype="float32", shape=(4,)),), actions=2)
    RingWriter.create(
        tmp_path / "shm" / f"onibi-x{RING_SUFFIX}",
        spec,
        groups=1,
        lanes_per_group=1,
        slots=16,
        window_rows=2,
        run_id=run.record().run_id,
    ).close()
    (row,) = rows_of(tmp_path, "orphaned ring")
    assert "of run shot (" in row.found
    assert "onibi resume shot, or rm" in row.hint


def test_a_runs_folder_below_a_file_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    rows = examine(tmp_path / "file" / "runs", tmp_path, None)
    assert [row.finding for row in rows if row.name == "runs folder"] == [Finding.MISSING]


def test_a_tracking_server_is_asked_and_its_password_not_shown(tmp_path, monkeypatch):
    asked: list[str] = []

    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = http.server.HTTPServer(("127.0.0.1", 0), Health)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{server.server_port}/mlflow")
    (row,) = rows_of(tmp_path, "tracking")
    server.shutdown()
    server.server_close()
    assert asked == ["/mlflow/health"] and row.finding is Finding.GOOD
    assert "secret" not in row.found and "***@127.0.0.1" in row.found
    (row,) = rows_of(tmp_path, "tracking")  # nobody listens now
    assert row.finding is Finding.WARNING and "refused" in row.found and "secret" not in row.found


@pytest.mark.parametrize("uri", ["http://127.0.0.1:50x0", "http://[::1"])
def test_an_address_that_is_none_is_told_as_a_server_that_does_not_answer(tmp_path, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    (row,) = rows_of(tmp_path, "tracking")
    assert row.finding is Finding.WARNING and "does not answer: " in row.found


def test_a_port_that_speaks_no_http_is_told_as_a_server_that_does_not_answer(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet() -> None:
            caller, _ = listening.accept()
            with caller:
                caller.recv(4_096)
                caller.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

        threading.Thread(target=greet, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{listening.getsockname()[1]}")
        (row,) = rows_of(tmp_path, "tracking")
    assert row.finding is Finding.WARNING and "SSH-2.0" in row.found


def test_a_named_ray_cluster_must_answer(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        (row,) = rows_of(tmp_path, "ray cluster", address)
        assert row.finding is Finding.GOOD
    (row,) = rows_of(tmp_path, "ray cluster", address)
    assert row.finding is Finding.MISSING and "ray start --head" in row.hint
    (row,) = rows_of(tmp_path, "ray cluster", "nowhere")
    assert row.finding is Finding.MISSING and "no host:port" in row.found


def test_a_run_that_starts_its_own_ray_needs_no_cluster_and_auto_needs_one_here(tmp_path, monkeypatch):
    (row,) = rows_of(tmp_path, "ray cluster", "local")
    assert row.finding is Finding.GOOD and "starts its own" in row.found
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", set)
    monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda _: None)
    (row,) = rows_of(tmp_path, "ray cluster", "auto")
    assert row.finding is Finding.MISSING and "none runs on this machine" in row.found
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", lambda: {"127.0.0.1:6379"})
    (row,) = rows_of(tmp_path, "ray cluster", "auto")
    assert row.finding is Finding.GOOD and "127.0.0.1:6379" in row.found


def test_another_python_first_on_path_is_a_warning(tmp_path, monkeypatch):
    (tmp_path / "python").write_text("#!/bin/sh\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path) + os.pathsep + os.environ["PATH"])
    (row,) = rows_of(tmp_path, "python on PATH")
    assert row.finding is Finding.WARNING and row.found == str(tmp_path / "python")


def test_the_table_shows_hints_and_reads_no_markup():
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(
        doctor_table([DoctorRow("ring", Finding.WARNING, "[red]found", "do this"), DoctorRow("x", Finding.GOOD, "y")])
    )
    text = console.file.getvalue()
    assert "[red]found" in text and "→ do this" in text and text.count("✓") == 1 and text.count("!") == 1


def test_the_model_servers_of_a_config_are_asked_for_their_models_with_the_key(tmp_path, monkeypatch):
    asked: list[tuple[str, str | None]] = []

    class Models(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers["Authorization"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"data": [{"id": "llama"}]}')

        def log_message(self, *_: object) -> None:
            """Quiet."""

    def row(**settings) -> DoctorRow:
        lines = [f"  {name}: {value}" for name, value in settings.items()]
        config = tmp_path / "run.yaml"
        config.write_text("\n".join(["extends: minihack-oni", "annotator:", "  kind: openai", *lines]))
        (found,) = rows_of(tmp_path, "model server", config=str(config))
        return found

    server = http.server.HTTPServer(("127.0.0.1", 0), Models)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    monkeypatch.setenv("JUDGE_KEY", "sk-1")
    assert row(base_url=url, model="llama", api_key_env="JUDGE_KEY").finding is Finding.GOOD
    assert asked == [("/v1/models", "Bearer sk-1")]
    other = row(base_url=url, model="gpt")
    assert other.finding is Finding.WARNING and "llama" in other.hint and "'gpt'" in other.found
    assert asked[1] == ("/v1/models", None)
    monkeypatch.delenv("JUDGE_KEY")
    keyless = row(base_url=url, model="llama", api_key_env="JUDGE_KEY")
    assert keyless.finding is Finding.WARNING and "JUDGE_KEY is not set" in keyless.found and len(asked) == 2
    server.shutdown()
    server.server_close()
    silent = row(base_url=url, model="llama")
    assert silent.finding is Finding.WARNING and "refused" in silent.found and "sk-1" not in silent.found


def test_the_key_goes_to_no_host_that_a_model_server_redirects_to(tmp_path, monkeypatch):
    heard: list[str | None] = []

    class Elsewhere(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(self.headers["Authorization"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    elsewhere = http.server.HTTPServer(("127.0.0.2", 0), Elsewhere)

    class Redirecting(Elsewhere):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", f"http://127.0.0.2:{elsewhere.server_port}/models")
            self.end_headers()

    named = http.server.HTTPServer(("127.0.0.1", 0), Redirecting)
    for server in (elsewhere, named):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    config = tmp_path / "run.yaml"
    url = f"http://127.0.0.1:{named.server_port}/v1"
    judge = f"  kind: openai\n  base_url: {url}\n  model: llama\n  api_key_env: JUDGE_KEY\n"
    config.write_text(f"extends: minihack-oni\nannotator:\n{judge}")
    monkeypatch.setenv("JUDGE_KEY", "sk-1")
    (row,) = rows_of(tmp_path, "model server", config=str(config))
    for server in (elsewhere, named):
        server.shutdown()
        server.server_close()
    assert heard == []
    assert row.finding is Finding.WARNING and "redirects to http://127.0.0.2" in row.found


def test_a_config_without_a_model_server_asks_none(tmp_path):
    (row,) = rows_of(tmp_path, "model server", config="cartpole-dqn")
    assert row.finding is Finding.GOOD and "asks none" in row.found
    assert rows_of(tmp_path, "model server") == []
