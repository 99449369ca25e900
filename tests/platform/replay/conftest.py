"""Streams of rows as actors make them, in both autoreset modes, with a slow model of what a ring must then hold."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onibi.platform.replay.ring.file import remove_ring
from onibi.platform.spec import ROLE_FINAL, ROLE_STEP, ArraySpec, ReplaySpec

SPEC = ReplaySpec(
    observation=(
        ArraySpec(name="observation.vector", dtype="float32", shape=(3,)),
        ArraySpec(name="observation.image", dtype="uint8", shape=(2, 3)),
        ArraySpec(name="observation.inner.compass", dtype="int8"),
    ),
    actions=5,
    keys_per_caption=2,
    extra=(ArraySpec(name="action_log_prob", dtype="float32"), ArraySpec(name="logits", dtype="float32", shape=(5,))),
)
HEAD_COLUMNS = (*(column.name for column in SPEC.observation), "episode_id", "step")


def observation_of(number: int) -> dict[str, Any]:
    """The observation with this number: no two in a test are alike."""
    return {
        "observation.vector": np.array([number, number * 0.5, np.nan], np.float32),  # NaN: heads are compared as bytes
        "observation.image": np.full((2, 3), number % 251, np.uint8),
        "observation.inner.compass": np.int8(number % 127),
    }


def blank_row(number: int, episode_id: int, step: int, role: int = ROLE_STEP) -> dict[str, Any]:
    row = {column.name: np.zeros(column.shape, column.dtype)[()] for column in SPEC.columns}
    return row | observation_of(number) | {"episode_id": episode_id, "step": step, "role": role}


class Lane:
    """One environment: an endless sequence of rows, and what its newest observation is."""

    def __init__(self, rng: np.random.Generator, lane: int, same_step: bool, end: float) -> None:
        self.rng, self.same_step, self.end = rng, same_step, end
        self.number = lane * 1_000_000
        self.episode_id = lane * 1_000_000
        self.begin()

    def begin(self) -> None:
        """A new episode, after a reset or because the actor was replaced."""
        self.episode_id += 1
        self.step = 0
        self.number += 1
        self.pending_final = False

    def head(self) -> dict[str, Any]:
        return blank_row(self.number, self.episode_id, self.step)

    def advance(self) -> list[dict[str, Any]]:
        """The rows of one environment step: two at the end of an episode in SAME_STEP, else one."""
        if self.pending_final:  # NEXT_STEP: the step whose action does nothing
            final = blank_row(self.number, self.episode_id, self.step, ROLE_FINAL)
            self.begin()
            return [final]
        row = self.head()
        terminated, truncated = self.rng.random(2) < self.end
        row |= {
            "action": self.rng.integers(5),
            "reward": np.float32(self.rng.normal()),
            "terminated": int(terminated),
            "truncated": int(truncated),
            "policy_version": self.rng.integers(1 << 41),
            "caption_id": np.uint32(self.rng.integers(3)),
            "caption_count": self.rng.integers(0, 9, 2).astype(np.uint16),
            "action_log_prob": np.float32(self.rng.normal()),
            "logits": self.rng.normal(size=5).astype(np.float32),
        }
        self.number += 1
        self.step += 1
        if not (terminated or truncated):
            return [row]
        if not self.same_step:
            self.pending_final = True
            return [row]
        final = blank_row(self.number, self.episode_id, self.step, ROLE_FINAL)
        self.begin()
        return [row, final]


def fragment_columns(lanes: list[list[dict[str, Any]]], heads: list[dict[str, Any]]) -> dict[str, Any]:
    """Columns [E, R, ...] of the given rows and heads; what lies behind a head is filled with garbage."""
    height = max(len(rows) for rows in lanes) + 1
    columns = {column.name: np.full((len(lanes), height, *column.shape), 77, column.dtype) for column in SPEC.columns}
    for lane, (rows, head) in enumerate(zip(lanes, heads, strict=True)):
        for index, row in enumerate([*rows, head]):
            for name, value in row.items():
                columns[name][lane, index] = value
    return columns


class RingModel:
    """What a ring must hold, kept in lists: the slow, obvious side of every comparison."""

    def __init__(self, lanes: int, slots: int) -> None:
        self.slots = slots
        self.rows: list[list[dict[str, Any]]] = [[] for _ in range(lanes)]
        self.heads: list[dict[str, Any] | None] = [None] * lanes
        self.oldest = [0] * lanes

    def close(self, lane: int) -> None:
        head = self.heads[lane]
        if head is not None:
            self.rows[lane].append(head | {"role": ROLE_FINAL})
            self.heads[lane] = None
        self.forget(lane)

    def add(self, lane: int, rows: list[dict[str, Any]], head: dict[str, Any]) -> None:
        self.rows[lane].extend(rows)
        self.heads[lane] = head
        self.forget(lane)

    def forget(self, lane: int) -> None:
        self.oldest[lane] = max(self.oldest[lane], len(self.rows[lane]) + 1 - self.slots)

    def drawable(self) -> set[tuple[int, int]]:
        return {
            (lane, number)
            for lane, rows in enumerate(self.rows)
            for number in range(self.oldest[lane], len(rows))
            if rows[number]["role"] == ROLE_STEP
        }

    def window(self, lane: int, start: int, n: int) -> dict[str, Any]:
        """A window by walking along the rows."""
        rows = [*self.rows[lane], *([self.heads[lane]] if self.heads[lane] else [])]
        committed = len(self.rows[lane])
        keys = SPEC.keys_per_caption
        out: dict[str, Any] = {
            "reward": np.zeros(n, np.float32),
            "continues": np.ones(n, np.float32),
            "used": np.zeros(n, np.bool_),
            "caption_id": np.zeros(n, np.uint32),
            "caption_count": np.zeros((n, keys), np.uint16),
        }
        position = start
        for step in range(n):
            if position == committed or rows[position]["role"] == ROLE_FINAL:
                break
            row = rows[position]
            out["used"][step] = True
            out["reward"][step] = row["reward"]
            out["continues"][step] = 0.0 if row["terminated"] else 1.0
            out["caption_id"][step] = row["caption_id"]
            out["caption_count"][step] = row["caption_count"]
            position += 1
        out["steps"] = position - start
        out["first"], out["bootstrap"] = rows[start], rows[position]
        return out


def assert_ring_holds(reader: Any, model: RingModel) -> None:
    """Every readable row of every lane, and each open head, column for column."""
    snapshot = reader.snapshot()
    for lane, rows in enumerate(model.rows):
        assert snapshot.cursor[lane] == len(rows)
        assert snapshot.oldest[lane] >= model.oldest[lane]
        assert snapshot.open[lane] == (model.heads[lane] is not None)
        numbers = np.arange(snapshot.oldest[lane], len(rows))
        for column in SPEC.columns:
            expected = np.array([rows[number][column.name] for number in numbers], column.dtype)
            found = reader.columns[column.name][lane * reader.slots + numbers % reader.slots]
            np.testing.assert_array_equal(found.reshape(expected.shape), expected, err_msg=f"lane {lane} {column.name}")
        head = model.heads[lane]
        if head is not None:
            at = lane * reader.slots + len(rows) % reader.slots
            for name in HEAD_COLUMNS:
                np.testing.assert_array_equal(reader.columns[name][at], head[name], err_msg=f"lane {lane} head {name}")


@pytest.fixture
def ring_path() -> Iterator[Path]:
    """A path for a ring in shared memory, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="onibi-test-", dir="/dev/shm") as folder:
        path = Path(folder) / "test.ring"
        yield path
        remove_ring(path)


class Toolbox:
    """The names above, for tests: modules under tests/ cannot import each other."""

    SPEC = SPEC
    Lane = Lane
    RingModel = RingModel
    observation_of = staticmethod(observation_of)
    blank_row = staticmethod(blank_row)
    fragment_columns = staticmethod(fragment_columns)
    assert_ring_holds = staticmethod(assert_ring_holds)


@pytest.fixture
def rows() -> type[Toolbox]:
    """Rows, lanes, fragments, and the model of a ring."""
    return Toolbox
