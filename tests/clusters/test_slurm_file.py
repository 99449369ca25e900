"""The batch file for Slurm, run by bash: what it starts where, and what becomes of a run at the time limit.

Slurm itself is stood in for by `srun` and `scontrol` of a few lines, and Ray and Onibi by scripts that write down how
they were called: what is tested is the file's own order of things. A real Slurm ran it by hand (docs/clusters.md).
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parents[2] / "clusters" / "slurm" / "onibi.sbatch"

STANDS_IN = {
    # Hands its command on, without its own options.
    "srun": 'while [[ $1 == --* ]]; do options+="$1 "; shift; done\necho "srun $options: $*" >> "$CALLS"\n'
    '[[ -n $NO_STEPS && $1 == rm ]] && exit 1\nexec "$@"\n',
    "scontrol": """[[ $1 == show ]] && printf "n1\\nn2\\nn3\\n" | head -"$NODES"
[[ $1 == requeue ]] && echo "$*" >> "$CALLS"
true
""",
    "hostname": "echo 192.0.2.7 10.0.0.7\n",
    "ray": 'if [[ $1 == get-auth-token ]]; then mkdir -p ~/.ray; touch ~/.ray/auth_token; exit; fi\n'
    'echo "ray $*" >> "$CALLS"\n[[ -n $RAY_FAILS ]] && exit 3\nexec sleep 60\n',
    "python": """if [[ $1 == - ]]; then  # how many nodes are there?
  [[ -n $RAY_FAILS ]] && exit 1
  [[ $(grep -c '^ray start' "$CALLS") -gt 1 ]] && echo "$NODES" || echo 1
  exit
