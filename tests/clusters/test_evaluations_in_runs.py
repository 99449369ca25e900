"""Evaluations that go wrong within a run: environments that raise while they are judged, episodes that never end."""

from __future__ import annotations

import signal

import pytest

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
