from __future__ import annotations

import numpy as np
import pytest
import torch

from onibi.learners.returns import n_step_return
from onibi.learners.sequence_windows import rows_from, sequence_priority, sequence_windows

HALF = 0.5


def targets(rewards, values, *, n_steps, steps=None, terminated=False, discount=HALF):
    """n-step targets of one sequence: rewards [T], the values of its T + 1 observations."""
    time = len(rewards)
    steps = time if steps is None else steps
    used = torch.arange(time)[:, None] < steps
    continues = torch.ones(time, 1)
    if terminated:
        continues[steps - 1] = 0.0
    windows, discounts, at = sequence_windows(torch.tensor(rewards)[:, None], continues, used, discount, n_steps)
    bootstrap = torch.tensor(values)[:, None].gather(0, at)
    return n_step_return(windows[:, 0], discounts[:, 0], bootstrap[:, 0]).tolist()[:steps]


VALUES = [100.0, 200.0, 400.0, 800.0, 1600.0]


def test_inside_a_sequence_windows_are_whole_and_its_last_ones_reach_to_what_followed_the_last_row():
    assert targets([1.0, 2.0, 4.0, 8.0], VALUES, n_steps=2) == [
        1 + 1 + 100,  # 1 + ½·2 + ¼·400
        2 + 2 + 200,  # 2 + ½·4 + ¼·800
        4 + 4 + 400,  # 4 + ½·8 + ¼·1600
        8 + 800,  # one step is left: 8 + ½·1600
    ]


def test_with_one_step_each_row_bootstraps_from_the_next_observation():
    assert targets([1.0, 2.0, 4.0, 8.0], VALUES, n_steps=1) == [1 + 100, 2 + 200, 4 + 400, 8 + 800]


def test_windows_longer_than_the_sequence_all_end_with_it():
    assert targets([1.0, 2.0, 4.0], VALUES, n_steps=9) == [
        1 + 1 + 1 + 100,  # ⅛·800
        2 + 2 + 200,
        4 + 400,
    ]


def test_nothing_is_taken_from_behind_a_termination():
    assert targets([1.0, 2.0, 4.0], VALUES, n_steps=2, terminated=True) == [1 + 1 + 100, 2 + 2, 4]


def test_a_truncated_episode_bootstraps_from_its_last_observation():
    # Rows 0 and 1, then padding whose numbers must not count: observation 2 is the episode's last.
    assert targets([1.0, 2.0, 777.0, 777.0], VALUES, n_steps=3, steps=2) == [1 + 1 + 100, 2 + 200]
    assert targets([1.0, 2.0, 777.0, 777.0], VALUES, n_steps=1, steps=2) == [1 + 100, 2 + 200]


def test_a_terminated_episode_before_padding_does_not_bootstrap():
    assert targets([1.0, 2.0, 777.0, 777.0], VALUES, n_steps=3, steps=2, terminated=True) == [1 + 1, 2]


def test_a_sequence_of_one_row_is_a_one_step_target():
    assert targets([3.0, 777.0], [5.0, 7.0, 9.0], n_steps=4, steps=1) == [3 + 3.5]
    assert targets([3.0, 777.0], [5.0, 7.0, 9.0], n_steps=4, steps=1, terminated=True) == [3.0]


@pytest.mark.parametrize("seed", range(20))
def test_targets_are_those_of_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    time, batch, n_steps, discount = rng.integers(1, 9), rng.integers(1, 6), int(rng.integers(1, 7)), 0.9
    rewards = rng.normal(size=(time, batch)).astype(np.float32)
    values = rng.normal(size=(time + 1, batch)).astype(np.float32)
    steps = rng.integers(1, time + 1, size=batch)
    terminated = rng.random(batch) < 0.5
    continues = np.ones((time, batch), np.float32)
    continues[steps[terminated] - 1, np.flatnonzero(terminated)] = 0.0
    used = np.arange(time)[:, None] < steps
    windows, discounts, at = sequence_windows(
        torch.from_numpy(rewards), torch.from_numpy(continues), torch.from_numpy(used), discount, n_steps
    )
    bootstrap = torch.from_numpy(values).gather(0, at)
    found = n_step_return(windows.flatten(0, 1), discounts.flatten(0, 1), bootstrap.flatten()).view(time, batch)
    for b in range(batch):
        for t in range(steps[b]):
            end = min(t + n_steps, steps[b])
            total = sum(discount ** (k - t) * float(rewards[k, b]) for k in range(t, end))
            if not (terminated[b] and end == steps[b]):
                total += discount ** (end - t) * float(values[end, b])
            assert found[t, b].item() == pytest.approx(total, abs=1e-5)


def test_windows_of_no_steps_are_refused():
    with pytest.raises(ValueError, match="n_steps is 0"):
        sequence_windows(torch.zeros(2, 1), torch.ones(2, 1), torch.ones(2, 1, dtype=torch.bool), 0.9, 0)


# --- what lies behind the burn-in ---


def test_the_rows_to_learn_from_begin_behind_each_sequences_own_burn_in():
    values = torch.arange(5)[:, None] + torch.tensor([0, 10, 20])  # row t of sequence b is 10 b + t
    found = rows_from(values, torch.tensor([0, 2, 1]), 3)
    assert found.T.tolist() == [[0, 1, 2], [12, 13, 14], [21, 22, 23]]


def test_rows_behind_the_last_repeat_it_and_axes_behind_the_batch_stay():
    values = torch.arange(12).view(3, 2, 2)
    assert rows_from(values, torch.tensor([2, 0]), 2).tolist() == [[[8, 9], [2, 3]], [[8, 9], [6, 7]]]


# --- priorities ---


def test_the_priority_of_a_sequence_is_a_share_of_the_largest_error_and_the_rest_of_the_mean():
    errors = torch.tensor([[1.0, 0.0], [-4.0, 2.0], [1.0, 999.0]])
    learned = torch.tensor([[True, True], [True, True], [True, False]])
    assert sequence_priority(errors, learned, 0.9).tolist() == pytest.approx(
        [0.9 * 4 + 0.1 * 2, 0.9 * 2 + 0.1 * 1]  # the error in padding is not looked at
    )
    assert sequence_priority(errors, learned, 1.0).tolist() == [4.0, 2.0]
    assert sequence_priority(errors, learned, 0.0).tolist() == [2.0, 1.0]


def test_a_sequence_without_rows_has_no_priority_and_shares_lie_between_0_and_1():
    errors, learned = torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.bool)
    assert sequence_priority(errors, learned, 0.9).tolist() == [0.0]
    with pytest.raises(ValueError, match=r"η is 1\.5"):
        sequence_priority(errors, learned, 1.5)
