from __future__ import annotations

import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from onibi.learners.acceleration import AccelerationSettings, check_acceleration
from onibi.learners.gradient_step import SKIPS_IN_A_ROW, GradientStep
from onibi.platform.config import read_settings
from onibi.platform.errors import CheckpointError, ConfigError, NonFiniteError, TrainingError

PLAIN = AccelerationSettings()


def network_of(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))


def gradient_of(network, acceleration=PLAIN, gradient_norm=1e9, **others):
    arguments = {"learning_rate": 0.01, "adam_epsilon": 1e-5} | others
    return GradientStep(network, gradient_norm=gradient_norm, acceleration=acceleration, **arguments)


def batches_of(count, rows=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, 3, generator=generator) for _ in range(count)]


def loss_of(network, batch):
    return (network(batch).squeeze(1) - batch.sum(dim=1)).square().mean()


def parameters_of(network):
    return torch.cat([parameter.detach().flatten().clone() for parameter in network.parameters()])


# --- against plain PyTorch, and by hand ---


@pytest.mark.parametrize(
    ("weight_decay", "reference"), [(0.0, torch.optim.Adam), (0.1, torch.optim.AdamW)], ids=["adam", "adamw"]
)
def test_a_step_is_bit_for_bit_that_of_a_plain_loop(weight_decay, reference):
    ours, plain = network_of(), network_of()
    gradient = gradient_of(ours, gradient_norm=0.5, weight_decay=weight_decay)
    optimizer = reference(plain.parameters(), lr=0.01, eps=1e-5, weight_decay=weight_decay, fused=True)
    for batch in batches_of(20):
        result = gradient.step(loss_of(ours, batch))
        optimizer.zero_grad()
        loss_of(plain, batch).backward()
        norm = nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
        assert result.completed
        assert result.applied
        assert result.gradient_norm == norm
    assert torch.equal(parameters_of(ours), parameters_of(plain))
    assert gradient.updates == 20


def test_the_first_step_of_adam_moves_by_the_learning_rate_against_the_gradients_sign():
    weight = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        weight.weight.copy_(torch.tensor([[1.0, -2.0]]))
    gradient_of(weight, learning_rate=0.25, adam_epsilon=1e-12).step((weight.weight * torch.tensor([3.0, -4.0])).sum())
    torch.testing.assert_close(weight.weight.detach(), torch.tensor([[0.75, -1.75]]))


def test_a_gradient_longer_than_allowed_is_shortened_and_its_length_told():
    network = network_of()
    result = gradient_of(network, gradient_norm=1e-3).step(1e3 * loss_of(network, batches_of(1)[0]))
    kept = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
    assert result.gradient_norm > 1.0
    assert kept.norm().item() == pytest.approx(1e-3, rel=1e-3)


# --- what is not finite ---


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_moves_neither_parameters_nor_moments(bad):
    network = network_of()
    gradient = gradient_of(network)
    gradient.step(loss_of(network, batches_of(1)[0]))
    before, moments = parameters_of(network), {name: each.clone() for name, each in gradient.state_dict().items()}
    result = gradient.step(loss_of(network, batches_of(1)[0]) * bad)
    assert not result.applied
    assert not result.finite
    assert torch.equal(before, parameters_of(network))
    after = gradient.state_dict()
    assert all(torch.equal(moments[name], after[name]) for name in after if name.startswith("optimizer."))
    assert (gradient.updates, gradient.skipped_updates, gradient.skips_in_a_row) == (2, 1, 1)


def test_a_gradient_that_is_not_finite_is_skipped_though_the_loss_is():
    network = network_of()
    gradient, before = gradient_of(network), parameters_of(network)
    loss = torch.sqrt((network(batches_of(1)[0]) * 0.0).sum())  # 0, with the slope 1/√0
    assert torch.isfinite(loss)
    assert not gradient.step(loss).applied
    assert torch.equal(before, parameters_of(network))


def test_the_tenth_skip_in_a_row_gives_up_and_a_sound_step_between_begins_the_count_again():
    network = network_of()
    gradient, batch = gradient_of(network), batches_of(1)[0]
    for _ in range(2):
        for _ in range(SKIPS_IN_A_ROW - 1):
            gradient.step(loss_of(network, batch) * math.nan)
        assert gradient.step(loss_of(network, batch)).applied
    for _ in range(SKIPS_IN_A_ROW - 1):
        gradient.step(loss_of(network, batch) * math.nan)
    with pytest.raises(NonFiniteError, match=r"update 30: .* 10 times in a row.*learning_rate"):
        gradient.step(loss_of(network, batch) * math.nan)
    assert issubclass(NonFiniteError, TrainingError)


# --- accumulation ---


