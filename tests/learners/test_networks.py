from __future__ import annotations

import numpy as np
import pytest
import torch

from onibi.learners.networks.build import AutoNetworkSettings, build_encoder, build_q_network, encoder_settings
from onibi.learners.networks.cnn import CnnSettings, ConvolutionSettings
from onibi.learners.networks.custom import CustomNetworkSettings
from onibi.learners.networks.heads import ActionValueHead
from onibi.learners.networks.leaves import flat_leaf, flatten
from onibi.learners.networks.mlp import FlatInput, MlpSettings
from onibi.learners.networks.nethack import NethackSettings
from onibi.learners.networks.normalizer import RunningNormalizer
from onibi.learners.support import Support
from onibi.learners.value_losses import ValueHead
from onibi.platform.errors import ConfigError, SpecError
from onibi.platform.spec import ArraySpec

MSE = ValueHead("mse", None, 0.0, 1.0)


def tensors(observation):
    return {name: torch.from_numpy(values) for name, values in observation.items()}


# --- choice ---


@pytest.mark.parametrize(
    ("name", "kind"), [("flat", "mlp"), ("mixed", "mlp"), ("nethack", "nethack"), ("image", "cnn"), ("grid", "cnn")]
)
def test_auto_takes_the_encoder_that_the_observation_asks_for(specs, name, kind):
    assert encoder_settings(AutoNetworkSettings(), specs[name].observation).kind == kind


def test_small_uint8_vectors_and_matrices_are_numbers_and_not_images():
    leaves = (ArraySpec(name="observation", dtype="uint8", shape=(4, 16)),)
    assert encoder_settings(AutoNetworkSettings(), leaves).kind == "mlp"


@pytest.mark.parametrize("name", ["flat", "mixed", "nethack", "image", "grid"])
@pytest.mark.parametrize("dueling", [True, False])
def test_each_observation_gives_outputs_for_every_row_and_action(specs, make_observation, name, dueling):
    spec = specs[name]
    head = ValueHead("hl_gauss", Support(-1.0, 2.0, 11), 0.2, 1.0)
    network = build_q_network(AutoNetworkSettings(), spec, head, dueling=dueling, seed=1)
    observation = tensors(make_observation(spec, 6, np.random.default_rng(0)))
    assert network(observation).shape == (6, spec.actions, 11)
    values = network.action_values(observation)
    assert values.shape == (6, spec.actions)
    assert values.abs().max() < 3 / 11  # starts at the value 0, within a bin


