"""The captioner of what changed, on real games: deeds that leave no message are told, and nothing is told twice."""

from __future__ import annotations

import numpy as np
import pytest

from onibi.actors.captioners.nethack import NetHackCaptioner, NetHackCaptionerSettings
from onibi.actors.captioners.nethack_changes import NetHackChangesCaptioner, NetHackChangesCaptionerSettings
from onibi.actors.environments.factory import EnvironmentSettings, make_vector_env
from onibi.clusters.run_plan import plan_run, raw_keys
from onibi.clusters.run_settings import RunSettings
from onibi.platform.config import read_settings
from onibi.platform.errors import CaptionError

KEYS = ("glyphs", "chars", "blstats", "message", "inv_strs", "inv_letters")
DOOR_CLOSED, DOOR_OPEN, NO_DOOR, FLOOR, STAIRS, POOL, LAVA = (2359 + place for place in (15, 13, 12, 19, 24, 32, 34))
BOULDER, AGENT, STONE = 2353, 337, 2359


def captioner(**given):
    return NetHackChangesCaptioner(NetHackChangesCaptionerSettings(**given))


class Game:
    """What one game shows, cell by cell, for tables of cases."""

    def __init__(self):
        self.raw = {
            "glyphs": np.full((1, 21, 79), FLOOR, np.int16),
            "blstats": np.zeros((1, 27), np.int64),
            "message": np.zeros((1, 256), np.uint8),
            "inv_letters": np.zeros((1, 55), np.uint8),
            "inv_strs": np.zeros((1, 55, 80), np.uint8),
        }
        self.raw["blstats"][0, [0, 1, 11, 12, 23, 24]] = 10, 10, 12, 1, 0, 1
        self.reader = captioner()

    def hold(self, **items):
        self.raw["inv_letters"][:] = self.raw["inv_strs"][:] = 0
        for slot, (letter, item) in enumerate(items.items()):
            self.raw["inv_letters"][0, slot] = ord(letter)
            self.raw["inv_strs"][0, slot, : len(item)] = np.frombuffer(item.encode("latin-1"), np.uint8)

    def put(self, glyph, x=11, y=10):
        self.raw["glyphs"][0, y, x] = glyph

    def told(self):
        (caption,) = self.reader.captions(self.raw, {})
        return caption.text


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        (DOOR_CLOSED, DOOR_OPEN, "A door opens."),
        (DOOR_OPEN, DOOR_CLOSED, "A door closes."),
        (DOOR_CLOSED, NO_DOOR, "A door breaks."),
        (FLOOR, BOULDER, "A boulder moves."),
        (POOL, FLOOR, "Water turns into ground."),
        (LAVA, FLOOR, "Lava turns into ground."),
        (STONE, STAIRS, "Stairs down come into view."),
        (STONE, DOOR_CLOSED, ""),
        (STONE, FLOOR, ""),
        (STONE, BOULDER, ""),
        (DOOR_CLOSED, AGENT, ""),
        (FLOOR, FLOOR, ""),
    ],
)
def test_a_cell_that_changes_is_told_once(before, after, sentence):
    game = Game()
    game.put(before)
    assert game.told() == "", "what an episode begins with is no change"
    game.put(after)
    assert game.told() == sentence
    assert game.told() == ""


def test_who_stands_in_a_doorway_does_not_open_it_again():
    game = Game()
    game.put(DOOR_CLOSED)
    game.told()
    for glyph, sentence in (
        (DOOR_OPEN, "A door opens."),
        (AGENT, ""),
        (DOOR_OPEN, ""),
        (AGENT, ""),
        (DOOR_CLOSED, "A door closes."),
    ):
        game.put(glyph)
        assert game.told() == sentence


def test_a_boulder_that_is_pushed_into_the_dark_is_told_by_where_the_agent_stands():
    game = Game()
    game.put(BOULDER, 11)
    game.put(STONE, 12)
    game.told()
    game.put(AGENT, 11)
    game.raw["blstats"][0, 0] = 11
    game.put(BOULDER, 12)
    assert game.told() == "A boulder moves."
    game.put(FLOOR, 10)
    assert game.told() == ""


def test_stairs_that_one_arrives_by_are_no_find():
    game = Game()
    game.told()
    game.raw["blstats"][0, [12, 24]] = 2
    game.raw["glyphs"][:] = STONE
    game.put(AGENT, 10)
    assert game.told() == "You come to a level deeper than any before."
    game.put(STAIRS, 10)
    assert game.told() == ""
    game.raw["blstats"][0, [12, 24]] = 1
    game.raw["glyphs"][:] = FLOOR
    assert game.told() == "You come to a level that is not deeper."
    game.raw["blstats"][0, [12, 23, 24]] = 2, 2, 1
    game.put(STONE)
    assert game.told() == "You come to a level of another branch."


HELD = [  # before, after, what is told, its key where numbers make it another text
    ("", "g=a key named The Master Key of Thievery", "You gain a key named The Master Key of Thievery.", ""),
    ("g=a food ration", "", "You lose a food ration.", ""),
    ("b=2 daggers (in quiver)", "b=7 daggers (in quiver)", "You gain 5 of 7 daggers.", "You gain # of # daggers."),
    ("b=2 daggers", "b=a dagger", "You lose 1 of 2 daggers.", "You lose # of # daggers."),
    (
        "a=a +1 club",
        "a=a +1 club (being worn)",
        "You now have a +1 club (being worn).",
        "You now have a # club (being worn).",
    ),
    ("a=a pink potion", "a=a potion of water", "You now have a potion of water.", ""),
    ("$=3 gold pieces", "$=31 gold pieces", "You gain 28 of 31 gold pieces.", "You gain # of # gold pieces."),
    ("a=a dagger", "a=a dagger named The door opens", "You now have a dagger named something.", ""),
    ("a=a dagger named x", "a=a dagger named y", "", ""),
    ("", "a=a dagger named The door opens. (weapon in hand)", "You gain a dagger named something.", ""),
]


