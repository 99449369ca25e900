"""Frame stacks of every kind of batch against a walk along the rows, over random episodes, gaps and dead actors; and
the stacks that a policy sees in a rollout."""

from __future__ import annotations

import numpy as np
import pytest

from onibi.platform.errors import ConfigError, ReplayError
from onibi.platform.policy import PolicyStep
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.ring.writer import RingWriter
from onibi.platform.replay.samplers.draws import PrioritySettings, SequenceDraws, SlabDraws, WindowDraws
from onibi.platform.replay.samplers.frame_stack import FrameStack, FrameStackSettings, frame_stack
from onibi.platform.replay.samplers.make_sampler import make_sampler
from onibi.platform.replay.samplers.newest_first_sampler import NewestFirstSettings
from onibi.platform.replay.samplers.trajectory_sampler import TrajectorySettings
from onibi.platform.replay.samplers.windows import Windows
from onibi.platform.spec import ACTION_MASK, ROLE_FINAL, ArraySpec, ReplaySpec
from onibi.platform.stacked_policy import StackedPolicy

SPEC = ReplaySpec(
    observation=(
        ArraySpec(name="observation.frame", dtype="int64", shape=(2,)),
        ArraySpec(name="observation.clock", dtype="int64"),
    ),
    actions=3,
    keys_per_caption=1,
)
GROUPS, ENVS, REACH, FRAGMENT = 2, 2, 9, 5
LANES = GROUPS * ENVS
SLOTS = 4 * (2 * FRAGMENT + 1 + REACH)
DRAWS = {
    "uniform": WindowDraws(n_steps=3, batch_size=16),
    "prioritized": WindowDraws(n_steps=3, batch_size=16, priorities=PrioritySettings()),
    "newest first": WindowDraws(n_steps=3, batch_size=16, sampling=NewestFirstSettings(half_life_rows=20)),
    "trajectory weighted": WindowDraws(n_steps=3, batch_size=16, sampling=TrajectorySettings(temperature=1.0)),
    "sequences": SequenceDraws(length=4, burn_in=2, period=2, batch_size=8),
    "shifted": SequenceDraws(length=4, burn_in=1, period=3, batch_size=8, tail="shift"),
    "slabs": SlabDraws(rows=4, batch_lanes=3),
}


