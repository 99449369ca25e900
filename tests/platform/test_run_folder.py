"""Runs have unique names, one trainer at a time, and are found by what a user types."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from onibi.platform.errors import ConfigError
from onibi.platform.run_folder import RunFolder, create_run, find_run, killed_runs, list_runs

HOLD = (
    "import sys; from pathlib import Path; from onibi.platform.run_folder import RunFolder\n"
    "with RunFolder(Path(sys.argv[1])).lock(): print('held', flush=True); sys.stdin.read()"
)


def test_the_second_run_of_a_name_gets_a_number_and_its_own_id(tmp_path):
    runs = [create_run(tmp_path / "runs", "cartpole") for _ in range(3)]
    assert [run.name for run in runs] == ["cartpole", "cartpole-2", "cartpole-3"]
    assert len({run.record().run_id for run in runs}) == 3
    assert all(run.checkpoints.is_dir() and run.artifacts.is_dir() and run.record().status == "running" for run in runs)


def test_threads_that_ask_for_one_name_get_different_folders(tmp_path):
    names = []
    threads = [threading.Thread(target=lambda: names.append(create_run(tmp_path, "same").name)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(names)) == 8


@pytest.mark.parametrize(
    "name", ["", "a/b", "../up", ".hidden", "last", "mlartifacts", "annotations", "a b", "x" * 101, "a\nb"]
)
def test_a_name_that_is_no_plain_file_name_is_refused_and_nothing_is_made(tmp_path, name):
    with pytest.raises(ConfigError, match="allowed are letters"):
        create_run(tmp_path / "runs", name)
    assert not (tmp_path / "runs").exists()


def test_a_root_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(ConfigError, match="no run can be made there"):
        create_run(tmp_path / "runs", "a")


def test_last_is_the_run_used_most_recently_not_the_newest(tmp_path):
    first, second = create_run(tmp_path, "first"), create_run(tmp_path, "second")
    assert find_run(tmp_path, "last") == second
    first.update(status="interrupted")
    assert find_run(tmp_path, "last") == first
    assert [run.name for run in list_runs(tmp_path)] == ["second", "first"]


def test_a_run_is_found_by_name_and_by_path(tmp_path, monkeypatch):
    run = create_run(tmp_path / "runs", "a")
    assert find_run(tmp_path / "runs", "a") == run
    assert find_run(tmp_path / "elsewhere", str(run.path)) == run
    monkeypatch.chdir(tmp_path)
    assert find_run(tmp_path / "elsewhere", "runs/a") == run


def test_a_misspelt_run_is_answered_with_the_nearest_and_all_others(tmp_path):
    create_run(tmp_path, "keyroom")
    create_run(tmp_path, "cartpole")
    with pytest.raises(ConfigError) as caught:
        find_run(tmp_path, "keyrom")
    message = str(caught.value)
    assert (
        "Did you mean 'keyroom'?" in message and "newest first: cartpole, keyroom." in message and "'last'" in message
    )


def test_no_run_at_all_says_how_to_start_one(tmp_path):
    with pytest.raises(ConfigError, match="onibi train"):
        find_run(tmp_path / "absent", "last")
    with pytest.raises(ConfigError, match="absent, which is not there"):
        find_run(tmp_path / "absent", "some")
    with pytest.raises(ConfigError, match="which holds no run yet"):
        find_run(tmp_path, "some")


def test_a_folder_without_a_record_is_no_run(tmp_path):
    (tmp_path / "mlartifacts").mkdir()
    with pytest.raises(ConfigError, match=r"holds no run\.json"):
        find_run(tmp_path, str(tmp_path / "mlartifacts"))


def test_a_damaged_record_is_left_out_with_a_warning_and_others_are_listed(tmp_path, caplog):
    good, bad = create_run(tmp_path, "good"), create_run(tmp_path, "bad")
    (bad.path / "run.json").write_text('{"run_id": ')
    with caplog.at_level(logging.WARNING):
        assert list_runs(tmp_path) == [good]
    assert str(bad.path) in caplog.text


@pytest.mark.parametrize("changed", [{"used_at": 7}, {"status": "resting"}, {"results": [1]}, {"run_id": None}])
def test_a_record_with_a_value_of_the_wrong_type_is_left_out_too(tmp_path, caplog, changed):
    good, bad = create_run(tmp_path, "good"), create_run(tmp_path, "bad")
    path = bad.path / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    with caplog.at_level(logging.WARNING):
        assert list_runs(tmp_path) == [good]
    assert next(iter(changed)) in caplog.text


def test_updates_of_two_threads_are_both_kept(tmp_path):
    run = create_run(tmp_path, "a")
    changes = (
        [{"results": {"env_steps": float(n)}} for n in range(50)],
        [{"tracking_run_id": str(n)} for n in range(50)],
    )
    threads = [threading.Thread(target=lambda mine=mine: [run.update(**change) for change in mine]) for mine in changes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert run.record().results == {"env_steps": 49.0} and run.record().tracking_run_id == "49"


def test_a_record_with_fields_of_a_newer_version_is_readable(tmp_path):
    run = create_run(tmp_path, "a")
    path = run.path / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "mood": "good"}))
    assert run.record().status == "running"


def test_the_config_comes_back_as_it_was_and_its_absence_is_named(tmp_path):
    run = create_run(tmp_path, "a")
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        run.read_config()
    config = {"seed": 1, "learner": {"kind": "dqn", "discount": 0.99, "text": "köln: no", "none": None}, "list": [1, 2]}
    run.write_config(config)
    assert run.read_config() == config
    run.config.write_text("- a list")
    with pytest.raises(ConfigError, match="list, expected a mapping"):
        run.read_config()


def test_a_run_in_use_is_refused_with_its_process_and_free_again_after_kill_9(tmp_path):
    run = create_run(tmp_path, "a")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, run.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match=f"in use by process {holder.pid} ") as caught, run.lock():
            pytest.fail("two processes hold one run")
        assert "one process may train in it" in str(caught.value)
        assert killed_runs(tmp_path) == set()
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    assert killed_runs(tmp_path) == {run.record().run_id}
    with run.lock(), pytest.raises(ConfigError, match=f"process {os.getpid()} "), RunFolder(run.path).lock():
        pytest.fail("one process holds one run twice")
    with run.lock():  # freed at the end of the block
        pass
    run.update(status="finished")
    assert killed_runs(tmp_path) == set()


def test_what_runs_elsewhere_or_has_no_readable_record_does_not_count_as_killed(tmp_path):
    elsewhere, damaged, never_held = (create_run(tmp_path, name) for name in ("elsewhere", "damaged", "never-held"))
    (elsewhere.path / "run.lock").write_text("12 on another-machine\n")
    with damaged.lock():
        pass
    (damaged.path / "run.json").write_text("{")
    assert never_held.record().status == "running"
    assert killed_runs(tmp_path) == set()
    assert killed_runs(tmp_path / "nowhere") == set()


@pytest.fixture
def shared_root():
    """A folder of runs that two users share; what the other one has closed may not be looked into by this process."""
    root = Path(tempfile.mkdtemp())  # not pytest's, which is this user's alone
    root.chmod(0o755)
    create_run(root, "open")
    closed = create_run(root, "closed").path
    was = os.geteuid()
    closed.chmod(0o700 if was == 0 else 0)
    if was == 0:
        os.seteuid(65534)
    yield root
    os.seteuid(was)
    closed.chmod(0o700)
    shutil.rmtree(root)


def test_runs_of_others_that_may_not_be_read_hide_none_and_are_told_when_named(shared_root):
    assert [run.name for run in list_runs(shared_root)] == ["open"]
    assert killed_runs(shared_root) == set()
    assert find_run(shared_root, "last").name == "open"
    for name in ("closed", str(shared_root / "closed")):
        with pytest.raises(ConfigError, match=r"closed: permission denied\. Ask its owner"):
            find_run(shared_root, name)
    with pytest.raises(PermissionError):
        list_runs(shared_root / "closed" / "below")
