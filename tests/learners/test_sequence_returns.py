"""λ-returns, GAE, V-trace and Retrace: by hand, against plain loops, and by their properties."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onibi.learners.off_policy_returns import retrace_returns, vtrace_returns
from onibi.learners.returns import (
    backward_sum,
    generalized_advantages,
    lambda_returns,
    n_step_return,
    sequence_discounts,
    sequence_traces,
)

GAMMA = 0.9


class Sequence:
    """A drawn sequence in float64: episodes end within it by termination, truncation or padding."""

    def __init__(self, seed, T, B, ends=0.5):
        rng = np.random.default_rng(seed)
        end = rng.random((T, B)) < ends
        self.terminated = end & (rng.random((T, B)) < 0.5)
        self.truncated = end & ~self.terminated
        self.valid = rng.random((T, B)) > 0.15
        self.rewards, self.values, self.next_values, self.taken_values, self.log_ratios = rng.normal(size=(5, T, B))
        for row, lane in np.argwhere(self.followed()):  # within an episode the next value is the next row's
            self.next_values[row, lane] = self.values[row + 1, lane]
        self.T, self.B = T, B

    def followed(self):
        """[T, B]: the plain reading of the flags, one row at a time."""
        T, B = self.valid.shape
        followed = np.zeros((T, B), bool)
        for row, lane in itertools.product(range(T - 1), range(B)):
            ended = self.terminated[row, lane] or self.truncated[row, lane]
            followed[row, lane] = self.valid[row, lane] and self.valid[row + 1, lane] and not ended
        return followed

    def tensors(self, *names):
        return {name: torch.tensor(getattr(self, name)) for name in names}

    def factors(self):
        flags = self.tensors("terminated", "truncated", "valid")
        return {
            "discounts": sequence_discounts(flags["terminated"], flags["valid"], GAMMA).double(),
            "traces": sequence_traces(**flags).double(),
        }

    def discount(self, row, lane):
        return 0.0 if self.terminated[row, lane] else np.float64(np.float32(GAMMA))

    def walk(self, one_row):
        """[T, B]: ``one_row(row, lane, behind)`` backwards over valid rows; ``behind`` is None at an episode's end."""
        found, followed = np.zeros((self.T, self.B)), self.followed()
        for lane in range(self.B):
            for row in reversed(range(self.T)):
                if self.valid[row, lane]:
                    found[row, lane] = one_row(row, lane, found[row + 1, lane] if followed[row, lane] else None)
        return found


def lambda_of(sequence, decay):
    return lambda_returns(**sequence.tensors("rewards", "next_values"), **sequence.factors(), trace_decay=decay)


def advantages_of(sequence, decay):
    given_values = sequence.tensors("rewards", "values", "next_values")
    return generalized_advantages(**given_values, **sequence.factors(), trace_decay=decay)


def vtrace_of(sequence, decay, rho_bound=1.0, trace_bound=1.0, **changed):
    given_values = sequence.tensors("rewards", "values", "next_values", "log_ratios") | changed
    bounds = {"rho_bound": rho_bound, "trace_bound": trace_bound}
    return vtrace_returns(**given_values, **sequence.factors(), trace_decay=decay, **bounds)


def retrace_of(sequence, decay, **changed):
    given_values = sequence.tensors("rewards", "taken_values", "next_values", "log_ratios") | changed
    return retrace_returns(**given_values, **sequence.factors(), trace_decay=decay)


# --- by hand ---


def column(*values):
    return torch.tensor(values)[:, None]


def test_flags_become_discounts_and_traces():
    terminated, truncated = column(False, True, False, False, False), column(False, False, False, True, False)
    valid = column(True, True, False, True, True)
    assert sequence_discounts(terminated, valid, 0.5)[:, 0].tolist() == [0.5, 0.0, 0.0, 0.5, 0.5]
    assert sequence_traces(terminated, truncated, valid)[:, 0].tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_a_row_before_padding_bootstraps_as_the_end_of_the_sequence_does():
    nothing, valid = column(False, False, False), column(True, True, False)
    assert sequence_traces(nothing, nothing, valid)[:, 0].tolist() == [1.0, 0.0, 0.0]
    assert sequence_discounts(nothing, valid, 0.5)[:, 0].tolist() == [0.5, 0.5, 0.0]


