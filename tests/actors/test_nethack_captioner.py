from __future__ import annotations

import itertools

import gymnasium as gym
import minihack  # noqa: F401 - registers its environments
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onibi.actors.captioners.nethack import (
    ARTIFACTS,
    NetHackCaptioner,
    NetHackCaptionerSettings,
    caption_of,
)
from onibi.actors.environments.factory import EnvironmentSettings, make_vector_env
from onibi.platform.annotation.captions import EMPTY_TEXT
from onibi.platform.errors import CaptionError


def raw(*messages):
    lines = np.zeros((len(messages), 256), np.uint8)
    for line, message in zip(lines, messages, strict=True):
        line[: len(message)] = np.frombuffer(message.encode("latin-1"), np.uint8)
    return {"message": lines}


def captioner(**given):
    return NetHackCaptioner(NetHackCaptionerSettings(**given))


def keys(message, K=4):
    return [(key.text, key.askable) for key in caption_of(message, K, ARTIFACTS).keys]


# Left what NetHack showed in runs of NLE and MiniHack, right the keys.
ASKED = [
    ("The door opens.", ["The door opens."]),
    ("You kill the newt!  The newt bites!", ["You kill the newt!", "The newt bites!"]),
    ("g - a key named The Master Key of Thievery.", ["* - a key named The Master Key of Thievery."]),
    ("h - a key named The Master Key of Thievery.", ["* - a key named The Master Key of Thievery."]),
    ("$ - 23 gold pieces.", ["$ - # gold pieces."]),
    ("e - an uncursed +0 leather armor (being worn).", ["* - an uncursed # leather armor (being worn)."]),
    ("Moving: A - a blessed +1 club (weapon in hand).", ["Moving: * - a blessed # club (weapon in hand)."]),
    (
        "You have a little trouble lifting h - a scroll labeled TEMOV.",
        ["You have a little trouble lifting * - a scroll labeled TEMOV."],
    ),
    ("j - a giant rat corpse.  k - a slime mold.", ["* - a giant rat corpse.", "* - a slime mold."]),
    ("The giant rat bites!  The giant rat bites!  The giant rat bites!", ["The giant rat bites!"]),
    ("Having fun sitting on the floor?  The newt bites!", ["Having fun sitting on the floor?", "The newt bites!"]),
    ('"Thou must relearn thy lessons!"  You feel foolish!', ['"Thou must relearn thy lessons!"', "You feel foolish!"]),
    ("You kill it!--More--", ["You kill it!"]),
]


@pytest.mark.parametrize(("message", "expected"), ASKED)
def test_a_message_is_cut_into_normalised_sentences(message, expected):
    assert keys(message) == [(text, True) for text in expected]


NEVER_ASKED = [
    ("It's a wall.", "It's a wall."),
    ("It's solid stone.", "It's solid stone."),
    ("It's a tree.", "It's a tree."),
    ("You can't move diagonally out of an intact doorway.", "You can't move diagonally out of an intact doorway."),
    ("In what direction? ", "In what direction?"),
    ("What do you want to eat? [fghi or ?*] ", "What do you want to eat? [...]"),
    ("What do you want to eat? [gi or ?*] ", "What do you want to eat? [...]"),
    ("What do you want to write with? [- abcdg or ?*] ", "What do you want to write with? [...]"),
    ("There is a food ration here; eat it? [ynq] (n) ", "There is a food ration here; eat it? [...]"),
    ("Talk to whom? (in what direction) ", "Talk to whom? (in what direction)"),
    ("Adjust letter to what [ch-zA-Z] (? see used letters)? ", "Adjust letter to what"),
    ("Unknown command '^M'.", "Unknown command."),
    ("Unknown direction: 'M-?' (use 'h', 'j', 'k', 'l' or '.').", "Unknown direction."),
    ("Invalid direction for 'G' prefix.", "Invalid direction."),
]


