"""Random episode layouts in the three autoreset modes, and what plain walks along their rows say about them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from onibi.platform.fragment import StateRows
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.ring.writer import RingWriter
from onibi.platform.spec import ROLE_FINAL, ROLE_STEP, ArraySpec, ReplaySpec, StateSpec

SPEC = ReplaySpec(
    observation=(ArraySpec(name="observation", dtype="int64", shape=(2,)),),
    actions=9,
    keys_per_caption=2,
    extra=(ArraySpec(name="first_priority", dtype="float32"), ArraySpec(name="memory", dtype="float32", shape=(3,))),
)
NEXT_STEP, SAME_STEP, DISABLED = "next_step", "same_step", "disabled"
GROUPS, ENVS, WINDOW, STEPS = 2, 2, 7, 4


@dataclass(frozen=True)
class Row:
    """One row as an actor makes it; every figure follows from ``number`` or from the generator."""

    number: int
    role: int = ROLE_STEP
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    first_priority: float = 0.0
    step: int = 0  # of its episode

    @property
    def is_step(self) -> bool:
        return self.role == ROLE_STEP


def state_spec(period: int) -> StateSpec:
    """A state that says its row's number."""
    return StateSpec(name="state", dtype="int64", shape=(2,), period=period)


def keeps_state(row: Row, period: int) -> bool:
    """Whether a policy's state before this row is kept."""
    return bool(period) and row.is_step and row.step > 0 and row.step % period == 0


def columns_of(lanes: list[list[Row]], heads: list[Row]) -> dict[str, Any]:
    """Columns [E, R, ...] of rows and heads: a final row or head has an observation only, behind a head is garbage."""
    height = max(map(len, lanes)) + 1
    columns = {c.name: np.full((len(lanes), height, *c.shape), 99, c.dtype) for c in SPEC.columns}
    for env, (rows, head) in enumerate(zip(lanes, heads, strict=True)):
        here = (env, slice(len(rows) + 1))
        number = np.array([row.number for row in (*rows, head)])
        acts = np.array([row.is_step for row in rows] + [False])
        zeros = {"reward": 0.0, "terminated": False, "truncated": False, "first_priority": 0.0}
        told = {name: np.array([getattr(row, name) for row in rows] + [zero]) for name, zero in zeros.items()}
        told |= {"action": number % 9, "policy_version": number * 7, "caption_id": number % 5}
        for name, values in told.items():
            columns[name][here] = np.where(acts, values, 0)
        columns["memory"][here] = np.where(acts, number, 0)[:, None]
        columns["caption_count"][here] = np.where(acts, [number % 3, number % 11], 0).T
        columns["observation"][here] = np.stack([number, -number], axis=1)
        columns["role"][here] = [row.role for row in (*rows, head)]
        columns["step"][here] = [row.step for row in (*rows, head)]
        columns["episode_id"][here] = 0
    return columns


class Environment:
    """One lane's endless play; numbers of its rows are those of no other lane."""

    def __init__(self, rng: np.random.Generator, lane: int, mode: str, end: float) -> None:
        self.rng, self.mode, self.end = rng, mode, end
        self.number, self.step = 1 + lane * 1_000_000, 0
        self.pending_final = self.idle = False

    def head(self) -> Row:
        return Row(self.number, step=self.step)

    def reset(self) -> None:
        self.number, self.step = self.number + 1, 0
        self.pending_final = self.idle = False

    def advance(self) -> list[Row]:
        """The rows of one step of the vector environment."""
        if self.idle:  # DISABLED: ended, and not reset yet
            return []
        if self.pending_final:  # NEXT_STEP: the step whose action does nothing
            final = replace(self.head(), role=ROLE_FINAL)
            self.reset()
            return [final]
        terminated, truncated = (self.rng.random(2) < self.end).tolist()
        step = Row(
            self.number,
            reward=float(np.float32(self.rng.normal())),
            terminated=terminated,
            truncated=truncated,
            first_priority=float(np.float32(self.rng.random())),
            step=self.step,
        )
        self.number, self.step = self.number + 1, self.step + 1
        if not (terminated or truncated):
            return [step]
        if self.mode == NEXT_STEP:
            self.pending_final = True
            return [step]
        final = replace(self.head(), role=ROLE_FINAL)
        if self.mode == SAME_STEP:
            self.reset()
        else:
            self.idle = True
        return [step, final]


