"""The limiter as a table of cases, and its promise that two sides never both wait."""

from __future__ import annotations

import numpy as np
import pytest

from onibi.platform.errors import ConfigError, ReplayError
from onibi.platform.replay.limiter import DrawnWord, Limiter, LimiterSettings
from onibi.platform.replay.samplers.draws import SlabDraws

SLABS = SlabDraws(rows=8, batch_lanes=3)
RING = {"lanes": 4, "lanes_per_actor": 2, "fragment_rows": 16, "slots": 300}
LIMITER = Limiter(ratio=4.0, minimum_rows=100, tolerance_rows=80)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ({"ratio": 0.0}, "ratio is 0.0"),
        ({"ratio": float("nan")}, "ratio is nan"),
        ({"minimum_rows": -1}, "minimum_rows is -1"),
        ({"largest_batch_rows": 0}, "largest_batch_rows 0"),
        ({"tolerance_rows": float("nan")}, "tolerance_rows is nan"),
        ({"tolerance_rows": 79, "largest_fragment_rows": 20}, "below 80"),  # 4 x 20
        ({"tolerance_rows": 99, "largest_batch_rows": 100}, "below 100"),
    ],
)
def test_a_limiter_made_by_hand_that_would_hold_both_sides_for_ever_is_refused(fault, told):
    with pytest.raises(ValueError, match=told):
        Limiter(**{"ratio": 4.0, "minimum_rows": 100, "tolerance_rows": 80, **fault})


@pytest.mark.parametrize(
    ("inserted", "drawn", "readable", "rows", "allowed"),
    [
        (0, 0, 0, 500, True),  # nothing there yet: a fragment of any size comes in
        (99, 0, 99, 50, True),
        (100, 0, 100, 20, True),  # 4 x (120 - 100) = 80
        (100, 0, 100, 21, False),  # 84 > 80
        (100, 4, 100, 21, True),
        (1_000, 0, 99, 21, True),  # rows were lost: refill, whatever the counts say
    ],
)
def test_insertion_waits_at_the_tolerance(inserted, drawn, readable, rows, allowed):
    assert LIMITER.may_insert(rows, inserted=inserted, drawn=drawn, readable=readable) is allowed


@pytest.mark.parametrize(
    ("inserted", "drawn", "readable", "rows", "allowed"),
    [
        (99, 0, 99, 1, False),  # below the minimum
        (100, 0, 100, 80, True),  # 0 - 80 = -80
        (100, 0, 100, 81, False),
        (120, 0, 120, 160, True),  # 4 x 20 - 160 = -80
        (120, 1, 120, 160, False),
        (1_000, 0, 99, 1, False),  # rows were lost
    ],
)
def test_drawing_waits_at_the_tolerance_and_below_the_minimum(inserted, drawn, readable, rows, allowed):
    assert LIMITER.may_draw(rows, inserted=inserted, drawn=drawn, readable=readable) is allowed


@pytest.mark.parametrize("seed", range(50))
def test_batches_allowed_at_once_are_as_many_as_are_allowed_one_by_one(seed):
    rng = np.random.default_rng(seed)
    inserted, drawn, batch = int(rng.integers(50, 400)), int(rng.integers(0, 900)), int(rng.integers(1, 90))
    one_by_one, now = 0, drawn
    while LIMITER.may_draw(batch, inserted=inserted, drawn=now, readable=inserted):
        one_by_one, now = one_by_one + 1, now + batch
    assert LIMITER.batches_allowed(batch, inserted=inserted, drawn=drawn, readable=inserted) == one_by_one


@pytest.mark.parametrize("seed", range(100))
def test_one_side_may_always_go_on_and_the_ratio_is_held(seed):
    rng = np.random.default_rng(seed)
    fragment, batch = int(rng.integers(1, 3_000)), int(rng.integers(1, 1_000))
    settings = LimiterSettings(samples_per_insert=float(rng.choice([0.1, 0.5, 1, 8, 32])), minimum_rows=1_000)
    limiter = Limiter.from_settings(settings, fragment_rows=fragment, batch_rows=batch, capacity_rows=10**6)
    inserted = drawn = 0
    for _ in range(2_000):
        counts = {"inserted": inserted, "drawn": drawn, "readable": inserted}
        may_insert, may_draw = limiter.may_insert(fragment, **counts), limiter.may_draw(batch, **counts)
        assert may_insert or may_draw
        if may_insert and (not may_draw or rng.random() < 0.5):
            inserted += int(rng.integers(1, fragment + 1))  # final rows do not count: fragments may bring fewer
        else:
            drawn += batch
    assert drawn > 0
    # The first fragment may pass the minimum by its length less one; it is not held back, hence the second term.
    assert abs(limiter.surplus(inserted, drawn)) <= limiter.tolerance_rows + limiter.ratio * fragment


