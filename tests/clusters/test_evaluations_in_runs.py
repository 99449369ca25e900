"""Evaluations that go wrong within a run: environments that raise while they are judged, episodes that never end."""

from __future__ import annotations

import os
import signal

import pytest

from onibi.clusters import serial_run

ENVIRONMENTS = '''
import sys, time
from pathlib import Path
from onibi.actors.environments.corridor import CaptionCorridor

def is_judged():
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename.endswith("evaluation.py") and frame.f_code.co_name == "play":
            return True
        frame = frame.f_back
    return False

class RaisesOnce(CaptionCorridor):
    raised = False
    def __init__(self): super().__init__(3, 3)
    def step(self, action):
        if is_judged() and not RaisesOnce.raised:
            RaisesOnce.raised = True
            raise OSError("the roof fell in")
        return super().step(action)

class Endless(CaptionCorridor):
    """Judged, it never ends until there is a file `mended`."""
    def __init__(self): super().__init__(3, 3)
    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        if is_judged() and not Path(PLACE, "mended").exists():
            Path(PLACE, "judged").touch()
            time.sleep(0.005)
            if terminated or truncated:
                observation, info = super().reset()
            return observation, reward, False, False, info
        return observation, reward, terminated, truncated, info
'''
MODES = pytest.mark.parametrize("serial", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["serial", "ray"])


@pytest.fixture
def module(tmp_path):
    text = ENVIRONMENTS.replace("PLACE", repr(str(tmp_path)))
    (tmp_path / "judged_envs.py").write_text(text, encoding="utf-8")
    return tmp_path


@MODES
def test_an_evaluation_whose_environment_raises_is_left_out_and_the_run_goes_on(workshop, module, serial):
    process = workshop.start(
        serial=serial,
        environment={"id": "judged_envs:RaisesOnce", "max_episode_steps": 30},
        evaluation={"period_env_steps": 200, "episodes": 2, "envs": 1},
        budget={"max_env_steps": 2_000, "max_seconds": None},
    )
    try:
        assert process.wait(200) == 0, workshop.log_of()
    finally:
        process.kill()
        process.wait()
    log = workshop.log_of()
    assert "OSError: the roof fell in" in log
    assert log.count("that evaluation is left out") >= 1
    assert "Traceback" not in log
    assert workshop.record()["status"] == "finished"
    evaluated = [row["env_steps"] for row in workshop.evaluations()]
    assert evaluated, "later ones are booked"
    assert workshop.checkpoints()[0].exists()
    assert evaluated[-1] >= 2_000


@MODES
def test_ctrl_c_ends_an_evaluation_that_never_ends_and_resuming_the_run_plays_it(workshop, module, serial):
    process = workshop.start(
        serial=serial,
        environment={"id": "judged_envs:Endless"},
        budget={"max_env_steps": 400, "max_seconds": None},
    )
    try:
        workshop.wait_for(lambda: (module / "judged").exists(), 150, process)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, workshop.log_of()
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in workshop.log_of()
    assert workshop.record()["status"] == "interrupted"
    assert not (workshop.runs / "run" / "evaluations.jsonl").exists() or workshop.evaluations() == []
    assert list(workshop.rings.iterdir()) == []
    if serial:
        (module / "mended").touch()
        again = workshop.start(command="resume")
        try:
            assert again.wait(100) == 0, workshop.log_of(command="resume")
        finally:
            again.kill()
            again.wait()
        assert workshop.record()["status"] == "finished"
        assert len(workshop.evaluations()) == 1


def test_an_evaluation_that_was_broken_off_in_mid_run_is_played_when_the_run_is_resumed(workshop, monkeypatch):
    """It counted as begun, so that the curve lacked it for ever."""
    play, begun = serial_run.evaluate_weights, []

    def interrupted(*arguments):
        begun.append(arguments[3])
        if len(begun) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return play(*arguments)

    monkeypatch.setattr(serial_run, "evaluate_weights", interrupted)
    periods = {"evaluation": {"period_env_steps": 200, "episodes": 2, "envs": 1}}
    assert workshop.train(**periods).status == "interrupted"
    assert [row["env_steps"] for row in workshop.evaluations()] == begun[:1]
    assert workshop.resume().status == "finished"
    played = [row["env_steps"] for row in workshop.evaluations()]
    assert [int(steps // 200) for steps in played] == [1, 2, 3]
    assert len(begun) == 4


@pytest.mark.slow
def test_a_last_evaluation_that_outlives_the_hub_is_booked_once(workshop, module):
    """All began anew for its sake, and it was played and booked a second time: of long games, hours."""
    process = workshop.start(
        serial=False,
        environment={"id": "judged_envs:Endless"},
        budget={"max_env_steps": 400, "max_seconds": None},
        evaluation__epsilon=0.9,  # a greedy policy may never come to the end
    )
    workshop.wait_for(lambda: (module / "judged").exists(), 150, process)
    (hub,) = workshop.ray_pids(process, b"HubActor")
    os.kill(hub, signal.SIGKILL)
    (module / "mended").touch()
    assert process.wait(150) == 0, workshop.log_of()
    told = workshop.log_of()
    assert "the hub died" in told and "Traceback" not in told
    assert workshop.record()["status"] == "finished"
    (played,) = workshop.evaluations()
    assert played["env_steps"] == int(workshop.checkpoints()[-1].name.partition("-")[0])
