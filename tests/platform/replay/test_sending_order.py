"""Fragments pass in the order in which they were sent, whatever order they come in."""

from __future__ import annotations

import asyncio
import logging

import numpy as np
import pytest

from onibi.platform.replay.sending_order import SendingOrder


async def send(order, passed, group, sequence, incarnation=1):
    await order.turn(group, incarnation, sequence)
    passed.append((group, sequence))


@pytest.mark.parametrize("seed", range(20))
def test_shuffled_fragments_of_several_actors_pass_in_their_order(seed):
    rng = np.random.default_rng(seed)

    async def play():
        order, passed = SendingOrder(), []
        for group in range(3):
            order.begin(group, 1, 5)
        sent = [(group, sequence) for group in range(3) for sequence in range(5, 45)]
        tasks = []
        for place in rng.permutation(len(sent)):
            tasks.append(asyncio.create_task(send(order, passed, *sent[place])))
            for _ in range(rng.integers(3)):
                await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        return passed

    passed = asyncio.run(play())
    for group in range(3):
        assert [sequence for of, sequence in passed if of == group] == list(range(5, 45))


def test_one_actor_waits_for_no_other_and_repeated_fragments_for_nobody():
    async def play():
        order, passed = SendingOrder(), []
        order.begin(0, 1, 0)
        order.begin(1, 1, 0)
        late = asyncio.create_task(send(order, passed, 0, 1))
        await asyncio.sleep(0.01)
        for group, sequence in ((1, 0), (1, 1), (1, 0), (2, 9)):  # of the last group nothing is known
            await asyncio.wait_for(send(order, passed, group, sequence), 5)
        assert not late.done()
        await send(order, passed, 0, 0)
        await asyncio.wait_for(late, 5)
        return passed

    assert asyncio.run(play()) == [(1, 0), (1, 1), (1, 0), (2, 9), (0, 0), (0, 1)]


def test_after_a_lost_fragment_the_others_go_on_and_it_is_told(caplog):
    async def play():
        order, passed = SendingOrder(patience_seconds=0.05), []
        order.begin(0, 1, 0)
        await asyncio.wait_for(asyncio.gather(*(send(order, passed, 0, sequence) for sequence in (3, 2, 4))), 5)
        await asyncio.wait_for(send(order, passed, 0, 1), 5)  # too late: for the ring to count as repeated
        await asyncio.wait_for(send(order, passed, 0, 5), 5)
        return passed

    with caplog.at_level(logging.WARNING):
        passed = asyncio.run(play())
    assert passed == [(0, 2), (0, 3), (0, 4), (0, 1), (0, 5)]
    assert [record.message for record in caplog.records] == ["fragment 0 of actor 0 has not come: 2 passes"]


def test_fragments_of_a_dead_incarnation_do_not_wait_and_hold_nobody_up():
    async def play():
        order, passed = SendingOrder(), []
        order.begin(0, 1, 0)
        orphan = asyncio.create_task(send(order, passed, 0, 7))
        await asyncio.sleep(0.01)
        assert not orphan.done()
        order.begin(0, 2, 0)
        await asyncio.wait_for(orphan, 5)
        await asyncio.wait_for(send(order, passed, 0, 8), 5)
        await asyncio.wait_for(send(order, passed, 0, 0, incarnation=2), 5)
        await asyncio.wait_for(send(order, passed, 0, 1, incarnation=2), 5)
        return passed

    assert asyncio.run(play()) == [(0, 7), (0, 8), (0, 0), (0, 1)]


def test_a_fragment_that_comes_twice_before_its_turn_passes_twice_and_holds_nobody_up():
    async def play():
        order, passed = SendingOrder(), []
        order.begin(0, 1, 0)
        early = [asyncio.create_task(send(order, passed, 0, sequence)) for sequence in (1, 1, 2)]
        await asyncio.sleep(0.01)
        await asyncio.wait_for(send(order, passed, 0, 0), 5)
        await asyncio.wait_for(asyncio.gather(*early), 5)
        return passed

    assert asyncio.run(play()) == [(0, 0), (0, 1), (0, 1), (0, 2)]
