from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from onibi.learners.action_distributions import categorical, diagonal_gaussian
from onibi.learners.action_sampling import (
    likeliest_categorical,
    likeliest_gaussian,
    mask_logits,
    sample_categorical,
    sample_gaussian,
)

LOGITS = np.array([[0.0, np.log(3.0)], [2.0, -1.0], [-40.0, 40.0]], np.float32)
MASK = np.array([[1, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]], np.uint8)


# --- torch ---


def test_log_probabilities_and_entropy_of_two_logits_by_hand():
    policy = categorical(torch.from_numpy(LOGITS[:1]), None)
    # π = (1, 3)/4
    assert policy.log_prob(torch.tensor([1])).item() == pytest.approx(np.log(0.75))
    assert policy.entropy().item() == pytest.approx(-0.25 * np.log(0.25) - 0.75 * np.log(0.75))
    assert policy.mode().tolist() == [1]


def test_a_categorical_is_that_of_torch_distributions():
    logits = torch.randn(7, 3, 5, generator=torch.Generator().manual_seed(0)) * 3
    ours, theirs = categorical(logits, None), torch.distributions.Categorical(logits=logits)
    actions = theirs.sample()
    torch.testing.assert_close(ours.log_prob(actions), theirs.log_prob(actions))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    assert torch.equal(ours.mode(), logits.argmax(-1))


def test_a_masked_action_has_no_probability_no_gradient_and_no_entropy():
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    policy = categorical(logits, torch.from_numpy(MASK))
    assert policy.log_probs.exp()[0, 1] == 0.0
    kept = torch.distributions.Categorical(logits=logits[0, [0, 2, 3]])
    torch.testing.assert_close(policy.entropy()[0], kept.entropy())
    torch.testing.assert_close(policy.log_probs[0, [0, 2, 3]], kept.logits)
    assert policy.entropy()[1].item() == 0.0  # one action left
    assert torch.isfinite(policy.entropy()[2])  # none left: all count
    torch.testing.assert_close(policy.log_probs[2], torch.log_softmax(logits[2], 0))
    (policy.entropy()[:2].sum() + policy.log_prob(torch.tensor([0, 3, 0]))[:2].sum()).backward()
    assert logits.grad[0, 1] == 0.0
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 0] != 0.0


def test_a_gaussian_is_that_of_scipy():
    mean, log_std = torch.tensor([[0.5, -1.0], [3.0, 0.0]]), torch.tensor([0.3, -2.0])
    action = torch.tensor([[0.0, -1.1], [3.5, 0.2]])
    policy = diagonal_gaussian(mean, log_std)
    std = np.exp(log_std.double().numpy())
    expected = stats.norm.logpdf(action.double().numpy(), mean.double().numpy(), std).sum(axis=1)
    np.testing.assert_allclose(policy.log_prob(action).numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(policy.entropy().numpy(), [stats.norm.entropy(scale=std).sum()] * 2, rtol=1e-6)
    assert torch.equal(policy.mode(), mean)


def test_a_deviation_beyond_its_bounds_is_held_there():
    policy = diagonal_gaussian(torch.zeros(1, 2), torch.tensor([-9.0, 9.0]))
    assert policy.log_std.tolist() == [-5.0, 2.0]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_deviation_beyond_its_bounds_moves_back_and_no_further_away(sign):
    log_std = torch.tensor([-5.01, -5.0, 0.3, 2.0, 2.01], requires_grad=True)
    (sign * diagonal_gaussian(torch.zeros(1, 5), log_std).entropy()).sum().backward()
    # Descent on +entropy makes deviations smaller, on −entropy larger.
    assert log_std.grad.tolist() == ([0.0, 1.0, 1.0, 1.0, 1.0] if sign > 0 else [-1.0, -1.0, -1.0, -1.0, 0.0])


# --- NumPy against torch ---


def test_sampled_actions_bring_the_log_probabilities_of_torch():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(500, 6), scale=4).astype(np.float32)
    actions, log_probs = sample_categorical(logits.copy(), rng)
    policy = categorical(torch.from_numpy(logits), None)
    np.testing.assert_allclose(log_probs, policy.log_prob(torch.from_numpy(actions)).numpy(), rtol=1e-5, atol=1e-5)
    assert actions.dtype == np.int64
    assert log_probs.dtype == np.float32
    actions, log_probs = likeliest_categorical(logits.copy())
    assert actions.tolist() == policy.mode().tolist()
    np.testing.assert_allclose(log_probs, policy.log_prob(policy.mode()).numpy(), rtol=1e-5, atol=1e-5)


