"""Targets of slabs against hand-computed numbers and the definition written out in plain float64 loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from onibi.learners.actor_critic_targets import SlabSteps, gae_targets, vtrace_targets


def steps_of(reward, terminated=None, truncated=None, used=None):
    reward = torch.tensor(reward, dtype=torch.float32)
    none = torch.zeros_like(reward, dtype=torch.uint8)
    return SlabSteps(
        reward=reward,
        terminated=none if terminated is None else torch.tensor(terminated, dtype=torch.uint8),
        truncated=none if truncated is None else torch.tensor(truncated, dtype=torch.uint8),
        used=torch.ones_like(reward) if used is None else torch.tensor(used, dtype=torch.float32),
    )


def vtrace(steps, values, log_ratios, discount=0.5, trace_decay=1.0, rho_bound=1.0, trace_bound=1.0):
    return vtrace_targets(
        steps,
        torch.tensor(values, dtype=torch.float32),
        torch.tensor(log_ratios, dtype=torch.float32),
        discount=discount,
        trace_decay=trace_decay,
        rho_bound=rho_bound,
        trace_bound=trace_bound,
    )


def test_two_steps_on_policy_by_hand():
    # v_1 = 3 + ½·8 = 7, v_0 = 2 + ½·7 = 5.5: on-policy V-trace is the return
    found = vtrace(steps_of([[2.0, 3.0]]), [[1.0, 4.0, 8.0]], [[0.0, 0.0]])
    assert found.values.tolist() == [[5.5, 7.0]]
    assert found.advantages.tolist() == [[4.5, 3.0]]
    assert found.weighted.tolist() == [[4.5, 3.0]]


def test_a_ratio_of_one_half_counts_half_by_hand():
    # ρ = c = ½ in row 0. δ_1 = 3 + 4 − 4 = 3, v_1 = 7. δ_0 = ½ (2 + 2 − 1) = 1.5; v_0 = 1 + 1.5 + ½·½·3 = 3.25
    found = vtrace(steps_of([[2.0, 3.0]]), [[1.0, 4.0, 8.0]], [[np.log(0.5), 0.0]])
    np.testing.assert_allclose(found.values, [[3.25, 7.0]])
    np.testing.assert_allclose(found.advantages, [[2 + 0.5 * 7 - 1, 3.0]])
    np.testing.assert_allclose(found.weighted, [[0.5 * 4.5, 3.0]])


def test_an_end_by_truncation_bootstraps_from_its_final_row_and_by_termination_from_nothing():
    used = [[1, 0, 1]]
    truncated = vtrace(steps_of([[2.0, 0.0, 1.0]], truncated=[[1, 0, 0]], used=used), [[1, 6, 5, 4]], [[0, 0, 0]])
    terminated = vtrace(steps_of([[2.0, 0.0, 1.0]], terminated=[[1, 0, 0]], used=used), [[1, 6, 5, 4]], [[0, 0, 0]])
    assert truncated.values[0, [0, 2]].tolist() == [2 + 0.5 * 6, 1 + 0.5 * 4]
    assert terminated.values[0, [0, 2]].tolist() == [2.0, 3.0]


def test_nothing_infinite_comes_out_of_a_final_row():
    found = vtrace(steps_of([[1.0, 0.0, 1.0]], used=[[1, 0, 1]]), [[0, 0, 0, 0]], [[0.0, 1e9, 0.0]])
    for each in (found.values, found.advantages, found.weighted):
        assert torch.isfinite(each).all()


def written_out(steps, values, log_ratios, discount, trace_decay, rho_bound, trace_bound):
    """v_s = V_s + Σ_{t ≥ s} γ^(t−s) (Π_{s ≤ i < t} c_i) δ_t to the end of the piece, as eq. 1 of the paper has it."""
    reward, used = steps.reward.double().numpy(), steps.used.numpy()
    terminated, truncated = steps.terminated.numpy(), steps.truncated.numpy()
    ratio = np.exp(log_ratios)
    lanes, rows = reward.shape
    targets, advantages = np.zeros((lanes, rows)), np.zeros((lanes, rows))

    def goes_on(lane, row):
        ended = terminated[lane, row] or truncated[lane, row]
        return not ended and row + 1 < rows and used[lane, row + 1]

    for lane in range(lanes):
        for start in range(rows):
            if not used[lane, start]:
                continue
            total, weight, row = values[lane, start], 1.0, start
            while True:
                after = 0.0 if terminated[lane, row] else values[lane, row + 1]
                delta = min(rho_bound, ratio[lane, row]) * (reward[lane, row] + discount * after - values[lane, row])
                total += weight * delta
                if not goes_on(lane, row):
                    break
                weight *= discount * trace_decay * min(trace_bound, ratio[lane, row])
                row += 1
            targets[lane, start] = total
    for lane in range(lanes):
        for row in range(rows):
            after = targets[lane, row + 1] if used[lane, row] and goes_on(lane, row) else values[lane, row + 1]
            after = 0.0 if terminated[lane, row] else after
            advantages[lane, row] = reward[lane, row] + discount * after - values[lane, row]
    return targets, advantages, np.minimum(rho_bound, ratio) * advantages


def layout(seed, lanes=5, rows=17):
    """Random episodes: terminated, truncated, cut without a flag, of length 1, ending with the slab."""
    rng = np.random.default_rng(seed)
    used = rng.random((lanes, rows)) > 0.25
    used[:, 1:] |= ~used[:, :-1]  # no two final rows in a row
    ends = np.zeros_like(used)
    ends[:, :-1] = ~used[:, 1:] & used[:, :-1]
    ends[:, -1] = rng.random(lanes) < 0.3
    kind = rng.integers(3, size=used.shape)
    terminated, truncated = ends & (kind == 0) & used, ends & (kind == 1) & used
    reward = np.where(used, rng.normal(size=used.shape), 0.0)
    steps = steps_of(reward, terminated, truncated, used)
    return steps, rng.normal(size=(lanes, rows + 1)) * 3, rng.normal(size=used.shape) * 0.8


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize(("trace_decay", "rho_bound", "trace_bound"), [(1.0, 1.0, 1.0), (0.9, 2.0, 1.5)])
def test_vtrace_is_its_definition_in_any_layout_of_episodes(seed, trace_decay, rho_bound, trace_bound):
    steps, values, log_ratios = layout(seed)
    options = {
        "discount": 0.93, "trace_decay": trace_decay, "rho_bound": rho_bound, "trace_bound": trace_bound,
    }  # fmt: skip
    found = vtrace(steps, values, log_ratios, **options)
    targets, advantages, weighted = written_out(steps, values, log_ratios, **options)
    mask = steps.used.bool().numpy()
    for ours, theirs in ((found.values, targets), (found.advantages, advantages), (found.weighted, weighted)):
        np.testing.assert_allclose(ours.numpy()[mask], theirs[mask], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("seed", range(10))
def test_gae_is_vtrace_of_the_same_decay_where_the_data_is_on_policy(seed):
    steps, values, log_ratios = layout(seed)
    on_policy = vtrace(steps, values, np.zeros_like(log_ratios), discount=0.93, trace_decay=0.8)
    found = gae_targets(steps, torch.tensor(values, dtype=torch.float32), discount=0.93, trace_decay=0.8)
    mask = steps.used.bool()
    torch.testing.assert_close(found.values[mask], on_policy.values[mask], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.advantages[mask], (found.values - torch.tensor(values[:, :-1]).float())[mask])
