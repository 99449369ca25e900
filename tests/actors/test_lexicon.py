from __future__ import annotations

import re

import pytest
import yaml

from onibi.actors.annotators.lexicon import LEXICON_FOLDER, LexiconAnnotator, LexiconSettings, read_lexicon
from onibi.actors.captioners.nethack import ARTIFACTS, caption_of
from onibi.platform.annotation.annotator import AnnotationRequest
from onibi.platform.annotation.labels import LabelValue
from onibi.platform.errors import ConfigError

NETHACK = read_lexicon(LEXICON_FOLDER / "nethack.yaml")


def verdicts(message):
    """Verdict of each key of a raw message, as a run would ask for it."""
    keys = caption_of(message, 4, ARTIFACTS).keys
    return [NETHACK.judge(key.text)[0].value if key.askable else "never asked" for key in keys]


# Messages as NLE 1.3.0 and MiniHack 1.0.2 showed them to random players.
SEEN_HELPFUL = """
You see here a key named The Master Key of Thievery.
g - a key named The Master Key of Thievery.
This door is locked.
The door opens.
As you kick the door, it crashes open!
There is an open door here.
You find a hidden door.
You find a hidden passage.
You push the boulder into the water.  Now you can cross it!
With great effort you move the boulder.
You kill the newt!
You kill it!
You destroy the kobold zombie!
You hit the giant rat!
You hit the stone giant!
You kick the grid bug.
You feel tough!
You pull free from the lichen.
Your movements are now unencumbered.
This orange is delicious!
You finish eating the food ration.
You're finally finished.
You finish your dressing maneuver.
e - an uncursed +0 leather armor (being worn).
a - a +1 club (weapon in hand).
$ - 23 gold pieces.
$ - a gold piece.
f - a short wand.
i - a scroll labeled THARR.
j - a spherical amulet.
g - a brown potion.
i - a club.
g - a crude dagger.
j - a robe.
k - a stethoscope.
i - 2 tripe rations.
i - 2 candy bars.
k - a slime mold.
j - a green gem.
c - 2 uncursed flint stones.
You see here a food ration.
You see here an apple.
You see here a large box.
You see here a cyan spellbook.
You see here an orcish helm.
You see here a pair of snow boots.
You see here an oil lamp.
You see here a gold piece.
You see here an octagonal amulet.
There is an altar to Ishtar (neutral) here.
There are several objects here.
"""

SEEN_UNHELPFUL = """
Never mind.
What a strange direction!
You stop.
You stop.  Your kitten is in the way!
You stop at the edge of the lava.
A little dog blocks your path.
You swap places with your kitten.
Hello Agent, welcome to NetHack!  You are a chaotic male human Rogue.
Salutations Agent, welcome to NetHack!  You are a lawful female human Knight.
There is nothing here to pick up.
The stairs are solidly fixed to the floor.
There is a staircase up here.
It won't come off the hinges.
You can't go down here.
You cannot eat that!
You don't have anything to zap.
You kick at empty space.
Ouch!  That hurts!
Dumb move!  You strain a muscle.
WHAMMM!!!
The door resists!
That door is closed.
You see no door there.
You try to move the boulder, but in vain.  Perhaps that's why you cannot move it.
It sinks without a trace!
You try to crawl out of the water.  Pheew!  That was close.
You miss the giant rat.  The giant rat bites!
The giant rat just misses!
You attack thin air.
You hit the kitten!
You kick the little dog.
You harmlessly attack the closed door.
The grid bug bites!  You get zapped!
The newt suddenly disappears!
You cannot escape from the lichen!  The lichen touches you!
You are hit by a crude dagger.
You suddenly feel weaker!
You escape a teleportation trap.
A bear trap closes on your foot!
The newt is killed!
The kitten picks up a key.
The little dog drops a gold piece.
You hear the footsteps of a guard on patrol.
You hear a door open.
You faint from lack of food.  You regain consciousness.
You are beginning to feel hungry.
Your leg feels better.
Blecch!  Rotten food!
You feel rather light headed.
You're having a hard time getting all of it down.
You drop a +1 club.
g - 31 uncursed rocks.
i - a giant rat corpse.
You see here a lichen corpse.
You see here a rock.
You have a little trouble lifting h - a scroll labeled TEMOV.
Your movements are slowed slightly because of your load.
c - an uncursed flint stone (in quiver pouch).
Moving: A - a +1 club (weapon in hand).
f - an ebony wand (weapon in hand).
a - a cursed +1 club (weapon in hand).
Your club is welded to your hand!
Your armor turns to dust and falls to the floor!
Your jackal corpse rots away.
You feel that Ishtar is displeased.
You finish your prayer.
"Thou must relearn thy lessons!"  You feel foolish!
Nothing happens.
Having fun sitting on the floor?
You sit on the stairs.
Your face is already clean.
The options are already set perfectly for you!
Your wallet is empty.
You read: "ad ae?a???n".
They say that shopkeepers are insured by Croesus himself!
There is a doorway here.
There is a fountain here.
Core dumped.
"""