def test_two_steps_of_each_return_add_up_as_by_hand():
    rewards, values, next_values = column(1.0, 2.0), column(3.0, 4.0), column(4.0, 8.0)
    discounts, traces = column(0.5, 0.5), column(1.0, 0.0)
    path = {"rewards": rewards, "discounts": discounts, "traces": traces, "next_values": next_values}
    # G₂ = 2 + ½·8 = 6; G₁ = 1 + ½(½·4 + ½·6) = 3.5
    assert lambda_returns(**path, trace_decay=0.5)[:, 0].tolist() == [3.5, 6.0]
    # δ = (1 + 2 − 3, 2 + 4 − 4) = (0, 2); A₁ = 0 + ½·½·2
    assert generalized_advantages(**path, values=values, trace_decay=0.5)[:, 0].tolist() == [0.5, 2.0]
    # ratios ½ and 4, cut at 1: δ = (½·0, 1·2); v₂ = 4 + 2; v₁ = 3 + 0 + ½·½·2; A₁ = ½(1 + ½·6 − 3), A₂ = 1·(2 + 4 − 4)
    ratios = column(0.5, 4.0).log()
    bounds = {"trace_decay": 1.0, "rho_bound": 1.0, "trace_bound": 1.0}
    vtrace = vtrace_returns(**path, values=values, log_ratios=ratios, **bounds)
    assert vtrace.values[:, 0].tolist() == [3.5, 6.0]
    assert vtrace.weighted_advantages[:, 0].tolist() == [0.5, 2.0]
    assert vtrace.clipped[:, 0].tolist() == [0.0, 1.0]
    # c₂ = ½·min(1, 4); G₂ = 2 + ½·8 = 6; G₁ = 1 + ½(4 + ½(6 − 10))
    taken = column(7.0, 10.0)
    assert retrace_returns(**path, taken_values=taken, log_ratios=ratios, trace_decay=0.5)[:, 0].tolist() == [2.0, 6.0]


def test_a_ratio_of_zero_cuts_the_trace_and_of_infinity_is_bounded():
    path = {"rewards": column(1.0, 2.0), "discounts": column(0.5, 0.5), "traces": column(1.0, 0.0)}
    path |= {"next_values": column(4.0, 8.0), "log_ratios": column(torch.inf, -torch.inf)}
    retrace = retrace_returns(**path, taken_values=column(7.0, 10.0), trace_decay=1.0)
    assert retrace[:, 0].tolist() == [3.0, 6.0]  # 1 + ½·4; the first step's ratio is not asked for
    vtrace = vtrace_returns(**path, values=column(3.0, 4.0), trace_decay=1.0, rho_bound=2.0, trace_bound=1.0)
    assert vtrace.values[:, 0].tolist() == [3.0, 4.0]  # 3 + 2·(1 + 2 − 3) + ½·1·0
    assert vtrace.weighted_advantages[:, 0].tolist() == [0.0, 0.0]


# --- against plain loops ---

SEEDS = pytest.mark.parametrize("seed", range(6))


def lambda_loop(sequence, decay):
    def one_row(row, lane, behind):
        bootstrap = sequence.next_values[row, lane]
        mixed = bootstrap if behind is None else (1 - decay) * bootstrap + decay * behind
        return sequence.rewards[row, lane] + sequence.discount(row, lane) * mixed

    return sequence.walk(one_row)


def assert_equal_where_valid(sequence, found, expected):
    assert sequence.valid.sum() > 5
    np.testing.assert_allclose(found.numpy()[sequence.valid], expected[sequence.valid], rtol=1e-10, atol=1e-10)


@SEEDS
def test_lambda_returns_are_those_of_a_loop(seed):
    sequence = Sequence(seed, T=9, B=4, ends=0.3)
    assert_equal_where_valid(sequence, lambda_of(sequence, 0.8), lambda_loop(sequence, 0.8))


