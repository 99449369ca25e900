"""The command line as a user meets it, each case in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer

from onibi.clusters.cli.frame import told
from onibi.platform.presets import preset_text
from onibi.platform.run_folder import create_run

COMMANDS = ("train", "resume", "evaluate", "experiment", "submit", "runs", "presets", "doctor")


def onibi(*arguments: str, cwd, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ONIBI_", "RAY_", "MLFLOW_"))}
    return subprocess.run(
        [sys.executable, "-m", "onibi", *arguments],
        cwd=cwd,
        text=True,
        capture_output=True,
        timeout=240,
        env={**kept, "COLUMNS": "200", "NO_COLOR": "1", "MLFLOW_DISABLE_TELEMETRY": "true", **environment},
    )


def test_help_names_every_command(tmp_path):
    finished = onibi("--help", cwd=tmp_path)
    assert finished.returncode == 0
    assert [name for name in COMMANDS if f"│ {name} " in finished.stdout] == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_shows_an_example_of_it(command, tmp_path):
    finished = onibi(command, "--help", cwd=tmp_path)
    assert finished.returncode == 0
    after = finished.stdout.partition("Example")[2]
    assert f"onibi {command}" in after


def test_help_imports_nothing_heavy(tmp_path):
    code = (
        "import sys, onibi.clusters.cli.main\n"
        "heavy = {'torch', 'ray', 'mlflow', 'gymnasium', 'pyarrow', 'numpy', 'pydantic', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    finished = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, text=True, capture_output=True, timeout=60)
    assert finished.stdout == "[]\n", finished.stderr


def test_version_is_that_of_the_package(tmp_path):
    assert onibi("--version", cwd=tmp_path).stdout == f"onibi {version('onibi')}\n"


def test_presets_are_listed_with_a_summary_and_shown_as_they_stand(tmp_path):
    lines = onibi("presets", cwd=tmp_path).stdout.splitlines()
    names = [line.split()[0] for line in lines]
    assert {"cartpole-dqn", "minihack-oni", "nethack-oni"} <= set(names)
    assert all(len(line.split()) > 3 for line in lines)
    for option in ((), ("--show",)):
        shown = onibi("presets", *option, names[0], cwd=tmp_path).stdout
        assert shown == preset_text("onibi.clusters.presets", names[0])


def test_an_unknown_preset_to_show_ends_with_code_2_and_one_message(tmp_path):
    finished = onibi("presets", "--show", "minihack-oin", cwd=tmp_path)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr.startswith("onibi: preset 'minihack-oin' is unknown. Did you mean 'minihack-oni'? Allowed: ")
    assert len(finished.stderr.splitlines()) == 1


def test_debug_adds_the_traceback_to_the_message(tmp_path):
    finished = onibi("presets", "--show", "nope", "--debug", cwd=tmp_path)
    assert finished.returncode == 2
    assert "Traceback" in finished.stderr
    assert finished.stderr.splitlines()[-1].startswith("onibi: preset 'nope' is unknown.")


def test_an_empty_folder_has_no_runs(tmp_path):
    finished = onibi("runs", cwd=tmp_path)
    assert finished.returncode == 0
    assert finished.stdout == "No runs in runs. Start one: onibi train cartpole-dqn\n"
    assert list(tmp_path.iterdir()) == []


def test_runs_are_listed_with_status_and_results_and_a_damaged_one_does_not_hide_them(tmp_path):
    finished = create_run(tmp_path / "there", "first")
    finished.update(status="finished", results={"env_steps": 25_000.0})
    rows = [{"env_steps": 9.0, "return_mean": 1.0}, {"env_steps": 99.0, "return_mean": 431.5, "success_rate": 0.875}]
    finished.evaluations.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    second = create_run(tmp_path / "there", "second")
    (second.checkpoints / "000000000100-000001").mkdir()
    damaged = create_run(tmp_path / "there", "third")
    (damaged.path / "run.json").write_text("{", encoding="utf-8")
    by_option = onibi("runs", "--runs-folder", "there", cwd=tmp_path)
    by_variable = onibi("runs", cwd=tmp_path, ONIBI_RUNS_FOLDER="there")
    assert by_option.stdout == by_variable.stdout
    first, killed = [line for line in by_option.stdout.splitlines() if "first" in line or "second" in line]
    assert "finished" in first
    assert first.endswith("25.0k  return 432, success 88%")
    assert max(map(len, by_option.stdout.splitlines())) <= 100
    told = json.loads(onibi("runs", "--runs-folder", "there", "--json", cwd=tmp_path).stdout)
    assert [(run["name"], run["status"]) for run in told] == [("first", "finished"), ("second", "killed")]
    assert told[0]["evaluation"] == {"return_mean": 431.5, "success_rate": 0.875, "env_steps": 99.0}
    assert "killed: resume it" in killed
    assert "third" in by_option.stderr
    with second.lock():
        assert "running" in onibi("runs", "--runs-folder", "there", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    "arguments", [("trian",), ("train",), ("evaluate", "last", "--episodes", "0"), ("runs", "--nope")]
)
def test_a_wrong_call_ends_with_code_2_and_no_traceback(arguments, tmp_path):
    finished = onibi(*arguments, cwd=tmp_path)
    assert finished.returncode == 2
    assert "Traceback" not in finished.stderr
    assert "Usage: onibi" in finished.stderr


def test_doctor_fails_where_shared_memory_is_missing_and_names_it(tmp_path):
    finished = onibi("doctor", "--shared-memory", str(tmp_path / "gone"), cwd=tmp_path)
    assert finished.returncode == 1, finished.stderr
    assert "gone" in finished.stdout


def test_the_installed_script_and_the_module_are_the_same_command(tmp_path):
    script = Path(sys.executable).parent / "onibi"
    by_script = subprocess.run([script, "presets"], cwd=tmp_path, text=True, capture_output=True, timeout=60)
    assert (by_script.returncode, by_script.stdout) == (0, onibi("presets", cwd=tmp_path).stdout)


def test_the_installed_script_finds_modules_in_the_current_folder(tmp_path):
    (tmp_path / "mine.py").write_text("def tell(raw, infos):\n    return ['It leans.' for _ in raw]\n")
    script = Path(sys.executable).parent / "onibi"
    settings = ["captioner={kind: function, path: 'mine:tell'}", "annotation.workers=0", "budget.max_env_steps=200"]
    settings += ["tracking.enabled=false", f"replay.folder={tmp_path}", "evaluation.episodes=1"]
    options = [word for each in settings for word in ("--set", each)]
    finished = subprocess.run(
        [script, "train", "cartpole-dqn", "--serial", *options],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    assert "It leans." in finished.stdout + finished.stderr


def test_a_folder_of_runs_that_is_named_and_not_there_is_an_error_and_the_default_one_is_not(tmp_path):
    finished = onibi("runs", "--runs-folder", "rnus", cwd=tmp_path)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr == (
        f"onibi: rnus: is not there (in {tmp_path}: no folder). Allowed: a folder that holds runs. "
        "That folder is what --runs-folder rnus names.\n"
    )
    for environment in ({}, {"ONIBI_RUNS_FOLDER": "later"}):
        assert onibi("runs", cwd=tmp_path, **environment).returncode == 0, "before the first run"


def test_a_mistyped_folder_of_runs_is_told_with_what_named_it_and_what_is_there(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from onibi.clusters.cli.main import app

    def told_by(*arguments, **environment):
        result = CliRunner().invoke(app, arguments, env={"ONIBI_RUNS_FOLDER": None, **environment})
        return result.exit_code, result.stderr

    monkeypatch.chdir(tmp_path)
    for name in ("apples", "runs", ".hidden"):
        (tmp_path / name).mkdir()
    there = f"is not there (in {tmp_path}: runs, apples)"
    assert told_by("runs", ONIBI_RUNS_FOLDER="rnus") == (0, f"ONIBI_RUNS_FOLDER=rnus: {there}\n")
    lost = f"onibi: run 'first': not found in rnus, which {there}. Allowed: a path, or 'last'."
    for command in ("evaluate", "resume", "rewards explain", "replay info", "annotate"):
        asked = told_by(*command.split(), "first", ONIBI_RUNS_FOLDER="rnus")
        assert asked == (2, f"{lost} That folder is what ONIBI_RUNS_FOLDER=rnus names.\n")
    code, said = told_by("doctor", "first", ONIBI_RUNS_FOLDER="rnus")
    told_of_runs = f"No run in rnus, which {there}, has this name. That folder is what ONIBI_RUNS_FOLDER=rnus names.\n"
    assert (code, said.endswith(told_of_runs)) == (2, True)
    asked = told_by("evaluate", "first", "--runs-folder", "rnus")
    assert asked == (2, f"{lost} That folder is what --runs-folder rnus names.\n")
    (tmp_path / "runs").rmdir()
    assert "names" not in told_by("evaluate", "first")[1], "nobody named the default"
    code, said = told_by("resume", "last", ONIBI_RUNS_FOLDER="apples")
    assert (code, said) == (2, "onibi: apples: holds no run yet. Start one, for example `onibi train cartpole-dqn`.\n")


def test_a_place_that_may_not_be_used_is_one_message_and_other_faults_keep_their_traceback(capsys):
    with pytest.raises(typer.Exit) as ended, told(debug=False):
        raise PermissionError(13, "Permission denied", "/data/runs")
    assert ended.value.exit_code == 1
    assert capsys.readouterr().err == "onibi: /data/runs: Permission denied. Ask its owner, or name another place.\n"
    with pytest.raises(PermissionError), told(debug=True):
        raise PermissionError(13, "Permission denied", "/data/runs")
    with pytest.raises(PermissionError, match="no file"), told(debug=False):
        raise PermissionError("no file of anybody's")


def test_a_working_folder_that_was_removed_is_one_message(tmp_path):
    command = f"mkdir gone && cd gone && rmdir ../gone && exec {sys.executable} -m onibi presets"
    finished = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        env={**os.environ, "NO_COLOR": "1"},
    )
    assert (finished.returncode, finished.stdout) == (1, "")
    assert finished.stderr == "onibi: the working folder was removed. Go to one that is there (cd), and try again.\n"