@pytest.mark.parametrize(("before", "after", "told", "key"), HELD)
def test_items_gained_lost_and_changed_are_told_without_what_was_typed(before, after, told, key):
    game = Game()
    game.hold(**dict([before.split("=")] if before else []))
    game.told()
    game.hold(**dict([after.split("=")] if after else []))
    (caption,) = game.reader.captions(game.raw, {})
    assert caption.text == told
    if told:
        assert [each.text for each in caption.keys] == [key or told]
    assert game.told() == ""


def test_changes_stand_behind_the_message_and_a_dead_agent_loses_nothing():
    game = Game()
    game.put(DOOR_CLOSED)
    game.hold(g="a key")
    game.told()
    game.put(DOOR_OPEN)
    game.raw["message"][0, :11] = np.frombuffer(b"Never mind.", np.uint8)
    (caption,) = game.reader.captions(game.raw, {})
    assert caption.text == "Never mind.  A door opens."
    assert [(key.text, key.askable) for key in caption.keys] == [("A door opens.", True), ("Never mind.", False)]
    game.raw["blstats"][:] = game.raw["glyphs"][:] = 0
    game.hold()
    assert game.told() == "Never mind."


def test_a_new_episode_is_compared_with_nothing():
    game = Game()
    game.put(DOOR_CLOSED)
    game.told()
    game.put(DOOR_OPEN)
    game.hold(g="a key")
    game.reader.begin(np.array([True]))
    assert game.told() == ""


def test_parts_can_be_left_out_and_are_not_read():
    items = captioner(map_changes=False, messages=False)
    assert set(items.observation_keys) == {"blstats", "inv_letters", "inv_strs"}
    assert captioner(inventory_changes=False).observation_keys == ("blstats", "glyphs", "message")
    with pytest.raises(ValueError, match="both false"):
        captioner(map_changes=False, inventory_changes=False)
    with pytest.raises(CaptionError, match=r"reads \['glyphs', 'inv_letters', 'inv_strs', 'message'\]"):
        captioner().captions({"blstats": np.zeros((1, 27))}, {})


def test_the_door_that_keyrooms_apply_unlocks_is_told_where_the_message_says_never_mind():
    envs = make_vector_env(EnvironmentSettings(id="MiniHack-KeyRoom-S5-v0"), 4, KEYS)
    changes, messages = captioner(), NetHackCaptioner(NetHackCaptionerSettings())
    rng = np.random.default_rng(2)
    raw, infos = envs.reset(seed=2)
    changes.begin(np.ones(4, np.bool_))
    ended = np.zeros(4, np.bool_)
    opened = gained = 0
    for _ in range(1500):
        actions = rng.integers(0, envs.single_action_space.n, 4)
        raw, _, terminated, truncated, infos = envs.step(actions)
        changes.begin(ended)
        ended_now = (terminated | truncated) & ~ended
        for lane, caption in enumerate(changes.captions(raw, infos)):
            keys = {key.text for key in caption.keys}
            last_page = messages.captions(raw, {})[lane].text
            gained += "You gain a key named The Master Key of Thievery." in keys
            if "A door opens." in keys:
                opened += 1
                assert (envs.envs[lane].unwrapped.actions[actions[lane]], last_page) == (ord("a"), "Never mind.")
                assert 2372 in raw["glyphs"][lane] or 2373 in raw["glyphs"][lane], "an open door is on the map"
        ended = ended_now
    envs.close()
    assert opened >= 2
    assert gained >= opened


def test_a_run_asks_nle_for_what_changes_are_read_from_and_its_rows_tell_them():
    document = {
        "environment": {"id": "MiniHack-KeyRoom-S5-v0"},
        "view": {"kind": "nethack"},
        "captioner": {"kind": "nethack_changes"},
        "actors": {"rollout": {"envs_per_actor": 4, "fragment_seconds": 0.0, "fragment_steps": 100}},
    }
    settings = read_settings(RunSettings, document)
    assert set(raw_keys(settings)) >= {"glyphs", "inv_strs", "inv_letters", "message"}
    plain = read_settings(RunSettings, {**document, "captioner": {"kind": "nethack"}})
    assert "glyphs" not in raw_keys(plain), "who does not read changes does not pay for glyphs"
    rollout = plan_run(settings).make_rollout(0, 0, 0)
    told, episodes = set(), 0
    while episodes < 12:
        fragment = rollout.collect(lambda version: None)
        assert fragment.columns["caption_count"].shape[-1] == 6
        told |= {key.text for caption in fragment.new_captions for key in caption.keys}
        episodes += len(fragment.episodes)
    rollout.close()
    assert {"A door opens.", "You gain a key named The Master Key of Thievery."} <= told
    # Nothing in this task can be closed or dropped: only the next game has a closed door and an empty pack.
    assert not [key for key in told if "closes" in key or "You lose" in key or "breaks" in key]