class Layout:
    """A ring that actors fill with accidents among the fragments, and all rows there ever were in plain lists."""

    def __init__(
        self, path, rng: np.random.Generator, mode: str, *, end: float, accidents: float = 0.2, state_period: int = 0
    ) -> None:
        self.rng, self.mode, self.accidents, self.state_period = rng, mode, accidents, state_period
        spec = replace(SPEC, states=(state_spec(state_period),)) if state_period else SPEC
        self.kept: list[dict[int, Row]] = [{} for _ in range(GROUPS * ENVS)]
        most_rows = STEPS if mode == NEXT_STEP else 2 * STEPS
        self.slots = 4 * (most_rows + 1 + WINDOW) + int(rng.integers(7))
        self.writer = RingWriter.create(
            path, spec, groups=GROUPS, lanes_per_group=ENVS, slots=self.slots, window_rows=WINDOW, run_id="layout"
        )
        self.reader = RingReader(path)
        self.rows: list[list[Row]] = [[] for _ in range(GROUPS * ENVS)]
        self.heads: list[Row | None] = [None] * (GROUPS * ENVS)
        self.oldest = [0] * (GROUPS * ENVS)
        self.environments = [Environment(rng, lane, mode, end) for lane in range(GROUPS * ENVS)]
        self.incarnation = [self.writer.register(group) for group in range(GROUPS)]
        self.sequence = [0] * GROUPS

    def close(self) -> None:
        self.writer.close()
        self.reader.close()

    def _cut(self, lane: int) -> None:
        head = self.heads[lane]
        if head is not None:
            self.rows[lane].append(replace(head, role=ROLE_FINAL))
            self.heads[lane] = None
        self._forget(lane)

    def _forget(self, lane: int) -> None:
        self.oldest[lane] = max(self.oldest[lane], len(self.rows[lane]) + 1 - self.slots)

    def _play(self, lane: int, steps: int) -> list[Row]:
        rows = [row for _ in range(steps) for row in self.environments[lane].advance()]
        if self.environments[lane].idle:
            self.environments[lane].reset()
        return rows

    def fragment(self) -> None:
        """One more fragment of a random actor, perhaps after an accident."""
        rng, group = self.rng, int(self.rng.integers(GROUPS))
        lanes = range(group * ENVS, (group + 1) * ENVS)
        accident = rng.random() / self.accidents if self.accidents else 1.0
        if accident < 0.4:  # the actor dies and is replaced
            self.incarnation[group], self.sequence[group] = self.writer.register(group), 0
            for lane in lanes:
                self._cut(lane)
                self.environments[lane].reset()
        steps = int(rng.integers(1, STEPS + 1))
        if 0.4 < accident < 0.8 and self.sequence[group]:  # a fragment is lost on its way
            self.sequence[group] += 1
            for lane in lanes:
                self._play(lane, steps)
                self._cut(lane)
        made = [self._play(lane, steps) for lane in lanes]
        heads = [self.environments[lane].head() for lane in lanes]
        for lane, rows, head in zip(lanes, made, heads, strict=True):
            self._keep(lane, rows)
            self.rows[lane] += rows
            self.heads[lane] = head
            self._forget(lane)
        self.writer.insert(
            group,
            incarnation=self.incarnation[group],
            sequence=self.sequence[group],
            rows_per_lane=np.array([len(rows) for rows in made], np.int32),
            columns=columns_of(made, heads),
            states=self._states(made),
        )
        self.sequence[group] += 1

    def _keep(self, lane: int, rows: list[Row]) -> None:
        """Block by block of the lane's rows the last one that kept a state: of two in a block the earlier gives way."""
        for k, row in enumerate(rows, len(self.rows[lane])):
            if keeps_state(row, self.state_period):
                self.kept[lane][k // self.state_period] = row

    def _states(self, made: list[list[Row]]) -> dict[str, StateRows]:
        if not self.state_period:
            return {}
        at = [
            (env, k)
            for env, rows in enumerate(made)
            for k, row in enumerate(rows)
            if keeps_state(row, self.state_period)
        ]
        self.rng.shuffle(at)
        lane, row = np.array(at, np.int64).reshape(-1, 2).T
        numbers = np.array([made[env][k].number for env, k in at], np.int64)
        return {"state": StateRows(lane, row, np.stack([numbers, -numbers], axis=1))}

    def state(self, lane: int, k: int) -> int:
        """The number that the state of row k says, 0 where none was kept."""
        row = self.row(lane, k)
        return row.number if self.kept[lane].get(k // self.state_period) is row else 0

    @property
    def lanes(self) -> range:
        return range(len(self.rows))

    def drawable(self) -> set[tuple[int, int]]:
        """(lane, row) of every readable step row."""
        return {
            (lane, k)
            for lane in self.lanes
            for k in range(self.oldest[lane], len(self.rows[lane]))
            if self.rows[lane][k].is_step
        }

    def steps_from(self, lane: int, start: int, most: int) -> int:
        """How many steps follow each other from ``start`` on."""
        count = 0
        while count < most and start + count < len(self.rows[lane]) and self.rows[lane][start + count].is_step:
            count += 1
        return count

    def row(self, lane: int, k: int) -> Row:
        """Row k, or the head."""
        rows, head = self.rows[lane], self.heads[lane]
        if k == len(rows):
            assert head is not None
            return head
        return rows[k]

    def pieces(self, lane: int) -> list[tuple[int, int, bool]]:
        """(begin, row behind the last step, whether it has ended) of every episode piece there ever was."""
        found, begin = [], 0
        for k, row in enumerate(self.rows[lane]):
            if not row.is_step:
                found.append((begin, k, True))
                begin = k + 1
        if begin < len(self.rows[lane]):
            found.append((begin, len(self.rows[lane]), False))
        return found


class Toolbox:
    """The names above, for tests: modules under tests/ cannot import each other."""

    SPEC, WINDOW, ENVS, GROUPS = SPEC, WINDOW, ENVS, GROUPS
    MODES = (NEXT_STEP, SAME_STEP, DISABLED)
    Layout = Layout


@pytest.fixture(scope="session")
def layouts() -> type[Toolbox]:
    """Layouts and their rows."""
    return Toolbox


@pytest.fixture(params=Toolbox.MODES)
def mode(request) -> str:
    """Each autoreset mode in turn."""
    return request.param
