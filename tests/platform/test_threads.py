from __future__ import annotations

import os
import subprocess
import sys

from onibi.platform.threads import ONE_THREAD, one_thread_inherited

TELL = "import os; print([os.environ.get(name) for name in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS')])"


def threads_of_a_new_process():
    return subprocess.run([sys.executable, "-c", TELL], capture_output=True, text=True, check=True).stdout.strip()


def test_processes_started_meanwhile_have_one_thread_and_this_one_is_left_as_it_was(monkeypatch):
    for name in ONE_THREAD:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "7")
    before = dict(os.environ)
    with one_thread_inherited():
        assert threads_of_a_new_process() == "['1', '1']"
    assert dict(os.environ) == before
    assert threads_of_a_new_process() == "[None, '7']"