@SEEDS
def test_generalized_advantages_are_those_of_a_loop(seed):
    sequence = Sequence(seed, T=9, B=4, ends=0.3)

    def one_row(row, lane, behind):
        discount = sequence.discount(row, lane)
        delta = sequence.rewards[row, lane] + discount * sequence.next_values[row, lane] - sequence.values[row, lane]
        return delta + discount * 0.8 * (0.0 if behind is None else behind)

    assert_equal_where_valid(sequence, advantages_of(sequence, 0.8), sequence.walk(one_row))


@SEEDS
def test_vtrace_is_the_papers_sum_over_later_td_errors(seed):
    sequence, rho_bound, trace_bound, decay = Sequence(seed, T=9, B=4, ends=0.3), 1.5, 1.1, 0.8
    ratio, followed = np.exp(sequence.log_ratios), sequence.followed()
    expected, advantages = np.zeros((9, 4)), np.zeros((9, 4))

    def delta(row, lane):
        bootstrap = sequence.discount(row, lane) * sequence.next_values[row, lane]
        error = sequence.rewards[row, lane] + bootstrap - sequence.values[row, lane]
        return min(rho_bound, ratio[row, lane]) * error

    def target(start, lane):
        total, factor, row = sequence.values[start, lane], 1.0, start
        while True:
            total += factor * delta(row, lane)
            if not followed[row, lane]:
                return total
            factor *= sequence.discount(row, lane) * decay * min(trace_bound, ratio[row, lane])
            row += 1

    for row, lane in np.argwhere(sequence.valid):
        expected[row, lane] = target(row, lane)
        behind = target(row + 1, lane) if followed[row, lane] else sequence.next_values[row, lane]
        error = sequence.rewards[row, lane] + sequence.discount(row, lane) * behind - sequence.values[row, lane]
        advantages[row, lane] = min(rho_bound, ratio[row, lane]) * error
    found = vtrace_of(sequence, decay, rho_bound, trace_bound)
    assert_equal_where_valid(sequence, found.values, expected)
    assert_equal_where_valid(sequence, found.weighted_advantages, advantages)
    assert found.clipped.bool().numpy().tolist() == (ratio > rho_bound).tolist()


@SEEDS
def test_retrace_is_the_papers_sum_over_later_td_errors(seed):
    sequence, decay = Sequence(seed, T=9, B=4, ends=0.3), 0.8
    ratio, followed, expected = np.exp(sequence.log_ratios), sequence.followed(), np.zeros((9, 4))
    for start, lane in np.argwhere(sequence.valid):
        total, factor, row = sequence.taken_values[start, lane], 1.0, start
        while True:
            bootstrap = sequence.discount(row, lane) * sequence.next_values[row, lane]
            total += factor * (sequence.rewards[row, lane] + bootstrap - sequence.taken_values[row, lane])
            if not followed[row, lane]:
                break
            factor *= sequence.discount(row, lane) * decay * min(1.0, ratio[row + 1, lane])
            row += 1
        expected[start, lane] = total
    assert_equal_where_valid(sequence, retrace_of(sequence, decay), expected)


# --- properties ---

SEQUENCES = st.builds(
    Sequence, st.integers(0, 2**32 - 1), T=st.integers(1, 8), B=st.integers(1, 3), ends=st.floats(0, 1)
)
DECAYS = st.floats(0, 1)
drawn = settings(deadline=None, max_examples=60)


def same(found, expected, sequence):
    mask = torch.tensor(sequence.valid)
    torch.testing.assert_close(found[mask], torch.as_tensor(expected)[mask], rtol=1e-9, atol=1e-9)


@drawn
@given(sequence=SEQUENCES)
def test_without_decay_each_return_is_the_one_step_return(sequence):
    factors, own = sequence.factors(), sequence.tensors("rewards", "values", "next_values", "log_ratios")
    one_step = own["rewards"] + factors["discounts"] * own["next_values"]
    same(lambda_of(sequence, 0.0), one_step, sequence)
    same(advantages_of(sequence, 0.0), one_step - own["values"], sequence)
    same(retrace_of(sequence, 0.0), one_step, sequence)
    rho = own["log_ratios"].exp().clamp(max=1.0)
    same(vtrace_of(sequence, 0.0).values, own["values"] + rho * (one_step - own["values"]), sequence)


