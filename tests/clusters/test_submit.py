"""Jobs handed to real Ray clusters, each begun by ``ray start --head`` with ports and a folder of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import matplotlib
import psutil
import pytest

from onibi.clusters.submit import JobSettings, submit, submit_resume
from onibi.platform.errors import ConfigError, SubmitError
from onibi.platform.history import read_history
from onibi.platform.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
STEPS = 3_000
SHORT = (
    *("--set", f"budget.max_env_steps={STEPS}", "--set", "budget.max_seconds=120"),
    *("--set", "evaluation.period_env_steps=null", "--set", "evaluation.episodes=2", "--set", "evaluation.envs=2"),
    *("--set", "replay.capacity_rows=20000", "--set", "tracking.enabled=false"),
)


def wait_until(holds, seconds=150.0):
    deadline = time.monotonic() + seconds
    while not (value := holds()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)
    return value


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ONIBI_", "RAY_", "MLFLOW_"))}
    return {**kept, "RAY_USAGE_STATS_ENABLED": "0", "NO_COLOR": "1", "COLUMNS": "160", **changes}


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except urllib.error.HTTPError:
        return True  # it asks for a token
    except OSError:
        return False
    return True


@contextmanager
def ray_head(python: Path, home: Path, **more: str):
    """The dashboard's URL of a one-node cluster whose jobs run ``python``; ends all that it started, by process id."""
    gcs, dashboard, agent, client, metrics = free_ports(5)
    folder = Path(tempfile.mkdtemp(prefix="onr", dir="/tmp"))  # paths of sockets must stay under 108 bytes
    command = [python, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2", "--num-gpus=0"]
    command += [f"--port={gcs}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}"]
    command += [f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"]
    command += [f"--metrics-export-port={metrics}", f"--object-store-memory={200 * 2**20}"]
    variables = environment(
        HOME=str(home),
        PATH=f"{python.parent}:{os.environ['PATH']}",
        MPLCONFIGDIR=matplotlib.get_cachedir(),  # else a new home costs a new font cache
        **more,
    )
    with (folder / "start.log").open("w") as log:
        head = subprocess.Popen(command, cwd=home, env=variables, stdout=log, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{dashboard}"
    started: set[psutil.Process] = set()
    try:
        wait_until(lambda: answers(f"{url}/api/version") or head.poll() is not None)
        assert head.poll() is None, (folder / "start.log").read_text()
        yield url
    finally:
        started = set(psutil.Process(head.pid).children(recursive=True)) if head.poll() is None else set()
        head.terminate()
        head.wait(60)
        _, alive = psutil.wait_procs(started, timeout=15)
        for process in alive:
            process.kill()
        psutil.wait_procs(alive, timeout=15)
        shutil.rmtree(folder, ignore_errors=True)


def call(*arguments: str, cwd: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=cwd,
        env=environment(**changes),
        text=True,
        capture_output=True,
        timeout=200,
    )


def assert_finished(run: RunFolder, status: str = "finished"):
    record = run.record()
    assert record.status == status
    assert list(Path("/dev/shm").glob(f"*{record.run_id}*")) == []
    return record


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory) -> Path:
    """A Python with all that Onibi stands on, and without Onibi."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=120)
    (site_packages,) = (folder / "lib").glob("python*/site-packages")
    # A folder named in a .pth file is searched, but the .pth files in it are not read: so no editable install counts.
    (site_packages / "dependencies.pth").write_text(f"{Path(pytest.__file__).parents[1]}\n")
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def bare_cluster(bare_python, tmp_path_factory):
    """(URL, home) of a cluster where Onibi is not installed."""
    home = tmp_path_factory.mktemp("home")
    with ray_head(bare_python, home) as url:
        yield url, home


@pytest.mark.slow  # the test below sends the same job, and needs more
def test_ray_job_submit_trains_where_onibi_is_installed(tmp_path):
    runs = tmp_path / "runs"
    with ray_head(Path(sys.executable), tmp_path) as url:
        submitted = call(
            *("ray.scripts.scripts", "job", "submit", "--address", url, "--working-dir", ".", "--"),
            *("python", "-m", "onibi", "train", "cartpole-dqn", "--name", "job", "--runs-folder", str(runs), *SHORT),
            cwd=ROOT,
        )
        assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert_finished(RunFolder(runs / "job"))
    assert read_history(runs / "job" / "history.jsonl")[-1]["actors/env_steps"] >= STEPS


def test_onibi_submit_trains_where_onibi_is_not_installed(bare_python, bare_cluster, tmp_path):
    missing = subprocess.run([bare_python, "-c", "import ray, torch; import onibi"], capture_output=True, text=True)
    assert missing.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'onibi'"
    url, home = bare_cluster
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    (tmp_path / "my_games.py").write_text("import gymnasium\n\ndef make():\n    return gymnasium.make('CartPole-v1')\n")
    submitted = call(
        *("onibi", "submit", "cartpole-dqn", "--address", url, "--seed", "7", *SHORT),
        *("--set", "environment.id=my_games:make", "--module", "my_games"),
        cwd=tmp_path,
        TMPDIR=str(temporary),
        RAY_ADDRESS="http://127.0.0.1:1",  # Ray alone would go there
    )
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    run = RunFolder(home / "onibi-runs" / "cartpole-dqn")
    assert_finished(run)
    assert run.read_config()["seed"] == 7
    assert read_history(run.history)[-1]["actors/env_steps"] >= STEPS
    assert str(run.path) in submitted.stdout  # the job's own summary was followed
    assert submitted.stdout.splitlines()[-1].startswith("job onibi-cartpole-dqn-")
    assert " succeeded: run 'cartpole-dqn'" in submitted.stdout.splitlines()[-1]
    assert list(temporary.glob("onibi-submit-*")) == []


@pytest.mark.slow
def test_a_cluster_that_asks_for_the_token_of_this_home_gets_it(tmp_path):
    """As where Ray has made one, with the first cluster of a run's own, before `ray start`."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0123456789abcdef" * 4)
    with ray_head(Path(sys.executable), tmp_path, RAY_AUTH_MODE="token") as url:
        order = ("onibi", "submit", "cartpole-dqn", "--no-stage", "--address", url, "--name", "job", *SHORT)
        stranger = tmp_path / "stranger"
        stranger.mkdir()
        refused = call(*order, cwd=tmp_path, HOME=str(stranger))
        assert refused.returncode == 1 and "Authentication required" in refused.stderr
        submitted = call(*order, cwd=tmp_path, HOME=str(tmp_path))
        assert submitted.returncode == 0, submitted.stdout + submitted.stderr
        assert "RAY_AUTH_MODE=token ray job logs" in submitted.stdout
    assert_finished(RunFolder(tmp_path / "onibi-runs" / "job"))


@pytest.mark.slow
def test_without_staging_the_same_job_fails_and_says_what_is_missing(bare_cluster, tmp_path):
    url, home = bare_cluster
    submitted = call("onibi", "submit", "cartpole-dqn", "--no-stage", "--address", url, "--name", "none", cwd=tmp_path)
    assert submitted.returncode == 1, submitted.stdout + submitted.stderr
    assert "No module named" in submitted.stdout
    assert "failed: " in submitted.stdout
    assert "A module was not found" in submitted.stdout
    assert not (home / "onibi-runs" / "none").exists()


@pytest.mark.slow  # of a job; that Ctrl-C of a run saves a checkpoint is in coordinator/test_ray_run.py
def test_ctrl_c_ends_the_following_and_a_stopped_job_saves_a_checkpoint(bare_cluster, tmp_path):
    url, home = bare_cluster
    run = RunFolder(home / "onibi-runs" / "long")
    endless = ("--set", "budget.max_env_steps=null", "--set", "budget.max_seconds=3600")
    following = subprocess.Popen(
        [sys.executable, "-m", "onibi", "submit", "cartpole-dqn", "--name", "long", "--address", url, *SHORT, *endless],
        cwd=tmp_path,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        wait_until(lambda: following.poll() is not None or (run.history.is_file() and read_history(run.history)))
        following.send_signal(signal.SIGINT)
        told, complaints = following.communicate(timeout=30)
    finally:
        following.kill()
    assert following.returncode == 130, told + complaints
    assert "no longer followed, the job goes on" in told
    assert "Traceback" not in complaints
    assert run.record().status == "running"
    stop = next(line for line in told.splitlines() if "ray job stop" in line).split("ray job stop ")[1].split()
    stopped = call("ray.scripts.scripts", "job", "stop", *stop, cwd=tmp_path)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert_finished(run, "interrupted")
    assert list(run.checkpoints.iterdir()) != []
    steps = read_history(run.history)[-1]["actors/env_steps"]
    budget = ("--set", f"budget.max_env_steps={steps + 20_000:.0f}")
    resumed = call("onibi", "submit", "long", "--resume", "--address", url, *budget, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert resumed.stdout.splitlines()[-1].endswith("succeeded: run 'long' in ~/onibi-runs on the head node")
    assert_finished(run)
    assert read_history(run.history)[-1]["actors/env_steps"] >= steps + 20_000


def ask(address: str, **changes):
    job = JobSettings(address=address, runs_folder=changes.pop("runs_folder", "~/onibi-runs"), wait=False)
    arguments = {"config": "cartpole-dqn", "overrides": (), "name": None}
    return submit(job=job, tell=lambda text: None, **{**arguments, **changes})


@pytest.fixture
def other_server():
    """(URL, paths asked for) of a web server that is no Ray dashboard."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            paths.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"hello": "world"}).encode())

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", paths
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"overrides": ("lerner.discount=0.9",)}, "lerner"),
        ({"overrides": ("actors.count=0",)}, "count is 0"),
        ({"config": "cartpole-dqm"}, "cartpole-dqn"),
        ({"name": "a/b"}, "run name 'a/b'"),
        ({"runs_folder": "runs"}, "absolute path on the head node"),
    ],
)
def test_what_is_wrong_is_found_before_anything_is_sent(changes, said, other_server):
    url, paths = other_server
    with pytest.raises(ConfigError, match=said):
        ask(url, **changes)
    assert paths == []


def test_what_is_wrong_with_a_run_to_go_on_with_is_found_before_anything_is_sent(other_server):
    url, paths = other_server
    job = JobSettings(address=url, runs_folder="~/onibi-runs")
    with pytest.raises(ConfigError, match="run name 'a/b'"):
        submit_resume("a/b", job, overrides=(), tell=print)
    named = call("onibi", "submit", "a", "--resume", "--name", "b", "--address", url, cwd=Path.cwd())
    assert named.returncode == 2 and "leave --name out" in named.stderr
    assert paths == []


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "http://", "auto://x"])
def test_an_address_that_is_no_dashboard_is_refused(address):
    with pytest.raises(ConfigError, match="http://HOST:8265"):
        ask(address)


def test_a_cluster_out_of_reach_is_told_with_what_to_do():
    (port,) = free_ports(1)
    with pytest.raises(SubmitError, match=rf"http://127.0.0.1:{port} does not answer .*ray start --head"):
        ask(f"http://127.0.0.1:{port}")


def test_a_server_that_is_not_ray_is_told_apart(other_server):
    url, paths = other_server
    with pytest.raises(SubmitError, match="not as a Ray dashboard"):
        ask(url)
    assert set(paths) == {"/api/version"}


def test_a_password_in_the_address_is_used_and_not_repeated(other_server):
    url, paths = other_server
    with pytest.raises(SubmitError, match="answers, but not as") as raised:
        ask(url.replace("http://", "http://anna:secret@"))
    assert "secret" not in str(raised.value)
    assert paths != []


def test_a_port_that_does_not_speak_http_is_told_apart():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet():
            for _ in range(2):  # the first look, and the client's
                connection, _ = server.accept()
                connection.recv(1000)
                connection.sendall(b"220 not http\r\n\r\n")
                connection.close()

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        with pytest.raises(SubmitError, match="not as a Ray dashboard"):
            ask(f"http://127.0.0.1:{server.getsockname()[1]}")
        thread.join(10)