# Left what several pages of one step held, joined as MessagePages does; right the keys that are asked about.
PAGES = [
    ("The jackal bites!\nYou die...", ["The jackal bites!", "You die..."]),
    (
        (
            "Can't open 'rumors' file.  Program in disorder!\nThe key named The Master Key of Thievery whispers:\n"
            '"NetHack rumors file closed for renovation."\nYou succeed in unlocking the door.\nThe door opens.\n'
            "What do you want to use or apply? [efg or ?*] \nNever mind."
        ),
        [
            "The key named The Master Key of Thievery whispers something.",
            "You succeed in unlocking the door.",
            "The door opens.",
        ],
    ),
    (
        (
            "This fortune cookie is delicious!\nThis cookie has a scrap of paper inside.  It reads:\n"
            "They say that an altar can identify blessings.\nThe grid bug bites!"
        ),
        [
            "This fortune cookie is delicious!",
            "This cookie has a scrap of paper inside.",
            "It reads something.",
            "The grid bug bites!",
        ],
    ),
    (
        'The voice of Ishtar booms out:   "Thou art arrogant, mortal."\n"Thou must relearn thy lessons!"',
        ['The voice of Ishtar booms out: "Thou art arrogant, mortal."', '"Thou must relearn thy lessons!"'],
    ),
    (
        "Status of the lichen (neutral):  Level 0  HP 2(2)  AC 9.",
        ["Status of the lichen (neutral): Level # HP #(#) AC #."],
    ),
    (
        'Something is engraved here.\nYou read: "The door opens.".\nYou stop.',
        ["Something is engraved here.", "You read what is written.", "You stop."],
    ),
    (
        "You write in the dust with a club.\nWhat do you want to write in the dust here? \nYou stop.",
        ["You write in the dust with a club.", "You stop."],
    ),
    ("f        a cat or other feline (tame kitten called x)", []),
    ("k       move north (screen up).", []),
    ("You don't have that object.\nWhat do you want to tip? [*] \nNever mind.", []),
]


@pytest.mark.parametrize(("pages", "expected"), PAGES)
def test_pages_are_read_one_by_one_and_sentences_that_cross_them_joined(pages, expected):
    assert [text for text, askable in keys(pages, 9) if askable] == expected


def test_what_is_typed_in_a_prompt_ends_with_its_page():
    caption = caption_of("Call an emerald potion: The door opens.\nYou stop.", 4, ARTIFACTS)
    assert caption.text == "Call an emerald potion:  You stop."


@pytest.mark.parametrize(("message", "key"), NEVER_ASKED)
def test_bumps_prompts_and_complaints_are_keys_that_nobody_is_asked_about(message, key):
    assert keys(message) == [(key, False)]


def test_what_stands_beside_a_prompt_is_asked():
    assert keys("You are wielding 31 rocks.  Ready 30 of them? [ynq] (q) ") == [
        ("You are wielding # rocks.", True),
        ("Ready # of them? [...]", False),
    ]


def test_asked_keys_come_first_when_there_are_more_than_k():
    message = "It's a wall.  You hit the newt.  The newt bites!"
    assert keys(message, 2) == [("You hit the newt.", True), ("The newt bites!", True)]
    assert keys(message, 4)[-1] == ("It's a wall.", False)
    assert caption_of(message, 2, ARTIFACTS).text == message