def test_tolerance_that_could_lock_is_refused_with_the_sum():
    settings = LimiterSettings(samples_per_insert=0.5, minimum_rows=1_000, tolerance_rows=50)
    with pytest.raises(
        ConfigError, match=r"2 x max\(0.5 samples per insert x 2048 fragment rows, 128 batch rows\) = 2048"
    ):
        Limiter.from_settings(settings, fragment_rows=2_048, batch_rows=128, capacity_rows=10**6)


def test_minimum_that_the_ring_might_never_hold_is_refused():
    with pytest.raises(ConfigError, match="minimum_rows is 600, more than half of the ring's 1000 rows"):
        Limiter.from_settings(LimiterSettings(minimum_rows=600), fragment_rows=8, batch_rows=8, capacity_rows=1_000)


def test_minimum_that_the_runs_actors_can_never_hold_is_refused():
    """8 groups of 4 lanes x 250 slots, and 2 actors: 2 x 4 x 249 rows at most."""
    ring = {"fragment_rows": 64, "batch_rows": 32, "capacity_rows": 8_000}
    settings = LimiterSettings(minimum_rows=1_993)
    with pytest.raises(ConfigError, match=r"minimum_rows is 1993, but .* hold 1992 of the ring's 8000 rows at most"):
        Limiter.from_settings(settings, **ring, reachable_rows=2 * 4 * 249)
    assert Limiter.from_settings(settings, **ring, reachable_rows=1_993).minimum_rows == 1_993
    assert Limiter.from_settings(settings, **ring).minimum_rows == 1_993


@pytest.mark.parametrize(
    "wrong",
    [
        {"samples_per_insert": 0.0},
        {"samples_per_insert": np.inf},
        {"minimum_rows": 0},
        {"tolerance_rows": 0.0},
        {"tolerance_rows": np.inf},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LimiterSettings(**wrong)


@pytest.mark.parametrize("readable", [0, 40, 100, 5_000])
def test_after_rebasing_the_surplus_is_zero_when_drawing_begins(readable):
    inserted = 7_777
    drawn = LIMITER.rebased_drawn(inserted=inserted, readable=readable)
    refilled = inserted + max(0, 100 - readable)
    assert LIMITER.surplus(refilled, drawn) == 0
    assert LIMITER.may_draw(80, inserted=refilled, drawn=drawn, readable=max(readable, 100))


def test_several_learners_words_are_summed_and_each_writes_its_own(tmp_path):
    path = tmp_path / "x.ring.drawn"
    DrawnWord.create(path)
    learners = [DrawnWord(path, writable=True, learner=number) for number in range(3)]
    for number, word in enumerate(learners):
        word.add(10 ** (number + 1))
    assert [word.value for word in learners] == [1_110] * 3
    assert np.fromfile(path, "<i8")[:4].tolist() == [10, 100, 1_000, 0]
    learners[0].value = 500  # the others keep theirs: it has −600
    learners[1].add(1)
    assert DrawnWord(path, writable=False).value == 501


def test_drawn_word_is_seen_by_its_reader_and_keeps_its_value(tmp_path):
    path = tmp_path / "x.ring.drawn"
    with pytest.raises(ReplayError, match="has the run's shard been started"):
        DrawnWord(path, writable=False)
    DrawnWord.create(path)
    learner, shard = DrawnWord(path, writable=True), DrawnWord(path, writable=False)
    learner.value += 12
    DrawnWord.create(path)
    assert shard.value == DrawnWord(path, writable=False).value == 12
    with pytest.raises(ValueError, match="read-only"):
        shard.value = 3
    path.write_bytes(b"12")
    with pytest.raises(ReplayError, match="is not a drawn word: it has 2 bytes"):
        DrawnWord(path, writable=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples_per_insert": 4.0}, "samples_per_insert is 4, but this learner is on-policy.* to 1"),
        ({"minimum_rows": 500}, "minimum_rows is 500, but this learner is on-policy"),
        # 4 lanes of up to 7 rows, 2 whole pieces, one fragment of 16: no 3 pieces, and no room for a fragment.
        ({"tolerance_rows": 59.0}, r"tolerance_rows is 59, below 4 lanes x \(8 - 1\) \+ \(3 - 1\) x 8 \+ 16 .* = 60"),
        ({"tolerance_rows": 600.0}, "gives 300 rows a lane, but 317 may wait for the learner there"),
    ],
)
def test_limiters_that_do_not_fit_an_on_policy_learner_are_refused_with_the_sum(changes, message):
    with pytest.raises(ConfigError, match=message):
        Limiter.for_slabs(LimiterSettings(**{"samples_per_insert": 1.0, **changes}), SLABS, **RING)


def test_settings_left_as_they_are_fit_an_on_policy_learner():
    limiter = Limiter.for_slabs(LimiterSettings(), SLABS, **RING)
    assert (limiter.ratio, limiter.minimum_rows, limiter.once) == (1.0, 0, True)


def test_more_lanes_than_there_are_are_refused():
    with pytest.raises(ConfigError, match="batch_lanes is 5: the learner draws so many lanes at once, the run has 4"):
        Limiter.for_slabs(LimiterSettings(samples_per_insert=1.0), SlabDraws(rows=8, batch_lanes=5), **RING)