fi
echo "runs in $ONIBI_RUNS_FOLDER" >> "$CALLS"
echo "python $*" >> "$CALLS"
[[ -n $RUN_FAILS ]] && exit 1
mkdir -p "$ONIBI_RUNS_FOLDER/$RUN/checkpoints"
[[ -n $KILLED ]] && echo '"status": "running"' > "$ONIBI_RUNS_FOLDER/$RUN/run.json" && exit 9
end() {
  echo "checkpoint saved" >> "$CALLS"
  mkdir -p "$ONIBI_RUNS_FOLDER/$RUN/checkpoints/000000000100-000001"
  echo '"status": "'"$ENDS"'"' > "$ONIBI_RUNS_FOLDER/$RUN/run.json"
  exit 0
}
trap end TERM
for _ in {1..400}; do [[ -e $FINISH ]] && end; sleep 0.05; done
""",
    "sleep": 'exec /bin/sleep "$(awk "BEGIN {print $1 / ($1 < 60 ? 20 : 1)}")"\n',
}  # fmt: skip


@pytest.fixture
def job(tmp_path):
    """Starts the file as a job; gives its process and the calls that it makes."""
    for name, text in STANDS_IN.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}", encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "activate").write_text(f"PATH={tmp_path / 'bin'}:$PATH\n", encoding="utf-8")
    started = []

    def start(*arguments, nodes=2, ends="interrupted", **variables):
        told = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "TMPDIR": str(tmp_path),
            "CALLS": str(tmp_path / "calls"),
            "FINISH": str(tmp_path / "finish"),
            "NODES": str(nodes),
            "ENDS": ends,
            "RUN": "keys",
            "ONIBI_VENV": str(tmp_path / "venv"),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "n[1-3]",
            "SLURM_SUBMIT_DIR": str(tmp_path),
            "SLURM_CPUS_PER_TASK": "8",
            **variables,
        }
        (tmp_path / "calls").write_text("", encoding="utf-8")
        process = subprocess.Popen(
            ["bash", str(FILE), *arguments], env=told, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def calls(tmp_path):
    def read(wanted="", seconds=30):
        deadline = time.monotonic() + seconds
        while True:
            found = (tmp_path / "calls").read_text(encoding="utf-8").splitlines()
            if any(wanted in line for line in found):
                return found
            assert time.monotonic() < deadline, f"{wanted!r} was not called: {found}"
            time.sleep(0.05)

    return read


def ended(process):
    output, _ = process.communicate(timeout=30)
    return process.returncode, output


def test_every_node_becomes_one_of_ray_before_the_run_begins(job, calls, tmp_path):
    process = job("minihack-oni", "--set", "actors.count=30", nodes=3, SLURM_GPUS_ON_NODE="2")
    found = calls("python -m onibi")
    head, others, run = found.index, [line for line in found if line.startswith("ray start")], found[-1]
    assert "--head" in others[0]
    assert "--node-ip-address=192.0.2.7" in others[0]
    port = re.search(r"--port=(\d+)", others[0])[1]
    assert f"--address=192.0.2.7:{port}" in others[1]
    assert all("--num-cpus=8 --num-gpus=2" in line and "--block" in line for line in others)
    workers = next(line for line in found if line.startswith("srun") and "--address" in line)
    assert "--nodes=2 --ntasks=2 --exclude=n1" in workers
    assert head(run) > head(others[1])
    assert run == "python -m onibi train minihack-oni --set actors.count=30 --name keys"
    assert stat.S_IMODE((tmp_path / ".ray" / "auth_token").stat().st_mode) == 0o600
    (tmp_path / "finish").touch()
    assert ended(process)[0] == 0
    assert f"rm -rf {tmp_path}/ray-7" in calls("rm -rf")[-1]


def test_one_node_needs_no_other(job, calls, tmp_path):
    (tmp_path / "finish").touch()
    process = job("cartpole-dqn", nodes=1)
    assert ended(process)[0] == 0
    assert sum(line.startswith("ray start") for line in calls()) == 1


@pytest.mark.parametrize("told", [signal.SIGUSR1, signal.SIGTERM])
def test_a_run_that_is_told_to_end_saves_a_checkpoint_and_at_the_time_limit_goes_back_into_the_queue(job, calls, told):
    process = job("cartpole-dqn")
    calls("python -m onibi")
    time.sleep(0.3)  # until the stand-in has its trap
    process.send_signal(told)
    assert ended(process)[0] == 0
    found = calls("checkpoint saved")
    assert ("requeue 7" in found) == (told == signal.SIGUSR1)
    process = job("cartpole-dqn")  # as Slurm starts it again
    assert calls("python -m onibi")[-1] == "python -m onibi resume keys"
    process.terminate()


def test_a_time_limit_before_the_run_began_starts_nothing_and_queues_the_job_again(job, calls):
    process = job("cartpole-dqn")
    calls("--head")
    process.send_signal(signal.SIGUSR1)
    assert ended(process)[0] == 0
    found = calls("requeue 7")
    assert not any("onibi train" in line for line in found)


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(job, calls, tmp_path):
    """A node fails in the first minute: `onibi resume` would refuse, and the job with it, at every requeue."""
    assert ended(job("cartpole-dqn", KILLED="1"))[0] == 9
    (tmp_path / "runs" / "keys" / "history.jsonl").touch()
    process = job("cartpole-dqn", SLURM_RESTART_COUNT="2")
    assert calls("python -m onibi")[-1] == "python -m onibi train cartpole-dqn --name keys"
    (tmp_path / "finish").touch()
    code, output = ended(process)
    assert code == 0
    aside = tmp_path / "runs" / "keys.no-checkpoint-7-2"
    assert f"begun anew, what there was is in {aside}" in output
    assert (aside / "history.jsonl").exists()


def test_a_run_without_a_checkpoint_that_another_job_has_is_left_alone(job, calls, tmp_path):
    ended(job("cartpole-dqn", KILLED="1"))
    with (tmp_path / "runs" / "keys" / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = job("cartpole-dqn")
        assert calls("python -m onibi")[-1] == "python -m onibi resume keys", "which tells who has it"
        process.terminate()
        process.wait()
    assert [each.name for each in (tmp_path / "runs").iterdir()] == ["keys"]


def test_a_job_that_gets_no_step_any_more_clears_at_least_its_own_node(job, calls, tmp_path):
    """As Slurm does it to a job that is cancelled or requeued from outside."""
    (tmp_path / "ray-7" / "session").mkdir(parents=True)
    (tmp_path / "finish").touch()
    assert ended(job("cartpole-dqn", NO_STEPS="1"))[0] == 0
    assert not (tmp_path / "ray-7").exists()


def test_a_relative_folder_of_runs_is_one_place_for_all_nodes_and_settings_that_are_not_read_are_told(
    job, calls, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    process = job("cartpole-dqn", "--set", "a=b c", ONIBI_RUNS_FOLDER="my runs")
    calls("python -m onibi")
    (tmp_path / "finish").touch()
    assert ended(process)[0] == 0
    assert (tmp_path / "my runs" / "keys" / "run.json").exists()
    assert f"runs in {tmp_path}/my runs" in calls()
    code, output = ended(job("cartpole-dqn", "--set", "a=b c", ONIBI_RUNS_FOLDER="my runs"))
    assert code == 0
    assert "keys goes on with the settings that it has; these are not read: cartpole-dqn --set a=b c" in output


@pytest.mark.parametrize("ends", ["finished", "failed"])
def test_a_run_that_has_ended_is_not_queued_again(job, calls, ends):
    process = job("cartpole-dqn", ends=ends)
    calls("python -m onibi")
    time.sleep(0.3)
    process.send_signal(signal.SIGUSR1)
    ended(process)
    assert "requeue 7" not in calls("checkpoint saved")


def test_a_run_that_fails_before_it_is_waited_for_ends_the_job_as_failed(job, tmp_path):
    """Bash forgets a process that has ended, to all but `wait`: such a job was called a success, now and then."""
    (tmp_path / "slow.sh").write_text("[[ $0 == *.sbatch ]] && trap '/bin/sleep 0.1' DEBUG\n", encoding="utf-8")
    code, _ = ended(job("cartpole-dqn", RUN_FAILS="1", BASH_ENV=str(tmp_path / "slow.sh")))
    assert code == 1


def test_what_goes_wrong_ends_the_job_as_failed(job, calls):
    code, output = ended(job("cartpole-dqn", RAY_FAILS="1"))
    assert code == 1
    assert "onibi.sbatch: of 1 Ray nodes" in output
    code, _ = ended(job("cartpole-dqn", RUN_FAILS="1"))
    assert code == 1
    assert "requeue 7" not in calls()