def test_accumulated_batches_make_the_step_of_one_batch_that_holds_them_all():
    parts, whole = network_of(), network_of()
    accumulating = gradient_of(parts, AccelerationSettings(accumulation=4), gradient_norm=0.5)
    plain = gradient_of(whole, gradient_norm=0.5)
    norms = []
    for number, batch in enumerate(batches_of(12)):
        result = accumulating.step(loss_of(parts, batch))
        assert result.completed == (number % 4 == 3)
        assert result.applied == result.completed
        norms += [result.gradient_norm] * result.completed
    for four, norm in zip(torch.cat(batches_of(12)).split(32), norms, strict=True):
        torch.testing.assert_close(plain.step(loss_of(whole, four)).gradient_norm, norm)
    assert accumulating.updates == plain.updates == 3
    torch.testing.assert_close(parameters_of(parts), parameters_of(whole))


@pytest.mark.parametrize("spoil", [lambda loss: loss * math.nan, lambda loss: loss + math.inf])  # inf has no gradient
def test_one_batch_that_is_not_finite_spoils_the_step_that_it_is_part_of_and_no_other(spoil):
    network = network_of()
    gradient = gradient_of(network, AccelerationSettings(accumulation=2))
    good, before = batches_of(1)[0], parameters_of(network)
    gradient.step(spoil(loss_of(network, good)))
    assert not gradient.step(loss_of(network, good)).applied
    assert torch.equal(before, parameters_of(network))
    gradient.step(loss_of(network, good))
    assert gradient.step(loss_of(network, good)).applied


# --- state ---


@pytest.mark.parametrize("steps", [0, 3, 4])
def test_a_restored_step_goes_on_bit_for_bit_in_the_midst_of_accumulation_too(steps):
    acceleration, batches = AccelerationSettings(accumulation=2), batches_of(9)
    first, second = network_of(), network_of(1)
    kept = gradient_of(first, acceleration)
    for batch in batches[:steps]:
        kept.step(loss_of(first, batch))
    restored = gradient_of(second, acceleration)
    restored.step(loss_of(second, batches[0]))  # what it had before is gone
    second.load_state_dict(first.state_dict())
    restored.load_state_dict({name: tensor.clone() for name, tensor in kept.state_dict().items()})
    for batch in batches[steps:]:
        for network, gradient in ((first, kept), (second, restored)):
            gradient.step(loss_of(network, batch))
    assert torch.equal(parameters_of(first), parameters_of(second))
    assert kept.updates == restored.updates == 4


@pytest.mark.parametrize("accumulation", [1, 2, 3, 8])
def test_gradients_of_another_accumulation_are_forgotten_at_a_restore(accumulation):
    batches, network, other = batches_of(12), network_of(), network_of()
    kept = gradient_of(network, AccelerationSettings(accumulation=4))
    for batch in batches[:3]:  # no step yet
        kept.step(loss_of(network, batch))
    restored = gradient_of(network, AccelerationSettings(accumulation=accumulation))
    state = {name: tensor.clone() for name, tensor in kept.state_dict().items()}
    if accumulation < 4:
        del state["counters.accumulation"]  # of an older checkpoint; as many batches as make a step, or more
    restored.load_state_dict(state)
    fresh = gradient_of(other, AccelerationSettings(accumulation=accumulation))
    for batch in batches[3:]:
        assert restored.step(loss_of(network, batch)).completed == fresh.step(loss_of(other, batch)).completed
        assert torch.equal(parameters_of(network), parameters_of(other))
    assert restored.updates == fresh.updates == 9 // accumulation


def test_a_state_names_moments_by_parameter_and_counters_by_name():
    network = network_of()
    gradient = gradient_of(network)
    gradient.step(loss_of(network, batches_of(1)[0]))
    state = gradient.state_dict()
    assert {name.split(".")[0] for name in state} == {"optimizer", "counters"}
    assert state["optimizer.exp_avg.0.weight"].shape == (5, 3)
    assert state["optimizer.step.2.bias"] == 1
    assert state["counters.updates"] == 1
    del state["counters.skipped_updates"]
    with pytest.raises(CheckpointError, match=r"lacks the learner's \['counters.skipped_updates'\]"):
        gradient.load_state_dict(state)


def test_parameters_that_take_no_gradient_are_left_alone():
    network = network_of()
    network[0].requires_grad_(requires_grad=False)
    before = network[0].weight.clone()
    gradient = gradient_of(network)
    gradient.step(loss_of(network, batches_of(1)[0]))
    assert torch.equal(before, network[0].weight)
    assert not any(".0.weight" in name for name in gradient.state_dict())


# --- settings ---


def test_bf16_computes_in_bfloat16_within_the_context_and_keeps_parameters_in_float32():
    network, batch = network_of(), batches_of(1)[0]
    gradient = gradient_of(network, AccelerationSettings(precision="bf16"))
    with gradient.autocast():
        features = network(batch)
    assert features.dtype == torch.bfloat16
    with gradient_of(network_of()).autocast():
        assert network(batch).dtype == torch.float32
    gradient.step((features.float().squeeze(1) - batch.sum(dim=1)).square().mean())
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
    assert all(parameter.grad.dtype == torch.float32 for parameter in network.parameters())


