"""An environment that calls sys.exit() has a fault as any other; who is told to end by a signal ends."""

from __future__ import annotations

import importlib
import logging
import re
import signal
import sys

import pytest
from gymnasium.vector import AutoresetMode

from onibi.actors.environments.factory import EnvironmentSettings, make_vector_env
from onibi.actors.environments.sync_environments import SyncEnvironments
from onibi.actors.evaluation import play
from onibi.platform.errors import EnvironmentFault


@pytest.fixture
def leavers(tmp_path, monkeypatch):
    """A module of a user's whose makers and import call sys.exit()."""
    (tmp_path / "leaver_envs.py").write_text(
        "import sys\ndef single(): sys.exit('no licence')\ndef vector(num_envs): exit(3)\n", encoding="utf-8"
    )
    (tmp_path / "leaver_import.py").write_text("import sys\nsys.exit(4)\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("builtins.exit", sys.exit, raising=False)  # Python's also closes standard input
    yield tmp_path
    sys.modules.pop("leaver_envs", None)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"id": "leaver_envs:single"}, "cannot be made with no arguments: SystemExit: no licence (FOLDER/leaver_envs"),
        ({"id": "leaver_envs:vector", "vectorization": "native"}, "SystemExit: 3 (FOLDER/leaver_envs.py:3)"),
        ({"id": "leaver_import:make"}, "cannot be imported: SystemExit: 4 (FOLDER/leaver_import.py:2)"),
        ({"id": "leaver_import:Mine-v0"}, "cannot be imported: SystemExit: 4 (FOLDER/leaver_import.py:2)"),
    ],
)
def test_one_that_exits_where_it_is_made_is_told_with_its_line(leavers, settings, said):
    with pytest.raises(EnvironmentFault, match=re.escape(said.replace("FOLDER", str(leavers)))):
        make_vector_env(EnvironmentSettings(**settings), 2)


def leaver_of(scripted, place, leave):
    """Environments of which each calls ``leave`` in ``place``, "reset", "step" or "close"."""

    class Leaver(scripted[0]):
        def reset(self, **given):
            return super().reset(**given) if place != "reset" else leave()

        def step(self, action):
            return super().step(action) if place != "step" else leave()

        def close(self):
            return super().close() if place != "close" else leave()

    return SyncEnvironments([lambda: Leaver(0)] * 2, autoreset_mode=AutoresetMode.NEXT_STEP)


@pytest.mark.parametrize("place", ["reset", "step"])
def test_one_that_exits_in_a_rollout_or_an_evaluation_is_told_with_its_line(place, scripted, make_rollout):
    with pytest.raises(EnvironmentFault, match=r"raised in actor \d+: SystemExit: 7 \(.*test_process_exit.py:\d+\)$"):
        play(make_rollout(leaver_of(scripted, place, lambda: sys.exit(7))), 2, 4, None)


def test_one_that_exits_where_it_is_closed_does_not_end_the_run(scripted, caplog):
    with caplog.at_level(logging.WARNING):
        leaver_of(scripted, "close", sys.exit).close()
    assert caplog.messages == ["2 of 2 environments raised when they were closed: SystemExit: "]


@pytest.mark.parametrize("place", ["reset", "step", "close"])
def test_a_signal_that_ends_the_process_is_no_fault_of_the_environment(place, scripted, make_rollout):
    """The worker of experiments ends by this handler, and Ray's processes by one alike."""
    left = [signal.SIGTERM]  # once: environments that are collected later are closed again

    def leave():
        if left:
            signal.raise_signal(left.pop())

    worker = importlib.import_module("onibi.clusters.experiments.worker")
    before = signal.signal(signal.SIGTERM, worker._end)
    try:
        with pytest.raises(SystemExit) as ended:
            play(make_rollout(leaver_of(scripted, place, leave)), 2, 4, None)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 128 + signal.SIGTERM


@pytest.mark.parametrize("place", ["reset", "step"])
def test_ctrl_c_stays_what_it_is(place, scripted, make_rollout):
    with pytest.raises(KeyboardInterrupt):
        play(make_rollout(leaver_of(scripted, place, lambda: signal.raise_signal(signal.SIGINT))), 2, 4, None)
