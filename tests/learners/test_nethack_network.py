"""The optional leaves of the NetHack network: colors of the map, words in their order, items."""

from __future__ import annotations

import pytest
import torch

from onibi.learners.networks.build import build_encoder
from onibi.learners.networks.nethack import NethackSettings
from onibi.platform.errors import SpecError
from onibi.platform.spec import ArraySpec

MAP = ArraySpec(name="observation.map", dtype="uint8", shape=(21, 79))
COLORS = ArraySpec(name="observation.map_colors", dtype="uint8", shape=(21, 79))
MESSAGE = ArraySpec(name="observation.message", dtype="uint8", shape=(4,))
ITEMS = ArraySpec(name="observation.inventory_items", dtype="int16", shape=(3,))


def encoder_of(*leaves, **settings):
    torch.manual_seed(0)
    return build_encoder(NethackSettings(hidden=(32,), **settings), leaves)


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
