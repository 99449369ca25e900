"""The contract of every annotator in the registry."""

from __future__ import annotations

import math

import pytest

from onibi.actors.annotators.registry import ANNOTATORS
from onibi.platform.annotation_desk import AnnotationDesk, AnnotationDeskSettings
from onibi.platform.annotator import AnnotationRequest
from onibi.platform.captions import text_hash
from onibi.platform.config import load_class, read_settings, to_mapping
from onibi.platform.errors import ConfigError
from onibi.platform.fragment import CaptionText, KeyText
from onibi.platform.labels import LabelTable, LabelValue

TEXTS = ["The door opens.", "It's a wall.", "Sphinx of black quartz, judge my vow."]


def make(kind):
    owner = load_class(ANNOTATORS, kind)
    return owner(read_settings(owner.Settings, {"kind": kind}))


def requests(*texts):
    return [AnnotationRequest(key=index, key_text=text, raw_text=f"raw {text}") for index, text in enumerate(texts)]


@pytest.mark.parametrize("kind", ANNOTATORS)
def test_each_request_gets_one_label_in_order_that_says_where_it_came_from(kind):
    annotator = make(kind)
    labels = annotator.annotate(requests(*TEXTS), annotator.goal)
    assert [label.key_text for label in labels] == TEXTS
    for label in labels:
        assert label.key_hash == text_hash(label.key_text)
        assert label.raw_text == f"raw {label.key_text}"
        assert label.value in LabelValue
        assert math.isnan(label.score) if label.value == LabelValue.INVALID else 0 <= label.score <= 1
        assert (label.annotator, label.goal, label.prompt_version) == (kind, annotator.goal, annotator.prompt_version)
        assert label.latency_seconds >= 0
        assert label.reply
    assert len(LabelTable.from_arrow(LabelTable(labels).to_arrow())) == len(TEXTS)
    assert annotator.annotate([], annotator.goal) == []


@pytest.mark.parametrize("kind", ANNOTATORS)
def test_a_second_one_of_the_same_settings_has_the_same_prompt_version(kind):
    assert make(kind).prompt_version == make(kind).prompt_version


@pytest.mark.parametrize("kind", ANNOTATORS)
def test_its_labels_reach_the_reward_table(kind):
    annotator = make(kind)
    desk = AnnotationDesk(
        AnnotationDeskSettings(),
        keys_per_caption=1,
        key_version="k",
        prompt_version=annotator.prompt_version,
        clock=lambda: 0.0,
    )
    desk.intern([CaptionText(text, (KeyText(text),)) for text in TEXTS])
    desk.put(annotator.annotate(desk.take(9), annotator.goal))
    table = desk.table(newer_than=-1)
    assert table.labelled.sum() > 0
    assert desk.statistics()["annotation/unusable_labels"] == 0


@pytest.mark.parametrize("kind", ANNOTATORS)
def test_settings_survive_yaml_and_unknown_keys_are_refused(kind):
    owner = load_class(ANNOTATORS, kind)
    assert read_settings(owner.Settings, to_mapping(owner.Settings())) == owner.Settings()
    with pytest.raises(ConfigError, match="tempo"):
        read_settings(owner.Settings, {"kind": kind, "tempo": 1})