class Play:
    """A ring and all its rows in plain lists: [(observation, role)] of each lane, the head behind them."""

    def __init__(self, path, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.writer = RingWriter.create(
            path, SPEC, groups=GROUPS, lanes_per_group=ENVS, slots=SLOTS, window_rows=REACH, run_id="frames"
        )
        self.rows: list[list[tuple[int, int]]] = [[] for _ in range(LANES)]
        self.number = [1 + 100_000 * lane for lane in range(LANES)]
        self.incarnation = [self.writer.register(group) for group in range(GROUPS)]
        self.sequence = [0] * GROUPS
        self.reader = RingReader(path)

    def close(self) -> None:
        self.reader.close()
        self.writer.close()

    def steps(self, lane: int, most: int) -> list[tuple[int, int]]:
        """Rows of some steps: an episode's last step is followed by its final row."""
        rows = []
        for _ in range(most):
            rows.append((self.number[lane], 0))
            self.number[lane] += 1
            if self.rng.random() < 0.25:
                rows.append((self.number[lane], ROLE_FINAL))
                self.number[lane] += 1
        return rows

    def cut(self, lane: int) -> None:
        """The head becomes final: its actor died, or a fragment was lost."""
        if self.open[lane]:
            self.rows[lane].append((self.number[lane], ROLE_FINAL))

    open = [False] * LANES

    def fragment(self) -> None:
        group = int(self.rng.integers(GROUPS))
        lanes = range(group * ENVS, (group + 1) * ENVS)
        accident = self.rng.random()
        if accident < 0.1:
            self.incarnation[group], self.sequence[group] = self.writer.register(group), 0
        elif accident < 0.2 and self.sequence[group]:
            self.sequence[group] += 1
        if accident < 0.1 or (accident < 0.2 and self.sequence[group] > 1):
            for lane in lanes:
                self.cut(lane)
                self.number[lane] += 50
        made = [self.steps(lane, FRAGMENT) for lane in lanes]
        height = max(map(len, made)) + 1
        columns = {c.name: np.zeros((ENVS, height, *c.shape), c.dtype) for c in SPEC.columns}
        for env, (lane, rows) in enumerate(zip(lanes, made, strict=True)):
            seen = np.array([row for row, _ in rows] + [self.number[lane]])
            columns["observation.frame"][env, : len(seen)] = np.stack([seen, -seen], axis=1)
            columns["observation.clock"][env, : len(seen)] = seen
            columns["role"][env, : len(rows)] = [role for _, role in rows]
            columns["terminated"][env, :-1] = columns["role"][env, 1:] == ROLE_FINAL
            self.rows[lane] += rows
            self.open = [*self.open[:lane], True, *self.open[lane + 1 :]]
        self.writer.insert(
            group,
            incarnation=self.incarnation[group],
            sequence=self.sequence[group],
            rows_per_lane=np.array([len(rows) for rows in made], np.int32),
            columns=columns,
        )
        self.sequence[group] += 1

    def hand_over(self, group: int, position) -> int:
        """Another actor takes the group's lanes. Returns: rows from ``position`` [LANES] on that are released."""
        lanes = range(group * ENVS, (group + 1) * ENVS)
        for lane in lanes:
            self.cut(lane)
            self.open = [*self.open[:lane], False, *self.open[lane + 1 :]]
            self.number[lane] += 50
        self.writer.register(group)
        self.writer.retire(group)
        self.incarnation[group], self.sequence[group] = self.writer.register(group), 0
        return sum(len(self.rows[lane]) - int(position[lane]) for lane in lanes)

    def observation(self, lane: int, row: int) -> int:
        rows = self.rows[lane]
        return self.number[lane] if row == len(rows) else rows[row][0]

    def stack(self, lane: int, row: int, frames: int) -> list[int]:
        """What the walk back says: the frames of the row's piece up to it, the first one repeated."""
        found = [row]
        while len(found) < frames and found[-1] > 0 and self.rows[lane][found[-1] - 1][1] != ROLE_FINAL:
            found.append(found[-1] - 1)
        found += [found[-1]] * (frames - len(found))
        return [self.observation(lane, k) for k in reversed(found)]


@pytest.fixture
def make_play(tmp_path):
    made = []

    def make(seed):
        made.append(Play(tmp_path / f"{seed}.ring", seed))
        return made[-1]

    yield make
    for play in made:
        play.close()


def check(play: Play, kind: str, batch, frames: int) -> int:
    """Every stack of a batch is the walk's; how many pieces' begins were in them."""
    if isinstance(batch, Windows):
        leaves = [(batch.observation, batch.generation), (batch.bootstrap_observation, batch.generation + batch.steps)]
        rows = np.stack([row for _, row in leaves])
        lanes = np.broadcast_to(batch.lane, rows.shape)
        frame = np.stack([leaf["observation.frame"] for leaf, _ in leaves])
        clock = np.stack([leaf["observation.clock"] for leaf, _ in leaves])
    elif kind == "slabs":
        rows = batch.generation[:, None] + np.arange(batch.used.shape[1] + 1)
        lanes = np.broadcast_to(batch.lane[:, None], rows.shape)
        frame, clock = batch.observation["observation.frame"], batch.observation["observation.clock"]
    else:
        reach = np.minimum(np.arange(batch.used.shape[0] + 1)[:, None], batch.steps)
        rows = batch.first_row + reach
        lanes = np.broadcast_to(batch.lane, rows.shape)
        frame, clock = batch.observation["observation.frame"], batch.observation["observation.clock"]
    assert frame.shape == (*rows.shape, frames, 2)
    assert clock.shape == rows.shape
    begins = 0
    for at in np.ndindex(rows.shape):
        expected = play.stack(int(lanes[at]), int(rows[at]), frames)
        assert frame[at][:, 0].tolist() == expected
        assert frame[at][:, 1].tolist() == [-value for value in expected]
        assert clock[at] == expected[-1]
        begins += len(set(expected)) < frames
    return begins


@pytest.mark.parametrize("kind", sorted(DRAWS))
@pytest.mark.parametrize("seed", range(3))
def test_every_stack_is_what_a_walk_back_along_the_rows_finds(kind, seed, make_play):
    play = make_play(seed)
    frames = 2 + seed
    stack = FrameStack(frames=frames, leaves=("observation.frame",))
    sampler = make_sampler(play.reader, DRAWS[kind], np.random.default_rng(seed), stack=stack)
    out, begins, draws = sampler.allocate(), 0, 0
    for _ in range(4):
        play.fragment()
    for _ in range(60):  # the ring goes round more than once
        play.fragment()
        if kind == "slabs" and not sampler.ready:
            continue
        begins += check(play, kind, sampler.draw(out=out), frames)
        draws += 1
    assert min(len(rows) for rows in play.rows) > SLOTS
    assert draws > 20
    assert begins > 20, "begins of pieces, where the first frame is repeated"


@pytest.mark.parametrize("kind", ["uniform", "prioritized", "sequences"])
def test_every_row_with_all_its_frames_is_drawn_and_no_other(kind, make_play):
    play, frames = make_play(11), 4
    stack = FrameStack(frames=frames, leaves=("observation.frame",))
    draws = SequenceDraws(length=2, burn_in=0, period=1, batch_size=32) if kind == "sequences" else DRAWS[kind]
    sampler = make_sampler(play.reader, draws, np.random.default_rng(0), stack=stack)
    for _ in range(60):
        play.fragment()
    oldest = play.reader.snapshot().oldest
    assert (oldest > 0).all()
    expected = {
        (lane, row)
        for lane in range(LANES)
        for row in range(int(oldest[lane]) + frames - 1, len(play.rows[lane]))
        if play.rows[lane][row][1] != ROLE_FINAL
    }
    seen = set()
    for _ in range(150):
        batch = sampler.draw()
        seen |= set(zip(batch.lane.tolist(), batch.generation.tolist(), strict=True))
    assert seen == expected


@pytest.mark.parametrize("frames", [1, 4])
@pytest.mark.parametrize("asked", [True, False], ids=["asked meanwhile", "not asked meanwhile"])
def test_slabs_bring_every_row_with_all_its_frames_also_of_lanes_that_went_to_another_actor(asked, frames, make_play):
    play, drawn = make_play(13), [[] for _ in range(LANES)]
    stack = None if frames == 1 else FrameStack(frames=frames, leaves=("observation.frame",))
    sampler = make_sampler(play.reader, SlabDraws(rows=2, batch_lanes=1), np.random.default_rng(0), stack=stack)
    released = 0
    for turn in range(123):  # the ring goes round more than once
        play.fragment()
        handed_over = turn % 8 == 7
        if handed_over:
            released += play.hand_over(turn // 8 % GROUPS, sampler._position)
        while (asked or not handed_over) and sampler.ready:
            slab = sampler.draw()
            if stack is not None:
                check(play, "slabs", slab, frames)
            drawn[int(slab.lane[0])] += range(int(slab.generation[0]), int(slab.generation[0]) + 2)
    rows = sum(map(len, play.rows))
    waiting = rows - int(sampler._position.sum())
    assert sampler.lost_rows == released > 0, "none but those that nobody may read any more"
    assert sum(map(len, drawn)) + released + waiting == rows
    assert all(each == sorted(set(each)) for each in drawn)


@pytest.mark.parametrize("frames", [2, 5])
def test_from_the_first_row_of_a_run_on_stacks_begin_with_row_0(frames, make_play):
    play = make_play(5)
    stack = FrameStack(frames=frames, leaves=("observation.frame",))
    sampler = make_sampler(play.reader, DRAWS["uniform"], np.random.default_rng(0), stack=stack)
    play.fragment()
    seen = set()
    for _ in range(20):
        batch = sampler.draw()
        check(play, "uniform", batch, frames)
        seen |= set(batch.generation.tolist())
    assert 0 in seen


def test_frames_that_reach_farther_than_the_ring_was_made_for_are_refused(make_play):
    play = make_play(1)
    stack = FrameStack(frames=8, leaves=("observation.frame",))
    for draws in (DRAWS["uniform"], DRAWS["sequences"]):
        with pytest.raises(ReplayError, match=r"with 7 frames before\s+them.* window_rows >= frames - 1"):
            make_sampler(play.reader, draws, np.random.default_rng(0), stack=stack)


def test_all_leaves_but_an_action_mask_are_stacked_where_none_is_named():
    mask = ArraySpec(name=ACTION_MASK, dtype="uint8", shape=(3,))
    spec = ReplaySpec(observation=(*SPEC.observation, mask), actions=3)
    assert frame_stack(FrameStackSettings(), spec) is None
    stack = frame_stack(FrameStackSettings(frames=4), spec)
    assert stack.leaves == ("observation.frame", "observation.clock")
    assert [leaf.shape for leaf in stack.seen(spec).observation] == [(4, 2), (4,), (3,)]
    assert [leaf.shape for leaf in spec.observation] == [(2,), (), (3,)], "stored once"
    with pytest.raises(ConfigError, match=r"names \['observation.image'\]"):
        frame_stack(FrameStackSettings(frames=1, leaves=("observation.image",)), spec)


def test_frames_of_no_leaf_are_refused():
    with pytest.raises(ValueError, match="leaves is empty, so of 4 frames nothing is stacked"):
        FrameStackSettings(frames=4, leaves=())
    assert FrameStackSettings(leaves=()).frames == 1, "nothing is what is asked for"


@pytest.mark.parametrize("frames", [1, 4])
def test_a_stack_of_action_masks_is_refused(frames):
    spec = ReplaySpec(
        observation=(*SPEC.observation, ArraySpec(name=ACTION_MASK, dtype="uint8", shape=(3,))), actions=3
    )
    with pytest.raises(ConfigError, match=r"names 'observation.action_mask'.* Leave it out"):
        frame_stack(FrameStackSettings(frames=frames, leaves=("observation.frame", ACTION_MASK)), spec)


class Seer:
    """Notes what it sees; its own state, where it has one, counts its acts."""

    version = -1

    def __init__(self, remembers: bool) -> None:
        self.remembers, self.seen, self.states = remembers, [], []

    def initial_state(self, envs):
        return np.zeros((envs, 2), np.float32) if self.remembers else None

    def act(self, observation, state, rng):
        self.seen.append({name: leaf.copy() for name, leaf in observation.items()})
        self.states.append(None if state is None else state.copy())
        return PolicyStep(np.zeros(len(observation["b"]), np.int64), None if state is None else state + 1)

    def load(self, weights):
        self.version = weights.version


@pytest.mark.parametrize("remembers", [False, True])
def test_a_policy_sees_the_stacks_that_will_be_drawn(remembers):
    """Two lanes of numbers, reset at different times; as a rollout does it, by the lane's initial state."""
    rng, frames = np.random.default_rng(0), 3
    inner = Seer(remembers)
    policy = StackedPolicy(inner, FrameStack(frames=frames, leaves=("a",)))
    state = policy.initial_state(2)
    history: list[list[int]] = [[], []]
    acts = np.zeros(2)
    for step in range(40):
        now = np.array([step, 1_000 + step])
        for lane in range(2):
            history[lane].append(int(now[lane]))
        acted = policy.act({"a": now[:, None] * [1, 2], "b": now}, state, rng)
        state = acted.state
        for lane in range(2):
            first = history[lane][0]
            expected = (
                ([first] * frames + history[lane])[-frames:]
                if len(history[lane]) < frames
                else (history[lane][-frames:])
            )
            assert inner.seen[-1]["a"][lane].tolist() == [[value, 2 * value] for value in expected]
            assert inner.seen[-1]["b"][lane] == now[lane]
            if remembers:
                assert inner.states[-1][lane].tolist() == [acts[lane]] * 2
        acts += 1
        ended = rng.random(2) < 0.2
        state = np.where(ended[:, None], policy.initial_state(2), state)
        acts[ended] = 0
        for lane in np.flatnonzero(ended):
            history[lane] = []


@pytest.mark.parametrize("kind", ["uniform", "prioritized", "sequences", "slabs"])
@pytest.mark.parametrize(
    "stack",
    [
        FrameStack(frames=2, leaves=("observation.farme",)),
        FrameStack(frames=2, leaves="observation.frame"),
        FrameStack(frames=1, leaves=("observation.frame",)),
    ],
)
def test_stacks_of_leaves_that_are_not_there_are_refused_and_not_left_out(make_play, kind, stack):
    with pytest.raises(ReplayError, match=r"cannot be stacked; allowed are .*'observation.frame', 'observation.clock'"):
        make_sampler(make_play(1).reader, DRAWS[kind], np.random.default_rng(0), stack=stack)
