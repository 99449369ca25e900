from __future__ import annotations

import numpy as np
import pytest
import torch

from onibi.learners.networks.build import (
    NETWORKS,
    AutoNetworkSettings,
    build_encoder,
    build_q_network,
    encoder_settings,
)
from onibi.learners.networks.cnn import CnnSettings
from onibi.learners.networks.resnet import ResidualBlock, ResnetSettings
from onibi.learners.value_losses import ValueHead
from onibi.platform.errors import SpecError
from onibi.platform.replay.samplers.frame_stack import FrameStack
from onibi.platform.spec import ArraySpec, ReplaySpec

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


# --- frame stacks ---


def stacked(shape, frames, dtype="uint8"):
    """The leaf as networks see it under ``frame_stack.frames``."""
    spec = ReplaySpec(observation=(ArraySpec(name="observation", dtype=dtype, shape=shape),), actions=3)
    return FrameStack(frames=frames, leaves=("observation",)).seen(spec).observation


def read_by_the_tower(leaves, pixels):
    """What its convolutions get: [B, channels, height, width]."""
    encoder, seen = build_encoder(CnnSettings(), leaves), []
    encoder.towers[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    encoder({"observation": pixels})
    return seen[0]


@pytest.mark.parametrize(
    ("frame", "frames", "kind"),
    [
        ((84, 84, 3), 4, "cnn"),
        ((3, 84, 84), 4, "cnn"),
        ((84, 84, 1), 4, "cnn"),
        ((84, 84), 4, "cnn"),
        ((7, 7), 10, "cnn"),  # as many frames as would do for a side
        ((128,), 5, "mlp"),  # the RAM of an Atari machine is no image of 5 × 128
        ((4, 16), 5, "mlp"),
        ((4, 36, 36, 3), 2, "cnn"),
    ],
)
def test_auto_takes_the_encoder_of_one_frame_for_a_stack_of_them(frame, frames, kind):
    assert encoder_settings(AutoNetworkSettings(), stacked(frame, frames)).kind == kind


@pytest.mark.parametrize(
    ("frame", "channels_first"),
    [((9, 9), (2, 1, 9, 9)), ((9, 9, 3), (2, 3, 9, 9)), ((3, 9, 9), (2, 3, 9, 9)), ((12, 9, 10), (2, 10, 12, 9))],
)
def test_the_channels_of_a_stacks_frames_lie_one_behind_the_other_the_oldest_frame_first(frame, channels_first):
    frames = channels_first[0]
    pixels = pixels_of((frames, *frame), rows=2)["observation"]
    each = [pixels[:, at] for at in range(frames)]
    if frame[-1] == channels_first[1]:
        each = [pixel.permute(0, 3, 1, 2) for pixel in each]
    expected = torch.cat([pixel.reshape(2, *channels_first[1:]) for pixel in each], dim=1).float() / 255
    assert expected.shape[1] == frames * channels_first[1]
    torch.testing.assert_close(read_by_the_tower(stacked(frame, frames), pixels), expected, rtol=0, atol=0)


def test_grey_frames_are_channels_however_many_there_are():
    assert read_by_the_tower(stacked((7, 7), 10), pixels_of((10, 7, 7))["observation"]).shape == (3, 10, 7, 7)


def test_colour_images_that_the_environment_stacked_itself_are_read_as_those_that_we_stack():
    plain = (ArraySpec(name="observation", dtype="uint8", shape=(4, 9, 9, 3)),)
    pixels = pixels_of((4, 9, 9, 3))["observation"]
    assert encoder_settings(AutoNetworkSettings(), plain).kind == "cnn"
    assert torch.equal(read_by_the_tower(plain, pixels), read_by_the_tower(stacked((9, 9, 3), 4), pixels))