def test_graphs_are_refused_without_cuda_and_together_with_accumulation():
    with pytest.raises(ConfigError, match=r"compile is graphs.*cpu.*learner_gpus"):
        gradient_of(network_of(), AccelerationSettings(compile="graphs"))
    with pytest.raises(ConfigError, match=r"accumulation is 2.*one whole step"):
        read_settings(AccelerationSettings, {"compile": "graphs", "accumulation": 2})
    with pytest.raises(ConfigError, match="bf16"):
        read_settings(AccelerationSettings, {"precision": "fp16"})


@pytest.mark.parametrize(("name", "major"), [("Tesla T4", 7), ("NVIDIA A100", 8)])
def test_bf16_is_refused_on_a_gpu_that_would_only_imitate_it(monkeypatch, name, major):
    properties = SimpleNamespace(major=major, name=name)  # what torch's own answer is made of
    for asked, told in {"is_available": True, "current_device": 0, "_check_bf16_tensor_supported": True}.items():
        monkeypatch.setattr(torch.cuda, asked, lambda *_, told=told: told)
    for asked in ("get_device_properties", "get_device_name"):
        monkeypatch.setattr(torch.cuda, asked, lambda *_, asked=asked: name if asked.endswith("name") else properties)
    with nullcontext() if major >= 8 else pytest.raises(ConfigError, match="bf16, which Tesla T4 cannot"):
        check_acceleration(AccelerationSettings(precision="bf16"), torch.device("cuda"))


# --- parameters in one tensor ---


def flat_of(network, **options):
    gradient = gradient_of(network, **options)
    gradient.lay_flat()
    return gradient


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_parameters_that_lie_flat_move_as_others_do(accumulation, weight_decay):
    options = {
        "gradient_norm": 0.5,
        "weight_decay": weight_decay,
        "acceleration": AccelerationSettings(accumulation=accumulation),
    }
    networks = [network_of(), network_of()]
    steps = [gradient_of(networks[0], **options), flat_of(networks[1], **options)]
    for batch in batches_of(20):
        plain, flat = (step.step(loss_of(network, batch)) for step, network in zip(steps, networks, strict=True))
        assert float(flat.gradient_norm) == pytest.approx(float(plain.gradient_norm), rel=1e-5)
    torch.testing.assert_close(*map(parameters_of, networks), rtol=1e-5, atol=1e-6)
    assert steps[0].updates == steps[1].updates == 20 // accumulation


@pytest.mark.parametrize("begins", [gradient_of, flat_of])
@pytest.mark.parametrize("goes_on", [gradient_of, flat_of])
@pytest.mark.parametrize("batches", [0, 5])
def test_a_state_is_the_same_whether_parameters_lie_flat(begins, goes_on, batches):
    options = {"acceleration": AccelerationSettings(accumulation=2)}
    network = network_of()
    gradient = begins(network, **options)
    for batch in batches_of(batches):  # an odd number: a gradient waits for its second batch
        gradient.step(loss_of(network, batch))
    state = {name: tensor.clone() for name, tensor in gradient.state_dict().items()}
    other = network_of(1)
    other.load_state_dict(network.state_dict())
    restored = goes_on(other, **options)
    restored.load_state_dict(state)
    assert {name: tensor.shape for name, tensor in restored.state_dict().items()} == {
        name: tensor.shape for name, tensor in state.items()
    }
    for batch in batches_of(7, seed=1):
        gradient.step(loss_of(network, batch))
        restored.step(loss_of(other, batch))
    torch.testing.assert_close(parameters_of(network), parameters_of(other), rtol=1e-5, atol=1e-6)
    if begins is goes_on:
        assert torch.equal(parameters_of(network), parameters_of(other))


def test_gradients_that_were_written_make_the_step_that_autograd_makes():
    networks = [network_of(), network_of()]
    plain, flat = gradient_of(networks[0]), flat_of(networks[1])
    for batch in batches_of(6):
        plain.step(loss_of(networks[0], batch))
        found = torch.autograd.grad(loss := loss_of(networks[1], batch), list(networks[1].parameters()))
        for parameter, gradient in zip(networks[1].parameters(), found, strict=True):
            parameter.grad.copy_(gradient)
        assert flat.step_by(loss.detach()).applied
    torch.testing.assert_close(*map(parameters_of, networks), rtol=1e-5, atol=1e-6)


def test_a_bad_step_leaves_flat_parameters_as_they_were_and_the_next_one_moves_them():
    network = network_of()
    gradient = flat_of(network)
    before = parameters_of(network)
    assert not gradient.step(loss_of(network, batches_of(1)[0] * math.nan)).applied
    assert torch.equal(parameters_of(network), before)
    assert gradient.step(loss_of(network, batches_of(1)[0])).applied
    assert not torch.equal(parameters_of(network), before)
