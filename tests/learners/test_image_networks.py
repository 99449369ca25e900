from __future__ import annotations

import numpy as np
import pytest
import torch

from onibi.learners.networks.build import NETWORKS, build_encoder, build_q_network
from onibi.learners.networks.cnn import CnnSettings
from onibi.learners.networks.resnet import ResidualBlock, ResnetSettings
from onibi.learners.value_losses import ValueHead
from onibi.platform.errors import SpecError
from onibi.platform.spec import ArraySpec

ATARI = (ArraySpec(name="observation", dtype="uint8", shape=(4, 84, 84)),)
MSE = ValueHead("mse", None, 0.0, 1.0)


def pixels_of(shape, rows=3):
    generator = torch.Generator().manual_seed(0)
    return {"observation": torch.randint(1, 128, (rows, *shape), dtype=torch.uint8, generator=generator)}


def convolution(before, after):
    return 9 * before * after + after


def test_the_resnet_has_the_layers_of_the_paper():
    encoder = build_encoder(ResnetSettings(layer_norm=False), ATARI)
    convolutions = [each for each in encoder.modules() if isinstance(each, torch.nn.Conv2d)]
    assert len(convolutions) == 15
    sections = [convolution(4, 16) + 4 * convolution(16, 16), convolution(16, 32) + 4 * convolution(32, 32)]
    sections.append(convolution(32, 32) + 4 * convolution(32, 32))
    linear = 32 * 11 * 11 * 256 + 256  # 84 → 42 → 21 → 11
    assert sum(parameter.numel() for parameter in encoder.parameters()) == sum(sections) + linear
    assert encoder(pixels_of((4, 84, 84))).shape == (3, 256)


def test_width_multiplies_the_channels():
    encoder = build_encoder(ResnetSettings(width=2, channels=(8, 16)), ATARI)
    convolutions = [each for each in encoder.modules() if isinstance(each, torch.nn.Conv2d)]
    assert [each.out_channels for each in convolutions] == [16] * 5 + [32] * 5


def test_a_residual_block_adds_to_what_it_was_given():
    block = ResidualBlock(3, layer_norm=False)
    planes = torch.randn(2, 3, 5, 5)
    first, second = block.convolutions
    expected = planes + second(torch.relu(first(torch.relu(planes))))
    torch.testing.assert_close(block(planes), expected)
    torch.nn.init.zeros_(second.weight)
    torch.nn.init.zeros_(second.bias)
    assert torch.equal(block(planes), planes)


@pytest.mark.parametrize("settings", [CnnSettings, ResnetSettings])
def test_layer_norm_makes_convolutions_blind_to_brightness(settings):
    """Without biases a doubled image doubles each convolution, which LayerNorm takes away."""
    seen = pixels_of((4, 84, 84))
    doubled = {"observation": seen["observation"] * 2}
    apart = []
    for norm in (True, False):
        encoder = build_encoder(settings(convolution_layer_norm=norm, layer_norm=False, hidden=(16,)), ATARI)
        for module in encoder.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.normal_(module.weight, std=0.3)
                torch.nn.init.zeros_(module.bias)
        features = encoder.towers[0](seen["observation"].float()), encoder.towers[0](doubled["observation"].float())
        assert features[0].abs().max() > 0
        apart.append(((features[1] - features[0]).norm() / features[0].norm()).item())
    assert apart[0] < 0.01 if settings is CnnSettings else apart[0] < 0.05
    assert apart[1] == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("settings", [CnnSettings, ResnetSettings])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("name", ["image", "grid"])
def test_every_parameter_takes_part(specs, make_observation, settings, norm, name):
    spec = specs[name]
    network = build_q_network(settings(convolution_layer_norm=norm), spec, MSE, dueling=True, seed=1)
    with torch.no_grad():
        for parameter in network.head.parameters():
            parameter.normal_()
    rows = make_observation(spec, 32, np.random.default_rng(0))
    network({key: torch.from_numpy(values) for key, values in rows.items()})[:, 0].square().sum().backward()
    silent = [
        key for key, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert not silent


def test_the_resnet_is_chosen_by_its_name_and_refuses_what_is_no_image(specs):
    assert NETWORKS["resnet"].endswith(":ResnetEncoder")
    with pytest.raises(SpecError, match=r"kind=resnet reads uint8 images.*observation float32 \[4\]"):
        build_encoder(ResnetSettings(), specs["flat"].observation)
