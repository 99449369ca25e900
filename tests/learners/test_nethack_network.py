"""The NetHack network: its twin in NumPy, and optional leaves: colors of the map, words in their order, items."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from onibi.learners.appo import AppoLearner, AppoSettings
from onibi.learners.dqn import DqnLearner, DqnSettings
from onibi.learners.networks.build import as_arrays, build_encoder, numpy_form
from onibi.learners.networks.nethack import NethackSettings, sum_of_all, sum_of_present
from onibi.learners.r2d2 import R2d2Learner, R2d2Settings
from onibi.learners.support import SupportSettings
from onibi.platform.errors import SpecError
from onibi.platform.policy import LaneRange, weights_version
from onibi.platform.spec import ArraySpec, ReplaySpec

MAP = ArraySpec(name="observation.map", dtype="uint8", shape=(21, 79))
COLORS = ArraySpec(name="observation.map_colors", dtype="uint8", shape=(21, 79))
MESSAGE = ArraySpec(name="observation.message", dtype="uint8", shape=(4,))
ITEMS = ArraySpec(name="observation.inventory_items", dtype="int16", shape=(3,))
CROP = ArraySpec(name="observation.crop", dtype="uint8", shape=(5, 5))
LOCATOR = ArraySpec(name="observation.locator", dtype="int8", shape=(16, 3), low=-40, high=40)
BLSTATS = ArraySpec(name="observation.blstats", dtype="float32", shape=(6,))
INVENTORY = ArraySpec(name="observation.inventory", dtype="float32", shape=(18,))
ROOM = ArraySpec(name="observation.room", dtype="int64", low=0, high=3)
VIEW = (CROP, LOCATOR, BLSTATS, INVENTORY, MESSAGE, ROOM)
SPEC = ReplaySpec(observation=VIEW, actions=5)
LEARNERS = {
    "dqn": (DqnLearner, DqnSettings(support=SupportSettings(low=-1, high=1))),
    "r2d2": (R2d2Learner, R2d2Settings(support=SupportSettings(low=-1, high=1))),
    "appo": (AppoLearner, AppoSettings(support=SupportSettings(low=-1, high=1), rows=4, batch_lanes=2)),
}


def encoder_of(*leaves, **settings):
    torch.manual_seed(0)
    return build_encoder(NethackSettings(hidden=(32,), **settings), leaves)


def observed(make_observation, leaves, rows, seed=0):
    """Random leaves; of the first row nothing is to be seen or read, and the second has classes above the last."""
    observation = make_observation(ReplaySpec(observation=leaves, actions=2), rows, np.random.default_rng(seed))
    for name in ("observation.crop", "observation.message"):
        if name in observation:
            observation[name][observation[name] > 100] = 0
            observation[name][:1] = 0
            observation[name][1:2] = 250
    return observation


@pytest.mark.parametrize(
    "leaves",
    [(CROP,), (MESSAGE,), (BLSTATS,), (LOCATOR, MESSAGE), (CROP, INVENTORY), VIEW],
    ids=lambda leaves: "-".join(leaf.name.partition(".")[2] for leaf in leaves),
)
@pytest.mark.parametrize("layer_norm", [True, False])
def test_the_twin_in_numpy_gives_the_features_of_torch(make_observation, leaves, layer_norm):
    settings = NethackSettings(hidden=(24, 16), layer_norm=layer_norm, normalize_blstats=True)
    torch.manual_seed(1)
    encoder = build_encoder(settings, leaves)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    for seed in range(2):
        seen = observed(make_observation, leaves, 30, seed)
        encoder.learn_statistics({name: torch.from_numpy(leaf) for name, leaf in seen.items()})
    twin = pickle.loads(pickle.dumps(numpy_form(settings, leaves))).make()
    twin.load({f"encoder.{name}": array for name, array in as_arrays(encoder).items()})
    for rows in (12, 1, 12):
        observation = observed(make_observation, leaves, rows, seed=9)
        before = {name: leaf.copy() for name, leaf in observation.items()}
        with torch.no_grad():
            expected = encoder({name: torch.from_numpy(leaf) for name, leaf in observation.items()}).numpy()
        np.testing.assert_allclose(twin(observation), expected, rtol=1e-4, atol=1e-4)
        assert all((observation[name] == leaf).all() for name, leaf in before.items())
    assert expected.std(axis=0).max() > 0.1, "or equality would say little"


@pytest.mark.parametrize(
    ("leaves", "settings"),
    [((*VIEW, MAP), {}), ((*VIEW, ITEMS), {}), (VIEW, {"message_embedding": 4})],
    ids=["map", "items", "words in their order"],
)
def test_optional_towers_act_in_torch(leaves, settings):
    assert numpy_form(NethackSettings(**settings), leaves) is None


@pytest.mark.parametrize("kind", LEARNERS)
def test_policies_for_nethack_act_where_torch_cannot_be_imported(make_observation, tmp_path, kind):
    owner, settings = LEARNERS[kind]
    learner = owner(settings, SPEC, (-1.0, 1.0), seed=0, device="cpu")
    factory, lanes = owner.policy_factory(settings, SPEC), LaneRange(first=0, count=3, total=3)
    weights = learner.weights(weights_version(0, 1))
    observation = observed(make_observation, VIEW, 3)
    (tmp_path / "policy").write_bytes(pickle.dumps((factory, weights, observation, lanes)))
    script = (
        "import pickle, sys\n"
        "sys.modules['torch'] = None\n"  # importing it raises ImportError
        "import numpy as np\n"
        "factory, weights, observation, lanes = pickle.load(open(sys.argv[1], 'rb'))\n"
        "policy = factory(lanes)\n"
        "policy.load(weights)\n"
        "step = policy.act(observation, policy.initial_state(3), np.random.default_rng(0))\n"
        "print(step.action.shape)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "policy")], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout.strip()) == (0, "(3,)"), found.stderr


def test_a_monsters_color_is_seen_where_the_map_is_colored():
    maps = torch.full((2, 21, 79), ord("d"), dtype=torch.uint8)
    colors = torch.zeros(2, 21, 79, dtype=torch.uint8)
    colors[1] = 9
    both = {"observation.map": maps, "observation.map_colors": colors}
    plain, colored = encoder_of(MAP)(both), encoder_of(MAP, COLORS)(both)
    assert torch.equal(plain[0], plain[1])
    assert not torch.allclose(colored[0], colored[1], atol=1e-3)


def test_words_are_a_bag_unless_they_are_embedded_in_their_order():
    words = {"observation.message": torch.tensor([[3, 7, 9, 0], [9, 3, 7, 0]], dtype=torch.uint8)}
    bag, ordered = encoder_of(MESSAGE)(words), encoder_of(MESSAGE, message_embedding=5)(words)
    torch.testing.assert_close(bag[0], bag[1])
    assert not torch.allclose(ordered[0], ordered[1], atol=1e-3)


def test_padding_of_a_message_and_empty_slots_add_nothing():
    encoder = encoder_of(MESSAGE, ITEMS, message_embedding=5)
    assert not encoder.words.weight[0].any()
    assert not encoder.items.weight[0].any()


def test_items_count_by_kind_and_number_and_not_by_their_slot():
    items = torch.tensor([[100, 2000, 0], [0, 100, 2000], [100, 2000, 2000], [100, 2001, 0]], dtype=torch.int16)
    features = encoder_of(ITEMS)({"observation.inventory_items": items})
    torch.testing.assert_close(features[0], features[1])
    for other in (2, 3):
        assert not torch.allclose(features[0], features[other], atol=1e-3)


@pytest.mark.parametrize("leaf", [COLORS, ITEMS], ids=["colors", "items"])
def test_an_optional_leaf_of_another_form_is_refused(leaf):
    wrong = ArraySpec(name=leaf.name, dtype="float32", shape=leaf.shape)
    with pytest.raises(SpecError, match=rf"{leaf.name}' is float32 .*reads '{leaf.name.partition('.')[2]}' as"):
        build_encoder(NethackSettings(), (MAP, wrong))


# --- the first layer's sum ---


@pytest.mark.parametrize("seed", range(3))
def test_the_sum_over_all_ids_is_that_over_those_that_are_present_and_so_are_its_gradients(seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 4, (9, 6), generator=generator)  # class 0 to 3 of 6 cells
    ids[0] = 0
    first_row = torch.arange(6) * 3 - 1
    bag = torch.randn(18, 5, generator=generator, requires_grad=True)
    upstream = torch.randn(9, 5, generator=generator)
    sums = [form(ids, first_row, bag) for form in (sum_of_present, sum_of_all)]
    torch.testing.assert_close(*sums)
    gradients = [torch.autograd.grad(each, bag, upstream)[0] for each in sums]
    torch.testing.assert_close(*gradients)
    assert not sums[1][0].any()


@pytest.mark.parametrize(
    ("leaves", "settings"),
    [(VIEW, {}), ((*VIEW, MAP, COLORS, ITEMS), {"normalize_blstats": True}), (VIEW, {"message_embedding": 4})],
    ids=["view", "map and items", "words in their order"],
)
def test_off_the_cpu_no_shape_hangs_on_what_is_seen(make_observation, leaves, settings):
    """Tensors of the device "meta" have shapes and no values: whatever looks at a value raises."""
    encoder = encoder_of(*leaves, **settings).to("meta")
    observation = observed(make_observation, leaves, 3)
    encoder({name: torch.from_numpy(leaf).to("meta") for name, leaf in observation.items()}).sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