SEEN_NEVER_ASKED = """
It's a wall.
It's solid stone.
In what direction?
What do you want to eat? [fghi or ?*]
Really attack the little dog? [yn] (n)
Are you sure you want to pray? [yn] (n) n
Unknown command '^M'.
You can't move diagonally into an intact doorway.
"""

# Messages that NetHack 3.6 gives where no random player of ours came.
KNOWN_HELPFUL = """
You succeed in unlocking the door.
You succeed in picking the lock.
There is a staircase down here.
You fall through...
A trap door opens up under you!
Welcome to experience level 2.
You feel more confident in your fighting skills.
You feel much better.
You are surrounded by a shimmering light.
You feel a hopeful feeling.
A map coalesces in your mind!
Your long sword glows blue for a moment.
You float up, out of the pit!
The lava cools and solidifies.
The dagger hits the newt.
You disarm the trap.
You carefully open the chest...
You enter an opulent throne room!
Welcome to David's treasure zoo!
"Hello, Agent!  Welcome to Asidonhopo's general store!"
"""

KNOWN_UNHELPFUL = """
Oh wow!  Everything looks so cosmic!
You are freaked out.
You murderer!
You succeed in locking the door.
The door closes.
You fall into a pit!
You choke over your food.
You vomit.
You land on a set of sharp iron spikes!
Thief!
It is cursed.
You die...
"""


def lines(block):
    return [line for line in block.splitlines() if line]


@pytest.mark.parametrize("message", lines(SEEN_HELPFUL) + lines(KNOWN_HELPFUL))
def test_progress_is_helpful(message):
    assert "helpful" in verdicts(message)


@pytest.mark.parametrize("message", lines(SEEN_UNHELPFUL) + lines(KNOWN_UNHELPFUL))
def test_no_part_of_what_is_no_progress_is_helpful(message):
    assert "helpful" not in verdicts(message)


@pytest.mark.parametrize("message", lines(SEEN_NEVER_ASKED))
def test_nobody_is_asked_about_bumps_and_prompts(message):
    assert verdicts(message) == ["never asked"]


def test_the_nethack_lexicon_has_80_rules_or_more_and_none_hides_another_of_the_same_words():
    patterns = [rule.pattern.pattern for rule in NETHACK.rules]
    assert len(patterns) >= 80
    assert len(set(patterns)) == len(patterns)
    assert {rule.value for rule in NETHACK.rules} == {LabelValue.HELPFUL, LabelValue.UNHELPFUL}


def test_bumps_are_judged_unhelpful_by_a_rule_should_anybody_ask():
    for key in ("It's a wall.", "You stop.", "Never mind.", "Dumb move!", "Everything looks so cosmic!"):
        value, reply = NETHACK.judge(key)
        assert (value, reply.startswith("rule ")) == (LabelValue.UNHELPFUL, True)


def written(folder, **changes):
    document = {
        "goal": "Win.",
        "unmatched": "unhelpful",
        "rules": [
            {"match": "^You win", "label": "helpful", "why": "won"},
            {"match": "win", "label": "unhelpful", "why": "others"},
        ],
        **changes,
    }
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in document.items() if value is not None}))
    return path


def judged(path, key, **settings):
    annotator = LexiconAnnotator(LexiconSettings(lexicon=str(path), **settings), clock=lambda: 42.0)
    (label,) = annotator.annotate([AnnotationRequest(key=0, key_text=key, raw_text=key)], annotator.goal)
    return label


def test_changes_on_the_map_and_in_the_pack_are_judged_too():
    helpful = (
        "A door opens.",
        "A door breaks.",
        "Water turns into ground.",
        "A boulder moves.",
        "Stairs down come into view.",
        "You come to a level deeper than any before.",
        "You gain a key named The Master Key of Thievery.",
        "You gain # of # gold pieces.",
        "You now have a # dagger (weapon in hand).",
    )
    unhelpful = (
        "A door closes.",
        "You come to a level that is not deeper.",
        "You gain # of # rocks.",
        "You gain a newt corpse.",
        "You lose a food ration.",
        "You now have a potion of water.",
    )
    assert {key: NETHACK.judge(key)[0].value for key in helpful} == dict.fromkeys(helpful, "helpful")
    assert {key: NETHACK.judge(key)[0].value for key in unhelpful} == dict.fromkeys(unhelpful, "unhelpful")


