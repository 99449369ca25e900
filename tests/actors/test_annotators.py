"""The contract of every annotator in the registry."""

from __future__ import annotations

import math

import pyarrow.parquet as pq
import pytest

from onibi.actors.annotators.registry import ANNOTATORS
from onibi.platform.annotation.annotator import AnnotationRequest, PairRequest, judge_of
from onibi.platform.annotation.captions import text_hash
from onibi.platform.annotation.desk import AnnotationDesk
from onibi.platform.annotation.labels import LabelTable, LabelValue, PreferenceTable, labels_to_arrow
from onibi.platform.annotation.settings import AnnotationSettings
from onibi.platform.config import load_class, read_settings, to_mapping
from onibi.platform.errors import ConfigError
from onibi.platform.fragment import CaptionText, KeyText

TEXTS = ["The door opens.", "It's a wall.", "Sphinx of black quartz, judge my vow."]


JUDGES = [kind for kind in ANNOTATORS if kind not in ("auto", "custom")]  # test_auto.py, test_annotation_worker.py
NEEDED: dict[str, dict[str, object]] = {}  # what the settings of a kind cannot do without


@pytest.fixture(autouse=True)
def needed(request, language_server):
    NEEDED["openai"] = {"base_url": language_server.url, "model": "m"}
    if request.node.callspec.params.get("kind") == "transformers":
        NEEDED["transformers"] = {"model": request.getfixturevalue("tiny_language_model"), "least_word_share": 1e-6}


def make(kind):
    owner = load_class(ANNOTATORS, kind)
    return owner(read_settings(owner.Settings, {"kind": kind, **NEEDED.get(kind, {})}))


@pytest.fixture(autouse=True, scope="module")
def recorded(tmp_path_factory):
    """Labels for `replay` to give again."""
    path = tmp_path_factory.mktemp("recorded") / "labels.parquet"
    lexicon = make("lexicon")
    pq.write_table(labels_to_arrow(lexicon.annotate(requests(*TEXTS), lexicon.goal)), path)
    NEEDED["replay"] = {"path": str(path)}


def requests(*texts):
    return [AnnotationRequest(key=index, key_text=text, raw_text=f"raw {text}") for index, text in enumerate(texts)]


@pytest.mark.parametrize("kind", JUDGES)
def test_each_request_gets_one_label_that_says_where_it_came_from(kind):
    annotator = make(kind)
    labels = list(annotator.annotate(requests(*TEXTS), annotator.goal))
    assert sorted(label.key_text for label in labels) == sorted(TEXTS)
    for label in labels:
        assert label.judge == judge_of(annotator)
        if label.value != LabelValue.INVALID:
            assert (label.score >= 0.5) == (label.value == LabelValue.HELPFUL)
        assert label.key_hash == text_hash(label.key_text)
        assert label.raw_text == f"raw {label.key_text}"
        assert label.value in LabelValue
        assert math.isnan(label.score) if label.value == LabelValue.INVALID else 0 <= label.score <= 1
        assert (label.annotator, label.goal, label.prompt_version) == (kind, annotator.goal, annotator.prompt_version)
        assert label.latency_seconds >= 0
        assert label.reply
    assert len(LabelTable.from_arrow(LabelTable(labels).to_arrow())) == len(TEXTS)
    assert list(annotator.annotate([], annotator.goal)) == []
    annotator.close()


@pytest.mark.parametrize("kind", JUDGES)
def test_each_pair_gets_one_preference_that_says_where_it_came_from(kind):
    annotator = make(kind)
    first, second, third = requests(*TEXTS)
    pairs = [PairRequest(first=first, second=second), PairRequest(first=third, second=first)]
    preferences = list(annotator.prefer(pairs, annotator.goal))
    asked = {(text_hash(pair.first.key_text), text_hash(pair.second.key_text)) for pair in pairs}
    assert {(preference.first_hash, preference.second_hash) for preference in preferences} == asked
    for preference in preferences:
        assert preference.judge == judge_of(annotator)
        assert (text_hash(preference.first_text), text_hash(preference.second_text)) in asked
    back = PreferenceTable.from_arrow(PreferenceTable(preferences).to_arrow())
    assert len(back) == len(pairs)
    annotator.close()


@pytest.mark.parametrize("kind", JUDGES)
def test_its_figures_are_numbers(kind):
    assert all(isinstance(value, float) for value in make(kind).statistics().values())


@pytest.mark.parametrize("kind", JUDGES)
def test_a_second_one_of_the_same_settings_has_the_same_prompt_version(kind):
    assert make(kind).prompt_version == make(kind).prompt_version


@pytest.mark.parametrize("kind", JUDGES)
def test_its_labels_reach_the_reward_table(kind):
    annotator = make(kind)
    desk = AnnotationDesk(
        AnnotationSettings(),
        keys_per_caption=1,
        key_version="k",
        judges=[judge_of(annotator)],
        clock=lambda: 0.0,
    )
    desk.intern([CaptionText(text, (KeyText(text),)) for text in TEXTS])
    desk.put(annotator.annotate(desk.take(9), annotator.goal))
    table = desk.table(newer_than=-1)
    assert table.labelled.sum() > 0
    assert desk.statistics()["annotation/unusable_labels"] == 0
    annotator.close()


@pytest.mark.parametrize("kind", JUDGES)
def test_settings_survive_yaml_and_unknown_keys_are_refused(kind):
    owner = load_class(ANNOTATORS, kind)
    given = owner.Settings(**NEEDED.get(kind, {}))
    assert read_settings(owner.Settings, to_mapping(given)) == given
    with pytest.raises(ConfigError, match="tempo"):
        read_settings(owner.Settings, {"kind": kind, "tempo": 1})
