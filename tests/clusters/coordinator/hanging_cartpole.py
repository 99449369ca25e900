"""CartPole of which the first two environments hang: the first one asleep, the second one in compiled code."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path

import gymnasium as gym


class HangingCartPole(gym.Wrapper):
    """After 30 steps it hangs, where one of the files ``asleep`` and ``holding`` is not in the folder yet, and makes it
    first; ``holding`` keeps the interpreter's lock, so that no thread of the process goes on.
    """

    def __init__(self, env, folder, step_seconds):
        super().__init__(env)
        self.folder, self.steps, self.step_seconds = Path(folder), 0, step_seconds

    def step(self, action):
        self.steps += 1
        if self.steps == 30:
            for name, sleep in (("asleep", time.sleep), ("holding", ctypes.PyDLL(None).sleep)):
                try:
                    descriptor = os.open(self.folder / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
                except FileExistsError:
                    continue
                os.write(descriptor, str(os.getpid()).encode())
                sleep(3600)
        time.sleep(self.step_seconds)
        return super().step(action)


def make(folder="", step_seconds=0.0):
    return HangingCartPole(gym.make("CartPole-v1"), folder, step_seconds)
