from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from onibi.learners.fused_adam import FusedAdam


def parameters_of(seed, dtypes=(torch.float32, torch.float32)):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(3, 4), (5,)]
    drawn = (torch.randn(shape, generator=generator).to(kind) for shape, kind in zip(shapes, dtypes, strict=True))
    return [each.requires_grad_() for each in drawn]


def adam_of(parameters, weight_decay=0.0):
    return FusedAdam(parameters, learning_rate=0.01, betas=(0.8, 0.95), epsilon=1e-6, weight_decay=weight_decay)


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), (torch.float32, torch.float64)])
@pytest.mark.parametrize(("weight_decay", "reference"), [(0.0, torch.optim.Adam), (0.1, torch.optim.AdamW)])
def test_steps_and_moments_are_bit_for_bit_torchs_own(weight_decay, reference, dtypes):
    """With two types of numbers, a parameter that gets no gradient at first, and a skipped step between."""
    ours, theirs = parameters_of(1, dtypes), parameters_of(1, dtypes)
    adam = adam_of(ours, weight_decay)
    optimizer = reference(theirs, lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=weight_decay, fused=True)
    for step in range(6):
        skip = torch.tensor(float(step == 3))
        for number, gradient in enumerate(parameters_of(10 + step, dtypes)):
            has_gradient = number == 0 or step > 1
            for each in (ours, theirs):
                each[number].grad = gradient.detach().clone() if has_gradient else None
        before = [each.detach().clone() for each in ours]
        adam.step(skip)
        optimizer.found_inf = skip
        optimizer.step()
        assert all(map(torch.equal, before, ours)) == (step == 3)
    for mine, plain in zip(ours, theirs, strict=True):
        assert torch.equal(mine, plain)
        for name, value in optimizer.state[plain].items():
            assert torch.equal(adam.state[mine][name], value), name
    assert [int(adam.state[each]["step"]) for each in ours] == [5, 3]


def test_the_second_step_by_hand():
    """Gradients of 1 and 3: m̂ = (0.8·0.2·1 + 0.2·3) / (1 − 0.8²), v̂ = (0.95·0.05·1 + 0.05·9) / (1 − 0.95²)."""
    weight = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    adam = adam_of([weight])
    for gradient in (1.0, 3.0):
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        adam.step(torch.zeros(()))
    first = 0.01 * 1.0 / (1.0 + 1e-6)
    second = 0.01 * (0.76 / 0.36) / ((0.4975 / 0.0975) ** 0.5 + 1e-6)
    assert weight.item() == pytest.approx(-(first + second), rel=1e-12)


LEARN = """
import sys
import numpy as np
import torch
from torch import nn
from onibi.learners.acceleration import AccelerationSettings
from onibi.learners.gradient_step import GradientStep
network, plain = nn.Linear(2, 1), AccelerationSettings()
step = GradientStep(network, learning_rate=0.1, adam_epsilon=1e-8, gradient_norm=1.0, acceleration=plain)
assert step.step(network(torch.ones(3, 2)).square().mean()).applied
print([name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""


def test_a_learners_process_loads_no_compiler_that_it_does_not_use():
    told = subprocess.run([sys.executable, "-c", LEARN], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "[]"
