"""Who is stalled and why, how long each side has waited, and the order in which insertions are let in."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from onibi.platform.replay.limiter import Limiter
from onibi.platform.replay.pacing import InsertionLine, WaitMeter, pacing

LIMITER = Limiter(ratio=4.0, minimum_rows=100, tolerance_rows=80, largest_fragment_rows=8, largest_batch_rows=16)


@pytest.mark.parametrize(
    ("inserted", "drawn", "readable", "stalled", "reason"),
    [
        (40, 0, 40, "learner", "40 rows are readable, drawing needs 100"),
        (5_000, 19_600, 99, "learner", "99 rows are readable, drawing needs 100"),
        (100, 0, 100, "none", ""),
        (100, 70, 100, "learner", "after 16 more draws the learner would be 86 ahead, tolerance 80"),
        (116, 0, 116, "actors", "with 8 more rows the learner would owe 96 draws, tolerance 80"),  # 4 x (116 + 8 - 100)
    ],
)
def test_stalled_side_is_told_with_the_sum_that_holds_it(inserted, drawn, readable, stalled, reason):
    found = pacing(LIMITER, inserted=inserted, drawn=drawn, readable=readable)
    assert (found.stalled, found.reason) == (stalled, reason)
    assert [name for name, value in found.metrics().items() if value] == (
        [] if stalled == "none" else [f"replay/{stalled}_stalled"]
    )


@pytest.mark.parametrize("seed", range(50))
def test_judgement_agrees_with_what_the_limiter_allows(seed):
    rng = np.random.default_rng(seed)
    inserted, drawn = int(rng.integers(0, 300)), int(rng.integers(0, 900))
    counts = {"inserted": inserted, "drawn": drawn, "readable": int(rng.integers(50, 300))}
    found = pacing(LIMITER, **counts)
    allowed = {"actors": LIMITER.may_insert(8, **counts), "learner": LIMITER.may_draw(16, **counts)}
    assert [side for side, may in allowed.items() if not may] == ([] if found.stalled == "none" else [found.stalled])


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self):
        return self.now


def test_waits_are_summed_by_who_and_for_whom_and_include_those_that_go_on():
    clock = Clock()
    meter = WaitMeter(clock)
    meter.begin("actor 1", "learner")
    clock.now = 2.0
    meter.begin("learner", "actors")
    meter.begin("actor 1", "learner")  # still waiting: changes nothing
    clock.now = 5.0
    assert meter.longest() == ("actor 1", "learner", 5.0)
    meter.end("actor 1", "learner")
    meter.end("actor 1", "learner")
    assert meter.longest() == ("learner", "actors", 3.0)
    clock.now = 6.0
    assert meter.seconds() == {("actor 1", "learner"): 5.0, ("learner", "actors"): 4.0}
    assert (meter.seconds_for("learner"), meter.seconds_for("nobody")) == (5.0, 0.0)
    meter.end("learner", "actors")
    assert meter.longest() is None


def test_actors_are_let_in_in_the_order_in_which_they_came_each_as_often_as_any_other():
    served, allowance = [], 0

    async def actor(line, name, rows, turns):
        nonlocal allowance

        def may_insert():
            return allowance >= rows

        for _ in range(turns):
            async with line.turn(name, may_insert):
                allowance -= rows
                served.append(name)

    async def learner(total):
        nonlocal allowance
        for _ in range(total):
            allowance += 1
            await asyncio.sleep(0)

    async def run():
        line = InsertionLine(WaitMeter(), recheck_seconds=0.0)
        # The one with the large fragments would starve if whoever fits were let in.
        actors = [actor(line, "large", 9, 10), actor(line, "small", 1, 10), actor(line, "tiny", 1, 10)]
        await asyncio.gather(*actors, learner(11 * 10))
        return line.length

    assert asyncio.run(run()) == 0
    assert served == ["large", "small", "tiny"] * 10


def test_seconds_in_line_and_at_the_limiter_are_told_apart():
    async def run():
        clock = Clock()
        meter, opened = WaitMeter(clock), False
        line = InsertionLine(meter, recheck_seconds=0.0)

        async def insert(name):
            async with line.turn(name, lambda: opened):
                pass

        tasks = [asyncio.create_task(insert(name)) for name in ("first", "second")]
        for _ in range(5):
            await asyncio.sleep(0)
        clock.now = 3.0
        assert meter.longest()[2] == 3.0
        assert line.length == 2
        opened = True
        await asyncio.gather(*tasks)
        return meter.seconds()

    seconds = asyncio.run(run())
    assert seconds["first", "learner"] == 3.0
    assert seconds["second", "line"] == 3.0
    assert seconds.get(("second", "learner"), 0.0) == 0.0


def test_insertion_that_is_cancelled_in_line_or_fails_lets_the_next_one_in():
    async def run():
        line = InsertionLine(WaitMeter(), recheck_seconds=0.0)

        async def insert(name, may):
            async with line.turn(name, lambda: may):
                raise RuntimeError(name)

        stuck = asyncio.create_task(insert("stuck", False))
        behind = asyncio.create_task(insert("behind", True))
        for _ in range(5):
            await asyncio.sleep(0)
        stuck.cancel()
        return await asyncio.gather(stuck, behind, return_exceptions=True), line.length

    (stuck, behind), length = asyncio.run(run())
    assert isinstance(stuck, asyncio.CancelledError)
    assert str(behind) == "behind"
    assert length == 0
