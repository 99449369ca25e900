"""The ring and the sampler against a model in plain lists, over random episode layouts and accidents."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from onibi.platform.errors import ReplayError
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.ring.writer import RingWriter
from onibi.platform.replay.samplers.uniform_sampler import UniformSampler

GROUPS, ENVS, STEPS, WINDOW = 2, 3, 6, 4


def filled(rows, path, seed, *, same_step, fragments=40, end=0.15, accidents=True):
    """A ring after ``fragments`` fragments with gaps, repeats and (double) registers among them, and its model."""
    rng = np.random.default_rng(seed)
    slots = 4 * ((2 if same_step else 1) * STEPS + 1 + WINDOW) + int(rng.integers(7))
    writer = RingWriter.create(
        path, rows.SPEC, groups=GROUPS, lanes_per_group=ENVS, slots=slots, window_rows=WINDOW, run_id="r"
    )
    model = rows.RingModel(GROUPS * ENVS, slots)
    lanes = [rows.Lane(rng, lane, same_step, end) for lane in range(GROUPS * ENVS)]
    envs = [ENVS, ENVS - 1]  # the second actor has fewer environments than its group has lanes
    incarnation = [writer.register(group) for group in range(GROUPS)]
    sequence = [0] * GROUPS
    for _ in range(fragments):
        group = int(rng.integers(GROUPS))
        mine = range(group * ENVS, group * ENVS + envs[group])
        accident = rng.random() if accidents else 1.0
        if accident < 0.1:  # the actor dies and is replaced, now and then twice
            for _ in range(1 + int(rng.integers(2))):
                incarnation[group] = writer.register(group)
                for lane in mine:
                    model.close(lane)
            sequence[group] = 0
            for lane in mine:
                lanes[lane].begin()
        # NEXT_STEP brings the same number of rows in every lane; SAME_STEP is ragged, and here a lane may bring none.
        steps = rng.integers(STEPS + 1, size=ENVS) if same_step else np.full(ENVS, STEPS)
        made = [[row for _ in range(steps[lane % ENVS]) for row in lanes[lane].advance()] for lane in mine]
        gap = 0.1 < accident < 0.2 and sequence[group] > 0
        if gap:
            sequence[group] += 1  # the fragment just made is lost; the next one goes on behind it
            made = [[row for _ in range(STEPS // 2) for row in lanes[lane].advance()] for lane in mine]
        heads = [lanes[lane].head() for lane in mine]
        arguments = {
            "incarnation": incarnation[group],
            "sequence": sequence[group],
            "rows_per_lane": np.array([len(lane) for lane in made], np.int32),
            "columns": rows.fragment_columns(made, heads),
        }
        outcome = writer.insert(group, **arguments)
        assert (outcome.repeated, outcome.gap, outcome.foreign_heads if not gap else 0) == (False, gap, 0)
        assert outcome.step_rows == sum(row["role"] == 0 for lane in made for row in lane)
        if accident > 0.9:
            assert writer.insert(group, **arguments).repeated
        for lane, new, head in zip(mine, made, heads, strict=True):
            if gap:
                model.close(lane)
            model.add(lane, new, head)
        sequence[group] += 1
    return writer, model


@pytest.mark.parametrize("same_step", [False, True])
@pytest.mark.parametrize("seed", range(15))
def test_ring_holds_the_rows_that_the_model_holds_and_windows_are_as_walked(rows, ring_path, seed, same_step):
    writer, model = filled(rows, ring_path, seed, same_step=same_step)
    reader = RingReader(ring_path)
    rows.assert_ring_holds(reader, model)
    assert reader.snapshot().oldest.tolist() == model.oldest
    for n in (1, WINDOW):
        sampler = UniformSampler(reader, n_steps=n, batch_size=32, rng=np.random.default_rng(seed), batches_ahead=3)
        seen = set()
        out = sampler.allocate()
        for _ in range(6):
            windows = sampler.draw(out)
            for index in range(32):
                lane, start = int(windows.lane[index]), int(windows.generation[index])
                seen.add((lane, start))
                expected = model.window(lane, start, n)
                for name in ("reward", "continues", "used", "caption_id", "caption_count", "steps"):
                    np.testing.assert_array_equal(getattr(windows, name)[index], expected[name], err_msg=name)
                first, bootstrap = expected["first"], expected["bootstrap"]
                for column in rows.SPEC.observation:
                    np.testing.assert_array_equal(windows.observation[column.name][index], first[column.name])
                    np.testing.assert_array_equal(
                        windows.bootstrap_observation[column.name][index], bootstrap[column.name]
                    )
                for column in rows.SPEC.extra:
                    np.testing.assert_array_equal(windows.extra[column.name][index], first[column.name])
                assert windows.action[index] == first["action"]
                assert windows.policy_version[index] == first["policy_version"]
        assert seen <= model.drawable()
        assert sampler.drawn_rows == 6 * 32
    writer.close()


@pytest.mark.parametrize("same_step", [False, True])
def test_every_drawable_start_is_drawn_with_the_same_frequency(rows, ring_path, same_step):
    writer, model = filled(rows, ring_path, 3, same_step=same_step, end=0.3)
    drawable = sorted(model.drawable())
    lengths = [len(lane) - oldest for lane, oldest in zip(model.rows, model.oldest, strict=True)]
    assert len(set(lengths)) > 1  # lanes of unequal length, one of them empty
    assert min(lengths) == 0
    sampler = UniformSampler(RingReader(ring_path), n_steps=3, batch_size=4096, rng=np.random.default_rng(1))
    count: dict[tuple[int, int], int] = dict.fromkeys(drawable, 0)
    out = sampler.allocate()
    for _ in range(100):
        sampler.draw(out)
        starts, times = np.unique(np.stack([out.lane, out.generation]), axis=1, return_counts=True)
        for lane, generation, number in zip(*starts.tolist(), times.tolist(), strict=True):
            count[lane, generation] += number  # KeyError: a start that is not drawable
    assert stats.chisquare(list(count.values())).pvalue > 1e-3
    writer.close()


def test_lanes_outside_of_a_samplers_subset_are_never_drawn(rows, ring_path):
    writer, _ = filled(rows, ring_path, 5, same_step=False)
    sampler = UniformSampler(
        RingReader(ring_path), n_steps=1, batch_size=512, rng=np.random.default_rng(1), lanes=[1, 4]
    )
    assert set(sampler.draw().lane.tolist()) == {1, 4}
    with pytest.raises(ReplayError, match=r"lanes \[6\] cannot be drawn from, the ring has 0 to 5"):
        UniformSampler(RingReader(ring_path), n_steps=1, batch_size=8, rng=np.random.default_rng(1), lanes=[6])
    writer.close()


def test_only_named_columns_are_gathered_and_unknown_ones_refused(rows, ring_path):
    writer, _ = filled(rows, ring_path, 5, same_step=False)
    reader, rng = RingReader(ring_path), np.random.default_rng(1)
    some = UniformSampler(reader, n_steps=1, batch_size=8, rng=rng, columns=["observation.image", "logits"]).draw()
    assert list(some.observation) == list(some.bootstrap_observation) == ["observation.image"]
    assert list(some.extra) == ["logits"]
    with pytest.raises(ReplayError, match=r"no columns \['observation\.imag'\]"):
        UniformSampler(reader, n_steps=1, batch_size=8, rng=rng, columns=["observation.imag"])
    writer.close()


def batches(sampler, count):
    return [
        (w.lane.tolist(), w.generation.tolist(), w.reward.tobytes()) for w in (sampler.draw() for _ in range(count))
    ]


def test_same_seed_draws_the_same_and_a_restored_sampler_goes_on_exactly(rows, ring_path):
    writer, _ = filled(rows, ring_path, 7, same_step=False)

    def fresh(seed):
        return UniformSampler(RingReader(ring_path), n_steps=3, batch_size=16, rng=np.random.default_rng(seed))

    one, two, other = fresh(1), fresh(1), fresh(2)
    head = batches(one, 11)  # 11 of 16 planned batches: the state holds the rest
    assert head == batches(two, 11)
    assert head != batches(other, 11)
    state = json.loads(json.dumps(one.state()))
    other.restore(state)
    assert batches(other, 20) == batches(one, 20)
    assert other.drawn_rows == one.drawn_rows == 31 * 16
    writer.close()


def test_starts_planned_before_a_checkpoint_are_dropped_where_the_ring_lost_them(rows, ring_path, caplog):
    writer, _ = filled(rows, ring_path, 7, same_step=False)
    sampler = UniformSampler(RingReader(ring_path), n_steps=3, batch_size=16, rng=np.random.default_rng(1))
    sampler.draw()
    state = sampler.state()
    writer.close()
    ring_path.unlink()
    writer, model = filled(rows, ring_path, 8, same_step=False, fragments=3, accidents=False)
    late = UniformSampler(RingReader(ring_path), n_steps=3, batch_size=16, rng=np.random.default_rng(1))
    late.restore(state)
    assert "drawing new ones" in caplog.text
    windows = late.draw()
    assert set(zip(windows.lane.tolist(), windows.generation.tolist(), strict=True)) <= model.drawable()
    writer.close()


def test_span_that_is_nearly_all_final_rows_is_drawn_and_one_without_steps_refused(rows, ring_path):
    writer = RingWriter.create(ring_path, rows.SPEC, groups=1, lanes_per_group=1, slots=500, window_rows=1, run_id="r")
    sampler = UniformSampler(RingReader(ring_path), n_steps=1, batch_size=8, rng=np.random.default_rng(0))
    with pytest.raises(ReplayError, match="no committed rows"):
        sampler.draw()
    head = rows.blank_row(1, 1, 0)
    incarnation = 0
    for _ in range(200):  # an actor that dies before its first step, each time
        incarnation = writer.register(0)
        writer.insert(
            0,
            incarnation=incarnation,
            sequence=0,
            rows_per_lane=np.zeros(1, np.int32),
            columns=rows.fragment_columns([[]], [head]),
        )
    with pytest.raises(ReplayError, match="all 199 readable rows are final"):
        sampler.draw()
    step = rows.blank_row(1, 1, 0) | {"reward": 5}
    writer.insert(
        0,
        incarnation=incarnation,
        sequence=1,
        rows_per_lane=np.ones(1, np.int32),
        columns=rows.fragment_columns([[step]], [rows.blank_row(2, 1, 1)]),
    )
    assert sampler.draw().generation.tolist() == [199] * 8
    writer.close()
