"""Bags of words by hand."""

from __future__ import annotations

import math

import pytest

from onibi.actors.annotators.similarity import (
    SimilarityAnnotator,
    SimilaritySettings,
    bag_of_words,
    stretched,
    word_cosine,
)
from onibi.platform.annotation.annotator import AnnotationRequest
from onibi.platform.annotation.labels import LabelValue
from onibi.platform.config import read_settings
from onibi.platform.errors import ConfigError


def test_words_are_counted_by_stem_and_stop_words_left_out():
    assert bag_of_words("The doors open: open the DOOR, opened, opening!") == {"door": 2, "open": 4}
    assert bag_of_words("unlocked hitting passed") == {"unlock": 1, "hit": 1, "pass": 1}
    assert bag_of_words("It is for you.") == {}


def test_the_cosine_of_two_bags():
    # (1·2 + 1·1) / (√2 · √(4 + 1 + 4)) = 3 / (√2 · 3)
    found = word_cosine(bag_of_words("open door"), bag_of_words("open open door key key"))
    assert found == pytest.approx(1 / math.sqrt(2))
    assert word_cosine(bag_of_words("door"), bag_of_words("key")) == 0
    assert word_cosine(bag_of_words(""), bag_of_words("key")) == 0
    assert word_cosine(bag_of_words("key"), bag_of_words("keys")) == 1


def test_the_score_meets_one_half_at_the_threshold_and_rises_with_the_cosine():
    assert [stretched(cosine, 0.2) for cosine in (0.0, 0.1, 0.2, 0.6, 1.0)] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert stretched(0.37, 0.5) == pytest.approx(0.37)


def test_captions_that_share_words_with_the_goal_are_helpful():
    annotator = SimilarityAnnotator(SimilaritySettings(goal="Open the door with a key.", threshold=0.5))
    asked = [AnnotationRequest(key=0, key_text=text, raw_text=text) for text in ("The door opens.", "You hit a newt.")]
    door, newt = annotator.annotate(asked, annotator.goal)
    assert (door.value, newt.value) == (LabelValue.HELPFUL, LabelValue.UNHELPFUL)
    assert door.reply == "cosine 0.816, shares: door, open"
    assert newt.reply == "cosine 0.000, shares no word"
    with pytest.raises(ConfigError, match="was asked about"):
        list(annotator.annotate(asked, "win"))


@pytest.mark.parametrize("change", [{"goal": "It is for you."}, {"threshold": 0.0}, {"threshold": 1.0}])
def test_settings_that_cannot_be_are_refused(change):
    with pytest.raises(ConfigError):
        read_settings(SimilaritySettings, change)