def test_masked_numpy_logits_are_the_masked_distribution_of_torch():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(300, 4)).astype(np.float32)
    mask = rng.integers(2, size=(300, 4)).astype(np.uint8)
    assert (mask.sum(axis=1) == 0).any()
    masked = logits.copy()
    mask_logits(masked, mask)
    actions, log_probs = sample_categorical(masked, rng)
    policy = categorical(torch.from_numpy(logits), torch.from_numpy(mask))
    np.testing.assert_allclose(log_probs, policy.log_prob(torch.from_numpy(actions)).numpy(), rtol=1e-5, atol=1e-5)
    some = mask.any(axis=1)
    assert (mask[some, actions[some]] == 1).all()


def test_samples_come_with_their_probabilities():
    logits = np.array([0.0, np.log(2.0), -np.inf, np.log(5.0)], np.float32)
    counts = np.zeros(4)
    rng = np.random.default_rng(3)
    for _ in range(20):
        actions, _ = sample_categorical(np.tile(logits, (2_000, 1)), rng)
        counts += np.bincount(actions, minlength=4)
    assert counts[2] == 0
    expected = np.array([1, 2, 5]) / 8 * counts.sum()
    assert stats.chisquare(counts[[0, 1, 3]], expected).pvalue > 1e-3


def test_the_largest_number_below_one_does_not_reach_behind_the_last_possible_action():
    class Highest:
        def random(self, size, dtype):
            return np.full(size, np.nextafter(np.float32(1), np.float32(0)), dtype)

    for scale in (1e-3, 0.3, 1.0, 7.0):
        logits = np.random.default_rng(0).normal(size=(4_000, 5), scale=scale).astype(np.float32)
        logits[:, 4] = -np.inf
        actions, log_probs = sample_categorical(logits, Highest())
        assert set(actions.tolist()) <= {0, 1, 2, 3}
        assert np.isfinite(log_probs).all()


def test_gaussian_samples_bring_the_densities_of_torch_and_have_its_moments():
    rng = np.random.default_rng(0)
    mean = np.tile(np.array([1.0, -2.0], np.float32), (20_000, 1))
    log_std = np.array([-0.5, 0.4], np.float32)
    actions, log_probs = sample_gaussian(mean, log_std, rng)
    policy = diagonal_gaussian(torch.from_numpy(mean), torch.from_numpy(log_std))
    np.testing.assert_allclose(log_probs, policy.log_prob(torch.from_numpy(actions)).numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(actions.mean(axis=0), mean[0], atol=0.05)
    np.testing.assert_allclose(actions.std(axis=0), np.exp(log_std), rtol=0.03)
    assert actions.dtype == log_probs.dtype == np.float32
    best, at_best = likeliest_gaussian(mean[:3], log_std)
    assert np.array_equal(best, mean[:3])
    np.testing.assert_allclose(at_best, policy.log_prob(torch.from_numpy(mean))[:3].numpy(), rtol=1e-5)


def test_sampling_takes_one_call_of_the_generator_whatever_the_logits_are():
    one, two = np.random.default_rng(5), np.random.default_rng(5)
    sample_categorical(np.zeros((8, 3), np.float32), one)
    sample_categorical(np.tile(np.float32([9, -9, 0]), (8, 1)), two)
    assert one.random() == two.random()
