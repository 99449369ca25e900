"""Which rows of a fragment keep a state, with lanes in step and ragged ones."""

from __future__ import annotations

import numpy as np

from onibi.actors.fragment_buffer import FragmentBuffer
from onibi.platform.spec import ROLE_FINAL, ArraySpec, ReplaySpec, StateSpec

SPEC = ReplaySpec(
    observation=(ArraySpec(name="observation", dtype="float32"),),
    actions=2,
    states=(
        StateSpec(name="memory", dtype="float32", shape=(2,), period=3),
        StateSpec(name="counter", dtype="int64", period=1),
    ),
)


def test_states_stand_with_the_rows_of_their_steps_and_are_forgotten_with_the_fragment():
    """Two lanes; lane 1 ends its episode with step 4 in the fourth row, and brings its final row at once."""
    buffer = FragmentBuffer(SPEC, 2, 12)
    for fragment in range(2):
        buffer.clear()
        step = np.array([0, 1])
        for turn in range(7):
            made = np.array([[10.0 * turn, turn], [-10.0 * turn, turn]], np.float32)
            buffer.put({"observation": np.zeros(2, np.float32), "step": step, "role": 0})
            buffer.put_states({"memory": made, "counter": step + 100 * fragment}, step)
            made[:] = np.nan  # a policy may use its arrays again
            buffer.end_row()
            step = step + 1
            if turn == 3:
                buffer.append_final({"role": ROLE_FINAL, "step": step}, np.array([1]))
                step = np.array([step[0], 0])
        memory, counter = buffer.cut_states().values()
        at = list(zip(memory.lane.tolist(), memory.row.tolist(), strict=True))
        # Lane 0 has step k in row k; lane 1 step k + 1 in row k, and from row 5 on step k - 5.
        assert sorted(at) == [(0, 3), (0, 6), (1, 2)]
        assert {place: value.tolist() for place, value in zip(at, memory.values, strict=True)} == {
            (0, 3): [30.0, 3.0],
            (0, 6): [60.0, 6.0],
            (1, 2): [-20.0, 2.0],
        }
        found = zip(counter.lane.tolist(), counter.row.tolist(), counter.values.tolist(), strict=True)
        assert sorted(found) == [
            *((0, k, k + 100 * fragment) for k in range(1, 7)),
            *((1, k, k + 1 + 100 * fragment) for k in range(4)),
            *((1, k, k - 5 + 100 * fragment) for k in (6, 7)),
        ]


def test_a_fragment_without_a_kept_step_has_empty_states():
    buffer = FragmentBuffer(SPEC, 2, 4)
    buffer.clear()
    buffer.put_states({"memory": np.ones((2, 2), np.float32), "counter": np.ones(2, np.int64)}, np.zeros(2, int))
    memory, counter = buffer.cut_states().values()
    assert (memory.values.shape, memory.values.dtype, len(memory)) == ((0, 2), np.float32, 0)
    assert (counter.values.shape, counter.values.dtype) == ((0,), np.int64)