@drawn
@given(sequence=SEQUENCES)
def test_with_full_decay_the_lambda_return_is_the_n_step_return_to_the_end(sequence):
    found, followed = lambda_of(sequence, 1.0), sequence.followed()
    discounts = sequence.factors()["discounts"].numpy()
    for start, lane in np.argwhere(sequence.valid):
        last = start
        while followed[last, lane]:
            last += 1
        rows = slice(start, last + 1)
        rewards, gammas = torch.tensor(sequence.rewards[None, rows, lane]), torch.tensor(discounts[None, rows, lane])
        expected = n_step_return(rewards, gammas, torch.tensor(sequence.next_values[None, last, lane]))
        assert found[start, lane].item() == pytest.approx(expected.item(), abs=1e-9)


@drawn
@given(sequence=SEQUENCES, decay=DECAYS)
def test_an_advantage_plus_its_value_is_the_lambda_return(sequence, decay):
    values = torch.tensor(sequence.values)
    same(advantages_of(sequence, decay) + values, lambda_of(sequence, decay), sequence)


@drawn
@given(sequence=SEQUENCES, decay=DECAYS)
def test_on_policy_vtrace_is_the_lambda_return_and_at_full_decay_the_n_step_return(sequence, decay):
    on_policy = {"log_ratios": torch.zeros(sequence.T, sequence.B, dtype=torch.float64)}
    same(vtrace_of(sequence, decay, **on_policy).values, lambda_of(sequence, decay), sequence)
    full = vtrace_of(sequence, 1.0, **on_policy)
    same(full.weighted_advantages, full.values - torch.tensor(sequence.values), sequence)


@drawn
@given(sequence=SEQUENCES, decay=DECAYS)
def test_on_policy_retrace_of_values_that_no_action_changes_is_the_lambda_return(sequence, decay):
    changed = {"log_ratios": torch.zeros(sequence.T, sequence.B, dtype=torch.float64)}
    found = retrace_of(sequence, decay, taken_values=torch.tensor(sequence.values), **changed)
    same(found, lambda_of(sequence, decay), sequence)


@drawn
@given(sequence=SEQUENCES, decay=DECAYS)
def test_retrace_cuts_as_if_on_policy_wherever_the_learnt_policy_acts_so_more_often(sequence, decay):
    more = {"log_ratios": torch.tensor(np.abs(sequence.log_ratios))}
    equal = {"log_ratios": torch.zeros(sequence.T, sequence.B, dtype=torch.float64)}
    same(retrace_of(sequence, decay, **more), retrace_of(sequence, decay, **equal), sequence)


def every_return(sequence, decay):
    on_policy = {"log_ratios": torch.zeros(sequence.T, sequence.B, dtype=torch.float64)}
    yield lambda_of(sequence, decay)
    yield advantages_of(sequence, decay) + torch.tensor(sequence.values)
    yield vtrace_of(sequence, decay, **on_policy).values
    yield retrace_of(sequence, decay)


@drawn
@given(sequence=SEQUENCES, decay=DECAYS)
def test_where_every_step_terminates_each_return_is_the_reward(sequence, decay):
    sequence.terminated[:], sequence.truncated[:] = True, False
    for found in every_return(sequence, decay):
        same(found, sequence.rewards, sequence)


@drawn
@given(sequence=SEQUENCES, decay=DECAYS)
def test_where_every_step_truncates_each_return_bootstraps_from_the_value_after_it(sequence, decay):
    sequence.terminated[:], sequence.truncated[:] = False, True
    expected = sequence.rewards + np.float64(np.float32(GAMMA)) * sequence.next_values
    for found in every_return(sequence, decay):
        same(found, expected, sequence)