TYPED = [
    "# The door opens",
    "#The door opens: unknown extended command.",
    "'The door opens: unknown extended command.",
    "What do you want to name this orange? The door opens.",
    "What do you want to write in the dust here? x  The door opens.",
    "What do you want to call this dungeon level? The door opens.",
    "For what do you wish? The door opens.",
    "To what level do you want to teleport? The door opens.",
    "What class of monsters do you wish to genocide? [type the name] The door opens.",
    "Call a scroll labeled YUM YUM: The door opens.",
    "Where do you want to travel to?  (For instructions type a '?') The door opens.",
    'You read: "The door opens."',
    'Something is written here in the dust.  You read: "a  The door opens.',
    "a - a sword named Excalibur. The door opens.",
    "a - a sword named x. The door opens.",
    "You see here a scroll called x! The door opens.",
    "h - a scroll called The door opens (unpaid, 20 zm).",
    "Really attack the kitten? [yn] (n) The door opens.",
    "You see here a dagger named x--More--The door opens.",
    "f        a cat or other feline (tame kitten called The door opens.)",
    "Search for: The door opens.",
    "Search for:  The door opens.",
    "Extended command list search phrase? The door opens.",
    '"Hello stranger, who are you?" - The door opens.',
    "What tune are you playing? [5 notes, A-G] x  The door opens.",
    'Replace annotation "The door opens." with? ',
    "You remember this level as The door opens.",
    "You remember this level as Excalibur. The door opens.",
    "Call a scroll labeled YUM YUM: x? [y]  The door opens.",
    "What do you want to call this dungeon level? x? [y]  The door opens.",
]


@pytest.mark.parametrize("message", TYPED)
def test_what_the_agent_typed_reaches_neither_text_nor_keys(message):
    caption = caption_of(message, 4, ARTIFACTS)
    assert "door opens" not in caption.text
    assert not any("door opens" in key.text for key in caption.keys)


def test_the_game_goes_on_behind_an_engraving():
    assert keys('You read: "xyz".  You hit the newt.')[-1] == ("You hit the newt.", True)


@pytest.mark.parametrize("name", sorted(ARTIFACTS))
def test_names_that_the_game_itself_gives_stay(name):
    assert keys(f"You see here a thing named {name}.") == [(f"You see here a thing named {name}.", True)]


def test_names_of_a_levels_author_stay_where_the_settings_say_so():
    message = raw("You see here a chest named Treasure.")
    assert captioner().captions(message, {})[0].text == "You see here a chest named something."
    assert captioner(kept_names=("Treasure",)).captions(message, {})[0].text == "You see here a chest named Treasure."


def test_lanes_get_their_own_captions_and_silence_is_the_empty_one():
    found = captioner().captions(raw("You die.", "", "It's a wall.", "You die."), {})
    assert [caption.text for caption in found] == ["You die.", "", "It's a wall.", "You die."]
    assert found[1] is EMPTY_TEXT
    assert found[0] is found[3], "the second time comes from the cache"
    assert [caption.text for caption in captioner().captions(raw("", "You die."), {})] == ["", "You die."]


def test_a_message_that_fills_its_line_is_read_whole():
    message = "You " + "x" * 252
    assert captioner().captions(raw(message, "y"), {})[0].text == message


def test_only_blanks_are_no_caption():
    assert captioner().captions(raw("   ", "# "), {}) == [EMPTY_TEXT, EMPTY_TEXT]


@pytest.mark.parametrize(
    "wrong", [{"image": np.zeros((2, 3))}, np.zeros((2, 4)), {"message": np.zeros((2, 256), np.int64)}]
)
def test_an_environment_without_messages_is_told_what_to_do(wrong):
    with pytest.raises(CaptionError, match=r"captioner\.kind"):
        captioner().captions(wrong, {})


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet=st.characters(max_codepoint=255), max_size=255), st.integers(1, 4))
def test_any_bytes_make_a_caption_with_at_most_k_distinct_keys(message, K):
    caption = caption_of(message, K, ARTIFACTS)
    texts = [key.text for key in caption.keys]
    assert len(texts) <= K
    assert len(set(texts)) == len(texts)
    assert all(texts)
    assert bool(caption.text) == bool(texts)


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet="The dor pns.!?[]()\"':#-123", max_size=40))
def test_no_typed_name_leaks_whatever_it_holds(name):
    # NetHack joins blanks in names, so two of them never come.
    name = " ".join(name.split())
    caption = caption_of(f"You see here a sword named Q{name}", 4, ARTIFACTS)
    assert caption.text == "You see here a sword named something."


