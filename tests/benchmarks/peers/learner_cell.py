"""What the process of a measured training loop is told, and what it answers; any virtual environment can import it."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

EPISODE_STEPS = 1_000
"""The longest episode of NetHack."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a loop is to train, the same for every system; ``options`` are the system's own (mode, workers, envs)."""

    environment: str
    algorithm: str
    options: dict[str, Any]
    seed: int
    warm_seconds: float  # after the first steps, not measured
    seconds: float  # measured
    rollout: int = 32  # T
    batch: int = 1_024  # rows of a gradient step
    hidden: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    learning_rate: float = 3e-4
    discount: float = 0.99
    until_return: float | None = None
    """By ``options["recipe"]`` until the mean return while training is this, ``seconds`` at most; None: a rate."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a loop says of itself."""

    points: list[tuple[float, float]]  # (seconds, env steps that have been made), both rising
    episode_return: float | None  # of the last episodes: whether it learns, not how well
    settings: dict[str, Any] = field(default_factory=dict)  # that it set, beside the order's
    reached_seconds: float | None = (
        None  # from the first steps to the return that was ordered; None: it was not reached
    )

    def rate(self, warm_seconds: float) -> float:
        """Env steps a second from ``warm_seconds`` after the first steps to the end.

        Raises: ValueError where there are no two points in that time.
        """
        first = next((at for at, steps in self.points if steps > 0), None)
        warm = [] if first is None else [point for point in self.points if point[0] >= first + warm_seconds]
        if len(warm) < 2 or warm[-1][0] <= warm[0][0]:
            raise ValueError(f"{len(warm)} figures after the warm-up, of {len(self.points)} in all")
        return (warm[-1][1] - warm[0][1]) / (warm[-1][0] - warm[0][0])


def read_order() -> Order:
    """The order that this process was started with."""
    return Order(**json.loads(Path(sys.argv[1]).read_text()))


def write_answer(measured: Measured) -> None:
    """Tell the benchmark what was measured, whole or not at all."""
    part = Path(sys.argv[2]).with_suffix(".part")
    part.write_text(json.dumps(asdict(measured)))
    part.replace(sys.argv[2])


class Points:
    """(seconds, env steps), at most four a second, and whether what was ordered is done.

    Args:
        order: what is to be done.
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        self.all: list[tuple[float, float]] = []
        self.reached_seconds: float | None = None

    def add(self, steps: float | None, episode_return: float | None = None) -> None:
        """Note where it stands now, and the mean return of its last episodes."""
        now = time.monotonic()
        if steps is not None and (not self.all or now - self.all[-1][0] >= 0.25):
            self.all.append((now, float(steps)))
        until = self._order.until_return
        if (
            until is not None
            and self.reached_seconds is None
            and episode_return is not None
            and episode_return >= until
        ):
            self.reached_seconds = self.passed()

    def passed(self) -> float:
        """Seconds since the first steps."""
        first = next((at for at, steps in self.all if steps > 0), None)
        return 0.0 if first is None else time.monotonic() - first

    def over(self) -> bool:
        """Whether the ordered time is over, or the ordered return reached."""
        return self.reached_seconds is not None or self.passed() >= self._order.warm_seconds + self._order.seconds
