"""The NetHack view on maps drawn by hand."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from onibi.actors.views.nethack import CHARACTER_CLASSES, NetHackView, NetHackViewSettings, character_classes
from onibi.platform.errors import SpecError

ROWS, COLUMNS, BROWN, GRAY = 21, 79, 3, 7
CLASS = {name: index for index, name in enumerate(CHARACTER_CLASSES)}
SPACE = gym.spaces.Dict(
    {
        "chars": gym.spaces.Box(0, 255, (ROWS, COLUMNS), np.uint8),
        "colors": gym.spaces.Box(0, 15, (ROWS, COLUMNS), np.uint8),
        "blstats": gym.spaces.Box(-(2**31), 2**31 - 1, (27,), np.int64),
        "inv_oclasses": gym.spaces.Box(0, 18, (55,), np.uint8),
        "inv_glyphs": gym.spaces.Box(0, 5976, (55,), np.int16),
        "message": gym.spaces.Box(0, 255, (256,), np.uint8),
    }
)


def drawn(*maps, message=b"", stats=None, oclasses=(), glyphs=(), brown=()):
    """A batch of raw observations; each map is {(x, y): character}, its '@' is the agent."""
    envs = len(maps)
    raw = {
        "chars": np.full((envs, ROWS, COLUMNS), ord(" "), np.uint8),
        "colors": np.full((envs, ROWS, COLUMNS), GRAY, np.uint8),
        "blstats": np.zeros((envs, 27), np.int64),
        "inv_oclasses": np.full((envs, 55), 18, np.uint8),
        "inv_glyphs": np.full((envs, 55), 5976, np.int16),
        "message": np.zeros((envs, 256), np.uint8),
    }
    for env, cells in enumerate(maps):
        for (x, y), character in cells.items():
            raw["chars"][env, y, x] = ord(character)
            if character == "@":
                raw["blstats"][env, :2] = x, y
        for x, y in brown:
            raw["colors"][env, y, x] = BROWN
        for index, value in (stats or {}).items():
            raw["blstats"][env, index] = value
        raw["inv_oclasses"][env, : len(oclasses)] = oclasses
        raw["inv_glyphs"][env, : len(glyphs)] = glyphs
        raw["message"][env, : len(message)] = np.frombuffer(message, np.uint8)
    return raw


def view(**settings) -> NetHackView:
    return NetHackView(NetHackViewSettings(**settings), SPACE)


def test_the_crop_is_centred_on_the_agent_and_is_told_by_columns_and_rows():
    cells = {(10, 5): "@", (11, 5): ">", (10, 6): "(", (6, 1): "$", (14, 9): "+", (15, 5): "k"}
    crop = view(crop_size=9)(drawn(cells))["observation.crop"][0]
    expected = np.zeros((9, 9), np.uint8)
    expected[4, 4] = CLASS["human"]
    expected[4, 5] = CLASS["stairs down"]
    expected[5, 4] = CLASS["tool"]
    expected[0, 0] = CLASS["gold"]
    expected[8, 8] = CLASS["closed door"]  # the kobold five columns away is outside
    assert crop.tolist() == expected.tolist()


@pytest.mark.parametrize("x", [0, 1, 77, 78])
@pytest.mark.parametrize("y", [0, 1, 19, 20])
def test_the_crop_is_blank_beyond_the_map(x, y):
    full = {(column, row): "." for column in range(COLUMNS) for row in range(ROWS)}
    other = {(40, 10): "@"}  # a second lane: nothing may leak from one into the other
    maker = view(crop_size=5)
    for _ in range(2):  # and nothing may stay from the call before
        crops = maker(drawn(full | {(x, y): "@"}, other))["observation.crop"]
        for row in range(5):
            for column in range(5):
                inside = 0 <= x + column - 2 < COLUMNS and 0 <= y + row - 2 < ROWS
                wanted = ("human" if (row, column) == (2, 2) else "floor") if inside else "blank"
                assert crops[0, row, column] == CLASS[wanted]
        assert (crops[1] != 0).sum() == 1
        maker(drawn({(x, y): "@"}, full | {(x, y): "@"}))


def test_the_nearest_of_each_class_is_told_with_its_way():
    cells = {(10, 10): "@", (13, 12): ">", (30, 10): ">", (9, 9): "(", (10, 20): "(", (78, 0): "$", (2, 10): "^"}
    located = view()(drawn(cells))["observation.locator"][0]
    expected = np.zeros((16, 3), np.int8)
    expected[CLASS["stairs down"]] = (1, 3, 2)
    expected[CLASS["tool"]] = (1, -1, -1)
    expected[CLASS["gold"]] = (1, 40, -10)  # 68 columns away, clipped
    expected[CLASS["trap"]] = (1, -8, 0)
    assert located.tolist() == expected.tolist()


def test_distance_is_by_kings_moves_and_the_agents_own_cell_is_left_out():
    # 6 diagonal moves to (16, 16), 7 straight ones to (17, 10): by steps on the map the diagonal one is nearer.
    located = view()(drawn({(10, 10): "@", (16, 16): "<", (17, 10): "<"}))["observation.locator"][0]
    assert located[CLASS["stairs up"]].tolist() == [1, 6, 6]
    assert located[CLASS["human"]].tolist() == [0, 0, 0]
    two = view()(drawn({(3, 3): "@"} | {(5, 3): "@"}, {(40, 2): "@"}))["observation.locator"]
    assert two[0, CLASS["human"]].tolist() == [1, -2, 0]
    assert not two[1].any()


@pytest.mark.parametrize("seed", range(5))
def test_nearest_agrees_with_a_scan(seed):
    rng = np.random.default_rng(seed)
    letters = list(" .|-#+><($k0{^")
    maps = []
    for _ in range(3):
        cells = {
            (int(x), int(y)): letters[rng.integers(len(letters))]
            for x, y in zip(rng.integers(0, COLUMNS, 200), rng.integers(0, ROWS, 200), strict=True)
        }
        maps.append(cells | {(int(rng.integers(COLUMNS)), int(rng.integers(ROWS))): "@"})
    raw = drawn(*maps)
    located = view()(raw)["observation.locator"]
    classes = character_classes(raw["chars"], raw["colors"])
    for env in range(3):
        ax, ay = raw["blstats"][env, :2]
        for number in range(16):
            cells = [
                (max(abs(x - ax), abs(y - ay)), np.clip(x - ax, -40, 40), np.clip(y - ay, -40, 40))
                for y, x in zip(*np.nonzero(classes[env] == number), strict=True)
                if (x, y) != (ax, ay) and number >= 4
            ]
            present, dx, dy = located[env, number].tolist()
            assert bool(present) == bool(cells)
            if cells:
                nearest = min(cells)[0]
                assert (dx, dy) in [(x, y) for distance, x, y in cells if distance == nearest]


def test_a_brown_wall_character_is_an_open_door_and_other_brown_things_are_not():
    cells = {(1, 1): "-", (2, 1): "|", (3, 1): "+", (4, 1): ".", (5, 1): "-", (6, 1): "@"}
    raw = drawn(cells, brown=[(1, 1), (2, 1), (3, 1), (4, 1)])
    found = character_classes(raw["chars"], raw["colors"])[0, 1, 1:6]
    assert [CHARACTER_CLASSES[each] for each in found] == ["open door", "open door", "closed door", "floor", "wall"]


def test_every_character_has_a_class():
    everything = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    classes = character_classes(everything, np.full_like(everything, GRAY)).reshape(-1)
    assert classes.max() < len(CHARACTER_CLASSES) == 16
    letters = {
        CHARACTER_CLASSES[classes[ord(letter)]] for letter in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    }
    assert letters == {"monster"}


def test_figures_are_scaled_to_about_one():
    stats = {10: 6, 11: 12, 12: 3, 13: 127, 14: 2, 15: 4, 16: 5, 18: 2, 21: 1, 22: 1, 24: 3}
    figures = view()(drawn({(79 // 2, 7): "@"}, stats=stats))["observation.blstats"][0]
    expected = [39 / 79, 7 / 21, 0.5, np.log2(13) / 8, 0.5, 0.5, 0.2, 0.3, 1 / 6, 7 / 12, 0.2, 0.3]
    assert figures == pytest.approx(expected)


def test_figures_of_the_dead_are_finite():
    figures = view()(drawn({(0, 0): "@"}, stats={10: -3, 11: 0, 13: -1, 15: 0}))["observation.blstats"]
    assert np.isfinite(figures).all()


def test_stacks_are_counted_by_class():
    inventory = view()(drawn({(1, 1): "@"}, oclasses=[2, 2, 2, 5, 17]))["observation.inventory"][0]
    expected = np.zeros(18)
    expected[[2, 5, 17]] = 2, 1, 1  # log2(1 + 3), log2(1 + 1), log2(1 + 1)
    assert inventory.tolist() == expected.tolist()


def test_items_are_told_by_slot_and_empty_slots_are_zero():
    items = view(inventory_items=4)(drawn({(1, 1): "@"}, glyphs=[0, 2000, 5975]))["observation.inventory_items"]
    assert items.tolist() == [[1, 2001, 5976, 0]]
    assert "inv_glyphs" in view(inventory_items=4).raw_keys
    assert "inv_glyphs" not in view().raw_keys


def test_colors_come_with_the_map_alone():
    colors = view(whole_map=True, map_colors=True)(drawn({(1, 1): "@"}, brown=[(4, 2)]))["observation.map_colors"]
    assert (colors[0, 2, 4], colors[0, 2, 5]) == (BROWN, GRAY)
    with pytest.raises(ValueError, match="set whole_map, too"):
        NetHackViewSettings(map_colors=True)


def test_words_of_a_message_are_equal_where_the_words_are_and_padded_with_zeros():
    maker = view(message_words=4)
    first, second, long = (
        maker(drawn({(1, 1): "@"}, message=text))["observation.message"][0]
        for text in (b"You see here a door.", b"You SEE gold.", b"one two three four five six")
    )
    assert first[:2].tolist() == second[:2].tolist()
    assert first[2] != second[2]
    assert second[3] == 0
    assert (long > 0).all()
    assert maker(drawn({(1, 1): "@"}))["observation.message"].tolist() == [[0] * 4]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"crop_size": 3, "locator": False, "inventory": False, "message_words": 0},
        {"whole_map": True, "message_words": 64},
        {"whole_map": True, "map_colors": True, "inventory_items": 10},
    ],
)
def test_columns_are_what_the_specs_promise(settings):
    maker = view(**settings)
    columns = maker(drawn({(1, 1): "@"}, {(5, 5): "@"}))
    assert {spec.name: (2, *spec.shape) for spec in maker.specs} == {n: c.shape for n, c in columns.items()}
    assert {spec.name: spec.dtype for spec in maker.specs} == {n: c.dtype.name for n, c in columns.items()}


def test_an_observation_without_the_keys_is_refused():
    with pytest.raises(SpecError, match=r"reads \['blstats', 'chars'.*it has Box.*view.kind=leaves"):
        NetHackView(NetHackViewSettings(), gym.spaces.Box(0, 1, (4,)))
    with pytest.raises(SpecError, match=r"reads \['inv_oclasses'\]"):
        NetHackView(
            NetHackViewSettings(),
            gym.spaces.Dict({key: SPACE[key] for key in ("chars", "colors", "blstats", "message")}),
        )