def test_the_first_rule_that_matches_decides(tmp_path):
    path = written(tmp_path)
    assert (judged(path, "You win!").value, judged(path, "You win!").reply) == ("helpful", "rule 1: won")
    assert (judged(path, "They win!").value, judged(path, "They win!").reply) == ("unhelpful", "rule 2: others")


@pytest.mark.parametrize("unmatched", ["helpful", "unhelpful", "invalid"])
def test_a_key_that_no_rule_matches_gets_the_default_of_the_file_or_of_the_settings(tmp_path, unmatched):
    label = judged(written(tmp_path, unmatched=unmatched), "Sphinx")
    assert (label.value, label.reply, label.time_seconds) == (unmatched, "no rule matches", 42.0)
    assert judged(written(tmp_path), "Sphinx", unmatched=unmatched).value == unmatched


def test_the_prompt_version_changes_with_the_verdicts_and_not_with_words_or_place(tmp_path):
    def version(path, **settings):
        return LexiconAnnotator(LexiconSettings(lexicon=str(path), **settings)).prompt_version

    first = version(written(tmp_path))
    reworded = [
        {"match": "^You win", "label": "helpful", "why": "hurrah"},
        {"match": "win", "label": "unhelpful", "why": "no"},
    ]
    assert version(written(tmp_path, rules=reworded)) == first
    assert version(written(tmp_path, rules=reworded[::-1])) != first
    assert version(written(tmp_path, goal="Lose.")) != first
    assert version(written(tmp_path), unmatched="invalid") != first


def test_a_goal_that_the_rules_were_not_written_for_is_refused(tmp_path):
    path = written(tmp_path)
    assert judged(path, "You win!", goal="Win.").value == "helpful"
    with pytest.raises(ConfigError, match="'Lose'"):
        judged(path, "You win!", goal="Lose")
    with pytest.raises(ConfigError, match="'Lose'"):
        list(LexiconAnnotator(LexiconSettings(lexicon=str(path))).annotate([], "Lose"))


def test_all_ones_pays_everything_that_is_heard():
    assert judged("all_ones", "Sphinx").value == "helpful"


@pytest.mark.parametrize("path", sorted(LEXICON_FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_lexicon_is_sound(path):
    assert read_lexicon(path).goal


RULE = {"match": "x", "label": "helpful", "why": "w"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rules": [RULE, {**RULE, "match": "a(b"}]}, r"rule 2: pattern 'a\(b' is broken at position 1: missing \)"),
        ({"rules": [{**RULE, "match": "a|"}]}, "rule 1: pattern 'a|' matches everything"),
        ({"rules": [{**RULE, "label": "good"}]}, "rule 1: label is 'good'; allowed are helpful, unhelpful"),
        ({"rules": [{**RULE, "why": ""}]}, "rule 1: why is ''"),
        ({"rules": [{**RULE, "match": 3}]}, "rule 1: match is 3"),
        (
            {"rules": [{"match": "x", "label": "helpful"}]},
            "rule 1: found ['label', 'match'], expected the keys match, label, why",
        ),
        ({"rules": ["x"]}, "rule 1: found str"),
        ({"rules": "x"}, "rules is str"),
        ({"goal": None}, "goal is None"),
        ({"unmatched": "maybe"}, "unmatched is 'maybe'; allowed are helpful, unhelpful, invalid"),
        ({"rulse": []}, "unknown key 'rulse'"),
    ],
)
def test_a_fault_in_a_lexicon_names_file_rule_and_place(tmp_path, changes, message):
    path = written(tmp_path, **changes)
    with pytest.raises(ConfigError, match=re.escape(message) if "\\" not in message else message) as caught:
        read_lexicon(path)
    assert str(path) in str(caught.value)


def test_all_faults_of_a_lexicon_are_told_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        read_lexicon(written(tmp_path, goal="", rules=[{**RULE, "match": "["}, {**RULE, "label": "x"}]))
    for part in ("goal is ''", "rule 1:", "rule 2:"):
        assert part in str(caught.value)


@pytest.mark.parametrize("content", [b"rules: [", b"- a\n- b\n", b"", b"\xff\xfe\x00"])
def test_a_file_that_is_no_lexicon_is_refused_by_name(tmp_path, content):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"mine\.yaml"):
        read_lexicon(path)


def test_an_unknown_lexicon_is_an_error_that_names_the_shipped_ones():
    with pytest.raises(ConfigError, match="all_ones, corridor, minigrid, nethack"):
        LexiconAnnotator(LexiconSettings(lexicon="netheck"))