def test_a_seed_gives_one_network_and_leaves_the_global_generator_alone(specs):
    before = torch.get_rng_state()
    first, again, other = (
        build_q_network(AutoNetworkSettings(), specs["flat"], MSE, dueling=True, seed=seed) for seed in (3, 3, 4)
    )
    assert torch.equal(torch.get_rng_state(), before)
    weights = [network.encoder.trunk.linear[0].weight for network in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_every_parameter_takes_part_in_the_outputs(specs, make_observation):
    for name, spec in specs.items():
        if spec.action is not None:  # a Q-network needs actions to choose from
            continue
        network = build_q_network(AutoNetworkSettings(), spec, MSE, dueling=True, seed=1)
        with torch.no_grad():
            for parameter in network.head.parameters():
                parameter.normal_()
        observation = tensors(make_observation(spec, 64, np.random.default_rng(0)))
        network(observation)[:, 0].square().sum().backward()
        silent = [
            key for key, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()
        ]
        assert not silent, (name, silent)


# --- heads ---


def test_dueling_outputs_average_to_the_value_stream():
    head = ActionValueHead(8, 5, torch.tensor([0.3, -0.2]), dueling=True)
    torch.nn.init.normal_(head.advantage.weight)
    features = torch.randn(7, 8)
    torch.testing.assert_close(head(features).mean(dim=1), head.value(features))


# --- flat ---


def test_a_bounded_integer_is_a_one_hot_and_numbers_pass_through(specs):
    leaves = [flat_leaf(leaf) for leaf in specs["mixed"].observation]
    observation = {
        "observation.position": np.array([[[1, 2], [3, 4]]], np.float32),
        "observation.room": np.array([3]),  # classes 1 … 5
    }
    expected = [[1, 2, 3, 4, 0, 0, 1, 0, 0]]
    assert flatten(leaves, observation).tolist() == expected
    assert FlatInput(leaves)(tensors(observation)).tolist() == expected


# --- nethack ---


def test_the_first_layer_is_a_linear_layer_over_one_hots(specs, make_observation):
    leaves = tuple(leaf for leaf in specs["nethack"].observation if leaf.name.endswith(("crop", "message")))
    encoder = build_encoder(NethackSettings(hidden=(16,), layer_norm=False), leaves)
    observation = tensors(make_observation(specs["nethack"], 9, np.random.default_rng(0)))
    observation["observation.crop"][2] = 0  # blank in every cell
    one_hot = torch.nn.functional.one_hot
    crop = one_hot(observation["observation.crop"].long().flatten(1), 16)[:, :, 1:].flatten(1)
    words = one_hot(observation["observation.message"].long(), 256)[:, :, 1:].sum(dim=1)
    one_hots = torch.cat((crop, words), dim=1).float()
    torch.testing.assert_close(encoder(observation), torch.relu(one_hots @ encoder.bag))


def test_a_batch_of_blank_crops_is_read():
    leaf = ArraySpec(name="observation.crop", dtype="uint8", shape=(3, 3))
    features = build_encoder(NethackSettings(layer_norm=False), (leaf,))(
        {"observation.crop": torch.zeros(4, 3, 3, dtype=torch.uint8)}
    )
    assert features.shape == (4, 128)


@pytest.mark.parametrize("absent", ["crop", "locator", "blstats", "message", "map", "caption_counts"])
def test_any_leaf_of_the_view_may_be_absent(specs, make_observation, absent):
    leaves = tuple(leaf for leaf in specs["nethack"].observation if leaf.name != f"observation.{absent}")
    encoder = build_encoder(NethackSettings(), leaves)
    assert encoder(tensors(make_observation(specs["nethack"], 3, np.random.default_rng(0)))).shape == (3, 128)


def test_a_class_beyond_the_known_ones_reads_as_the_last_and_not_as_the_next_cell():
    leaf = ArraySpec(name="observation.crop", dtype="uint8", shape=(3, 3))
    encoder = build_encoder(NethackSettings(), (leaf,))
    crops = torch.full((2, 3, 3), 15, dtype=torch.uint8)
    crops[1, 1, 1] = 99
    features = encoder({"observation.crop": crops})
    assert torch.equal(features[0], features[1])


@pytest.mark.parametrize(
    ("name", "dtype", "shape"), [("crop", "int64", (9, 9)), ("map", "uint8", (21,)), ("locator", "float32", (16, 3))]
)
def test_a_known_leaf_of_another_form_is_refused_with_both_forms(name, dtype, shape):
    leaf = ArraySpec(name=f"observation.{name}", dtype=dtype, shape=shape)
    with pytest.raises(SpecError, match=rf"observation\.{name}' is {dtype} .*reads '{name}' as"):
        build_encoder(NethackSettings(), (leaf,))


# --- images ---


def test_channels_first_and_last_read_the_same_pixels():
    first = ArraySpec(name="observation", dtype="uint8", shape=(3, 40, 41))
    last = ArraySpec(name="observation", dtype="uint8", shape=(40, 41, 3))
    encoders = [build_encoder(CnnSettings(hidden=(8,)), (spec,)) for spec in (first, last)]
    encoders[1].load_state_dict(encoders[0].state_dict())
    pixels = torch.randint(256, (2, 3, 40, 41), dtype=torch.uint8)
    features = [
        encoder({"observation": values})
        for encoder, values in zip(encoders, (pixels, pixels.permute(0, 2, 3, 1)), strict=True)
    ]
    torch.testing.assert_close(*features)


@pytest.mark.parametrize(("high", "share"), [(1.0, 1.0), (255.0, 1 / 255), (None, 1 / 255)])
def test_booleans_are_read_as_they_are_and_pixels_as_shares_of_255(high, share):
    leaf = ArraySpec(name="observation", dtype="uint8", shape=(10, 10, 4), low=0.0, high=high)
    encoder, seen = build_encoder(CnnSettings(), (leaf,)), []
    encoder.towers[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    encoder({"observation": torch.ones(2, 10, 10, 4, dtype=torch.uint8)})
    assert seen[0].shape == (2, 4, 10, 10)
    assert seen[0].unique().tolist() == pytest.approx([share])


def test_natures_network_is_used_for_84_pixels():
    encoder = build_encoder(CnnSettings(), (ArraySpec(name="observation", dtype="uint8", shape=(4, 84, 84)),))
    assert encoder.trunk.linear[0].in_features == 64 * 7 * 7
    assert encoder.features == 512


def test_convolutions_too_large_for_the_image_are_refused_by_their_number():
    layers = (ConvolutionSettings(channels=4, kernel=3, stride=2), ConvolutionSettings(channels=4, kernel=4, stride=1))
    with pytest.raises(SpecError, match=r"convolutions\[1\].*kernel of 4 does not fit the 3 × 3"):
        build_encoder(
            CnnSettings(convolutions=layers), (ArraySpec(name="observation", dtype="uint8", shape=(7, 7, 3)),)
        )


def test_cnn_without_an_image_says_what_there_is(specs):
    with pytest.raises(SpecError, match=r"observation float32 \[4\]"):
        build_encoder(CnnSettings(), specs["flat"].observation)


# --- the user's own ---

OWN = """
import torch
from torch import nn

class Good(nn.Module):
    def __init__(self, observation, width=3):
        super().__init__()
        self.layer = nn.Linear(observation[0].shape[0], width)
        self.seen = 0
    def learn_statistics(self, observation):
        self.seen += len(observation["observation"])
    def forward(self, observation):
        return self.layer(observation["observation"])

class Raises(Good):
    def __init__(self, observation):
        raise OverflowError("too much")

class NoVector(Good):
    def forward(self, observation):
        return super().forward(observation)[0]

class WrongLeaf(Good):
    def forward(self, observation):
        return self.layer(observation["pixels"])

def no_module(observation):
    return 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_networks_of_test.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return "own_networks_of_test"


def test_a_users_module_is_found_by_its_path_and_takes_arguments(specs, make_observation, own):
    encoder = build_encoder(
        CustomNetworkSettings(path=f"{own}:Good", arguments={"width": 7}), specs["flat"].observation
    )
    assert encoder.features == 7
    observation = tensors(make_observation(specs["flat"], 5, np.random.default_rng(0)))
    encoder.learn_statistics(observation)
    assert encoder.module.seen == 5
    torch.testing.assert_close(encoder(observation), encoder.module.layer(observation["observation"]))


@pytest.mark.parametrize(
    ("name", "arguments", "error", "said"),
    [
        ("Missing", {}, ConfigError, "has no attribute 'Missing'"),
        ("Good", {"height": 1}, ConfigError, "unexpected keyword argument 'height'"),
        ("Raises", {}, ConfigError, r"raised OverflowError: too much \(.*own_networks_of_test.py:\d+\)"),
        ("no_module", {}, ConfigError, "made a int"),
        ("NoVector", {}, SpecError, r"returned torch.float32 \[3\]"),
        ("WrongLeaf", {}, SpecError, "KeyError: 'pixels'.*observation float32"),
    ],
)
def test_a_users_module_that_does_not_fit_is_told_what_is_wrong(specs, own, name, arguments, error, said):
    with pytest.raises(error, match=said):
        build_encoder(CustomNetworkSettings(path=f"{own}:{name}", arguments=arguments), specs["flat"].observation)


def test_a_module_that_is_not_installed_is_named(specs):
    with pytest.raises(ConfigError, match="No module named 'no_such_package'"):
        build_encoder(CustomNetworkSettings(path="no_such_package:Net"), specs["flat"].observation)


@pytest.mark.parametrize("path", ["", "package.Net", "package:", ":Net", "package:Net()"])
def test_what_is_no_import_path_is_refused_at_reading(path):
    with pytest.raises(ValueError, match="expected module:name"):
        CustomNetworkSettings(path=path)


# --- normalisation ---


def test_running_statistics_over_batches_are_those_of_all_rows():
    rng = np.random.default_rng(0)
    batches = [rng.normal(3.0, 5.0, size=(rows, 4)).astype(np.float32) for rows in (7, 1, 50, 128)]
    normalizer = RunningNormalizer(4)
    for batch in batches:
        normalizer.learn(torch.from_numpy(batch))
    rows = np.concatenate(batches).astype(np.float64)
    np.testing.assert_allclose(normalizer.mean, rows.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(normalizer.variance, rows.var(axis=0), rtol=1e-5)
    assert normalizer.count.item() == 186
    expected = (rows - rows.mean(axis=0)) / np.sqrt(rows.var(axis=0) + 1e-6)
    np.testing.assert_allclose(normalizer(torch.from_numpy(rows).float()), np.clip(expected, -10, 10), atol=1e-4)


@pytest.mark.parametrize("constant", [50.3, 12345.678, 123456.78, 1_000_000.3])
def test_a_constant_is_scaled_to_0_however_large_it_is(constant):
    normalizer = RunningNormalizer(1)
    for rows in (128, 33, 1000):  # float32 sums of so many are rounded
        batch = torch.full((rows, 1), constant)
        normalizer.learn(batch)
        assert normalizer.variance.item() == 0.0
        assert normalizer(batch).abs().max().item() == 0.0


def test_a_batch_that_is_not_finite_leaves_the_statistics_as_they_were():
    normalizer = RunningNormalizer(2)
    normalizer.learn(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    for bad in (torch.nan, torch.inf, 3e38, -1e20):  # the squares of the last two are not finite in float32
        normalizer.learn(torch.tensor([[bad, 2.0], [3.0, 6.0]]))
    assert normalizer.mean.tolist() == [2.0, 4.0]
    assert normalizer.variance.tolist() == [1.0, 4.0]
    assert normalizer.count.item() == 2


def test_the_mlp_normalises_only_where_asked(specs, make_observation):
    leaves = specs["flat"].observation
    assert build_encoder(MlpSettings(), leaves).normalizer is None
    encoder = build_encoder(MlpSettings(normalize_observation=True), leaves)
    observation = {"observation": torch.randn(64, 4) * 100 + 1000}
    encoder.learn_statistics(observation)
    scaled = encoder.normalizer(encoder.input(observation))
    assert scaled.mean().abs() < 1e-3
    assert scaled.std() == pytest.approx(1.0, abs=0.02)
    torch.testing.assert_close(encoder(observation), encoder.trunk(scaled))