@drawn
@given(sequence=SEQUENCES, decay=DECAYS)
def test_without_a_discount_each_return_is_the_reward(sequence, decay):
    own = sequence.tensors("rewards", "values", "next_values", "taken_values", "log_ratios")
    path = {name: own[name] for name in ("rewards", "next_values")} | sequence.factors()
    path["discounts"] = torch.zeros(sequence.T, sequence.B)
    same(lambda_returns(**path, trace_decay=decay), own["rewards"], sequence)
    advantages = generalized_advantages(**path, values=own["values"], trace_decay=decay)
    same(advantages, own["rewards"] - own["values"], sequence)
    rest = {name: own[name] for name in ("taken_values", "log_ratios")}
    same(retrace_returns(**path, **rest, trace_decay=decay), own["rewards"], sequence)


@drawn
@given(sequence=SEQUENCES, decay=DECAYS, noise=st.floats(-100, 100))
def test_rows_that_are_padding_change_no_other_row(sequence, decay, noise):
    before = [found[torch.tensor(sequence.valid)] for found in every_return(sequence, decay)]
    for name in ("rewards", "values", "next_values", "taken_values", "log_ratios"):
        getattr(sequence, name)[~sequence.valid] = noise
    sequence.terminated[~sequence.valid] = noise > 0
    after = [found[torch.tensor(sequence.valid)] for found in every_return(sequence, decay)]
    for first, second in zip(before, after, strict=True):
        assert torch.equal(first, second)


# --- gradients and refusals ---


def test_gradients_flow_through_lambda_returns_and_stop_in_the_others():
    sequence = Sequence(0, T=4, B=2, ends=0.0)
    names = ("rewards", "values", "next_values", "taken_values", "log_ratios")
    own = {name: tensor.requires_grad_() for name, tensor in sequence.tensors(*names).items()}
    path = sequence.factors() | {"rewards": own["rewards"], "next_values": own["next_values"]}
    values, ratios = {"values": own["values"]}, {"log_ratios": own["log_ratios"]}
    assert not generalized_advantages(**path, **values, trace_decay=0.9).requires_grad
    vtrace = vtrace_returns(**path, **values, **ratios, trace_decay=1.0, rho_bound=1.0, trace_bound=1.0)
    assert not vtrace.values.requires_grad
    assert not vtrace.advantages.requires_grad
    assert not retrace_returns(**path, taken_values=own["taken_values"], **ratios, trace_decay=0.9).requires_grad
    flowing = lambda_returns(**path, trace_decay=0.5)
    assert torch.autograd.gradcheck(
        lambda v: lambda_returns(**(path | {"next_values": v}), trace_decay=0.5), (own["next_values"],)
    )
    flowing[0].sum().backward()
    assert (own["next_values"].grad != 0).any()


@pytest.mark.parametrize("name", ["rewards", "discounts", "traces", "values", "next_values", "log_ratios"])
def test_shapes_that_would_broadcast_are_refused_by_name(name):
    shapes = dict.fromkeys(("rewards", "discounts", "traces", "values", "next_values", "log_ratios"), (3, 2))
    tensors = {key: torch.zeros(shape) for key, shape in shapes.items()} | {name: torch.zeros(1, 2)}
    with pytest.raises(ValueError, match=rf"{name} has T = 1|has T = 3 .*{name} has 1"):
        vtrace_returns(**tensors, trace_decay=1.0, rho_bound=1.0, trace_bound=1.0)
    tensors["taken_values"] = tensors["values"]
    named = "taken_values" if name == "values" else name
    del tensors["values"]
    with pytest.raises(ValueError, match=rf"{named} has T = 1|has T = 3 .*{named} has 1"):
        retrace_returns(**tensors, trace_decay=1.0)


def test_numbers_outside_of_their_range_are_refused():
    zeros = dict.fromkeys(("rewards", "discounts", "traces", "next_values"), torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"λ is 1\.5, allowed are 0 to 1"):
        lambda_returns(**zeros, trace_decay=1.5)
    more = {"values": torch.zeros(2, 1), "log_ratios": torch.zeros(2, 1)}
    with pytest.raises(ValueError, match="both must be above 0"):
        vtrace_returns(**zeros, **more, trace_decay=1.0, rho_bound=0.0, trace_bound=1.0)
    with pytest.raises(ValueError, match="T = 0"):
        backward_sum(torch.zeros(0, 1), torch.zeros(0, 1))