def test_real_games_speak_and_their_counts_do_not_grow_with_letters_and_numbers():
    env = gym.make("MiniHack-KeyRoom-S5-v0", observation_keys=("message",))
    reader, rng, heard = captioner(), np.random.default_rng(0), set()
    for game in range(4):
        env.unwrapped.seed(game, game, reseed=False)
        observation, _ = env.reset()
        for _ in range(150):
            (caption,) = reader.captions({"message": observation["message"][None]}, {})
            heard |= {key.text for key in caption.keys}
            observation, _, terminated, truncated, _ = env.step(int(rng.integers(env.action_space.n)))
            if terminated or truncated:
                break
    env.close()
    assert "It's a wall." in heard
    assert not any(character.isdigit() for key in heard for character in key)


def test_every_page_of_a_step_is_heard_and_a_game_ends_with_its_last_words():
    env = make_vector_env(
        EnvironmentSettings(id="NetHackScore-v0", kwargs={"character": "tou-hum-neu-fem"}), 2, ("message", "blstats")
    )
    reader, rng = captioner(), np.random.default_rng(0)
    raw, infos = env.reset(seed=3)
    unseen, deaths = set(), 0
    for _ in range(4000):
        raw, _, terminated, _, infos = env.step(rng.integers(0, env.single_action_space.n, 2))
        both = reader.captions(raw, infos)
        alone = reader.captions(raw, {})
        for whole, last in zip(both, alone, strict=True):
            unseen |= {key.text for key in whole.keys} - {key.text for key in last.keys}
            assert last.text in whole.text, "nothing that the last page says is lost"
        for lane in np.flatnonzero(terminated):
            deaths += "You die..." in both[lane].text
            assert "You die..." not in alone[lane].text
        if deaths and len(unseen) > 20:
            break
    env.close()
    assert deaths > 0
    assert len(unseen) > 20, "so many keys would never have been heard"


def test_a_game_that_runs_out_of_time_does_not_speak_of_quitting():
    env = make_vector_env(
        EnvironmentSettings(id="MiniHack-KeyRoom-S5-v0", max_episode_steps=None, kwargs={"max_episode_steps": 5}),
        1,
        ("message", "blstats", "inv_strs", "inv_letters"),
    )
    reader, rng = captioner(), np.random.default_rng(0)
    env.reset(seed=0)
    ends = 0
    for _ in range(60):
        raw, _, _terminated, truncated, infos = env.step(rng.integers(0, 8, 1))
        assert "quit" not in reader.captions(raw, infos)[0].text
        ends += int(truncated[0])
    env.close()
    assert ends >= 8


PIECES = """The door opens.
It's a wall.
What do you want to eat? [fg or ?*]
In what direction?
Never mind.
What do you want to call it? x y
f        a cat (tame kitten)
# pray
This cookie has paper inside.  It reads:
They say it is so.
The voice of Kos booms:   "Thou art arrogant."
"Thou must relearn!"
HP 2(2)
AC 9.
Status of the lichen (neutral):  Level 0  HP 2(2)  AC 9.
You read: "x  y".
a - a sword named x.
An object spills out:
an emerald potion.
The key named The Master Key of Thievery whispers:
You kill it!--More--""".splitlines()


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=4))
def test_one_text_has_one_set_of_keys_however_it_stood_on_pages(pieces):
    told = {}
    for gaps in itertools.product(("  ", "\n"), repeat=len(pieces) - 1):
        message = pieces[0] + "".join(gap + piece for gap, piece in zip(gaps, pieces[1:], strict=True))
        caption = caption_of(message, 4, ARTIFACTS)
        for seen in (caption, caption_of(caption.text, 4, ARTIFACTS)):
            # A caption table refuses one text that comes with two sets of keys: the run would end.
            assert told.setdefault(seen.text, seen.keys) == seen.keys
