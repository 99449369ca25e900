"""The embedding annotator: its formula by hand, its examples, and the captions of KeyRoom by the preset's goal."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from onibi.actors.annotators.embedding import (
    EmbeddingAnnotator,
    EmbeddingSettings,
    goal_sentences,
    proximity,
    spoken,
)
from onibi.actors.annotators.lexicon import LexiconAnnotator, LexiconSettings
from onibi.platform.annotation.annotator import AnnotationRequest
from onibi.platform.annotation.labels import LabelValue
from onibi.platform.config import read_settings
from onibi.platform.errors import ConfigError

PRESET = Path(__file__).resolve().parents[2] / "clusters" / "presets" / "minihack-oni.yaml"


def judged(annotator, *keys):
    asked = [AnnotationRequest(key=index, key_text=key, raw_text=key) for index, key in enumerate(keys)]
    return {label.key_text: label for label in annotator.annotate(asked, annotator.goal)}


def test_the_score_is_the_logistic_of_the_cosines_difference():
    assert proximity(0.5, 0.5, 0.05) == 0.5
    assert proximity(0.55, 0.5, 0.05) == pytest.approx(1 / (1 + math.exp(-1)))
    assert proximity(-1.0, 1.0, 1e-9) == pytest.approx(0.0, abs=1e-20)  # and no overflow


def test_keys_are_read_as_sentences():
    assert spoken("* - # arrows (in quiver).") == "You have some arrows (in quiver)."
    assert spoken("You read [...]") == "You read "
    assert goal_sentences("Find the key.  Open\nthe door; go!") == ["Find the key.", "Open the door;", "go!"]


def test_near_the_goal_is_helpful_and_the_reply_says_what_it_was_near_to():
    annotator = EmbeddingAnnotator(EmbeddingSettings(goal="Open the door. Eat an apple.", threshold=0.5))
    labels = judged(annotator, "The door opens.", "Never mind.", "You eat the apple.")
    assert {key: label.value for key, label in labels.items()} == {
        "The door opens.": LabelValue.HELPFUL,
        "Never mind.": LabelValue.UNHELPFUL,
        "You eat the apple.": LabelValue.HELPFUL,
    }
    assert "near 'Open the door.'" in labels["The door opens."].reply
    assert "near 'Eat an apple.'" in labels["You eat the apple."].reply


def test_a_bad_example_takes_what_is_nearer_to_it_and_a_good_one_adds_what_the_goal_does_not_name():
    goal, keys = "Find gold.", ("You find # gold pieces.", "You hear someone counting gold coins.", "You eat a plum.")
    examples = {"good": ("You eat a pear.",), "bad": ("You hear someone counting money.",)}
    plain = judged(EmbeddingAnnotator(EmbeddingSettings(goal=goal)), *keys)
    taught = judged(EmbeddingAnnotator(EmbeddingSettings(goal=goal, **examples)), *keys)
    helpful = LabelValue.HELPFUL
    assert [label.value == helpful for label in plain.values()] == [True, True, False]
    assert [label.value == helpful for label in taught.values()] == [True, False, True]


def test_the_batch_that_a_key_was_asked_in_does_not_change_its_label():
    settings = EmbeddingSettings()
    keys = [f"You see here {count} gold pieces and a wand." for count in range(150)]
    together = judged(EmbeddingAnnotator(settings), *keys)
    alone = EmbeddingAnnotator(settings)
    for key in keys[::50]:
        assert judged(alone, key)[key].score == together[key].score


@pytest.mark.parametrize(
    "change",
    [{"goal": "Win."}, {"good": ("A.",)}, {"bad": ("A.",)}, {"threshold": 0.41}, {"temperature": 0.06}],
)
def test_all_that_shapes_a_verdict_is_in_the_prompt_version(change):
    before = EmbeddingAnnotator(EmbeddingSettings()).prompt_version
    assert EmbeddingAnnotator(EmbeddingSettings(**change)).prompt_version != before
    moved = EmbeddingAnnotator(EmbeddingSettings(good=("A.", "B.")))
    assert moved.prompt_version != EmbeddingAnnotator(EmbeddingSettings(good=("A.",), bad=("B.",))).prompt_version


def test_another_goal_is_refused():
    with pytest.raises(ConfigError, match="was asked about 'win'"):
        list(EmbeddingAnnotator(EmbeddingSettings()).annotate([], "win"))


@pytest.mark.parametrize(
    ("setting", "value", "found"),
    [("goal", " ", "goal is empty"), ("threshold", 1.5, "it is a cosine"), ("temperature", 0.0, "above 0"),
     ("bad", [""], "bad has an empty example")],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(setting, value, found):
    with pytest.raises(ConfigError, match=found):
        read_settings(EmbeddingSettings, {setting: value})


# All askable keys that a DQN met in KeyRoom-S5, as the lexicon `nethack` judges them but for the last one, on which the
# two differ: it comes with every unlocking.
KEYROOM = {
    "This door is locked.": True,
    "You see here a key named The Master Key of Thievery.": True,
    "* - a key named The Master Key of Thievery.": True,
    "You succeed in unlocking the door.": True,
    "The door opens.": True,
    "The door resists!": False,
    "It won't come off the hinges.": False,
    "There is nothing here to pick up.": False,
    "The stairs are solidly fixed to the floor.": False,
    "There is a staircase up here.": False,
    "The key named The Master Key of Thievery whispers something.": True,
}


def test_the_presets_goal_judges_keyrooms_captions_as_the_lexicon_does():
    chosen = yaml.safe_load(PRESET.read_text())["annotator"]["embedding"]
    labels = judged(EmbeddingAnnotator(read_settings(EmbeddingSettings, chosen)), *KEYROOM)
    assert {key: label.value == LabelValue.HELPFUL for key, label in labels.items()} == KEYROOM
    scores = {key: label.score for key, label in labels.items()}
    assert min(scores[key] for key in KEYROOM if KEYROOM[key]) > 0.7
    assert max(scores[key] for key in KEYROOM if not KEYROOM[key]) < 0.3
    lexicon = LexiconAnnotator(LexiconSettings())
    assert {key for key, label in judged(lexicon, *KEYROOM).items() if label.value != labels[key].value} == {
        "The key named The Master Key of Thievery whispers something."
    }
