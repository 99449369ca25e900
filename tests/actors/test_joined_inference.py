"""Central inference: the same actions as with a network of one's own, in fewer passes."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from onibi.actors.joined_inference import InferenceSettings, JoinedInference
from onibi.platform.policy import NO_WEIGHTS, Weights, weights_version


class Doubler:
    """Gives rows times the loaded factor; holds each pass until it is let go, and keeps their sizes."""

    def __init__(self, *, held: bool = False):
        self.factor, self.sizes = None, []
        self.gate, self.entered = threading.Event(), threading.Event()
        if not held:
            self.gate.set()

    def load(self, arrays):
        self.factor = arrays["factor"]

    def __call__(self, inputs):
        self.entered.set()
        assert self.gate.wait(20), "nobody let the pass go on"
        self.sizes.append(len(inputs["x"]))
        if (inputs["x"] < 0).any():
            raise ValueError("a negative row")
        return {"y": inputs["x"] * self.factor}


def weights(factor, update=1):
    return Weights(weights_version(0, update), {"factor": np.float32(factor)})


def rows(count, first=0.0):
    return {"x": np.arange(count, dtype=np.float32) + np.float32(first)}


def test_before_the_first_weights_callers_are_told_so():
    async def scenario():
        return await JoinedInference(Doubler(), InferenceSettings())(rows(3))

    answer = asyncio.run(scenario())
    assert answer.version == NO_WEIGHTS
    assert answer.outputs is None


def test_what_waits_during_a_pass_is_computed_together_and_each_gets_its_own_rows():
    forward = Doubler(held=True)

    async def scenario():
        inference = JoinedInference(forward, InferenceSettings())
        await inference.load(weights(2))
        asked = [asyncio.create_task(inference(rows(1, 10)))]
        while not forward.entered.is_set():
            await asyncio.sleep(0.001)
        asked += [asyncio.create_task(inference(rows(count, 10 * count))) for count in (2, 3, 4)]
        await asyncio.sleep(0)  # they have asked now
        forward.gate.set()
        return await asyncio.gather(*asked), inference.figures

    answers, figures = asyncio.run(scenario())
    assert forward.sizes == [1, 9]
    assert (figures.passes, figures.requests, figures.rows) == (2, 4, 10)
    for count, answer in zip((1, 2, 3, 4), answers, strict=True):
        assert answer.version == weights_version(0, 1)
        np.testing.assert_array_equal(answer.outputs["y"], 2 * rows(count, 10 * count)["x"])
        answer.outputs["y"][:] = 0  # the caller's own: the others' are not touched, which the next one shows


def test_a_pass_takes_no_more_rows_than_allowed_but_a_large_request_alone():
    forward = Doubler(held=True)

    async def scenario():
        inference = JoinedInference(forward, InferenceSettings(max_rows=5))
        await inference.load(weights(1))
        asked = [asyncio.create_task(inference(rows(count))) for count in (1, 3, 2, 9, 4, 1)]
        await asyncio.sleep(0)  # they have asked now
        forward.gate.set()
        return await asyncio.gather(*asked)

    answers = asyncio.run(scenario())
    assert forward.sizes == [4, 2, 9, 5]
    assert [len(answer.outputs["y"]) for answer in answers] == [1, 3, 2, 9, 4, 1]


def test_older_weights_are_left_out_and_newer_ones_change_what_is_given():
    async def scenario():
        inference = JoinedInference(Doubler(), InferenceSettings())
        found = []
        for factor, update in ((2, 5), (7, 4), (3, 6)):
            await inference.load(weights(factor, update))
            answer = await inference(rows(2, 1))
            found.append((float(answer.outputs["y"][0]), answer.version))
        return found

    assert asyncio.run(scenario()) == [
        (2.0, weights_version(0, 5)),
        (2.0, weights_version(0, 5)),
        (3.0, weights_version(0, 6)),
    ]


def test_a_pass_that_fails_is_told_to_those_who_were_in_it_and_the_next_one_works():
    async def scenario():
        inference = JoinedInference(Doubler(), InferenceSettings())
        await inference.load(weights(2))
        with pytest.raises(ValueError, match="a negative row"):
            await inference({"x": np.array([-1.0], np.float32)})
        return await inference(rows(1, 4))

    assert asyncio.run(scenario()).outputs["y"].tolist() == [8.0]


@pytest.mark.parametrize("inputs", [{}, {"x": np.zeros((0, 3))}, {"x": np.zeros(2), "z": np.zeros(3)}])
def test_inputs_without_one_number_of_rows_are_refused(inputs):
    async def scenario():
        await JoinedInference(Doubler(), InferenceSettings())(inputs)

    with pytest.raises(ValueError, match="same number of rows"):
        asyncio.run(scenario())


@pytest.mark.parametrize("faulty", [{"cpus": -1.0}, {"threads": 0}, {"max_rows": 0}, {"wait_seconds": 2.0}])
def test_settings_that_cannot_be_are_refused(faulty):
    with pytest.raises(ValueError, match=next(iter(faulty))):
        InferenceSettings(**faulty)
