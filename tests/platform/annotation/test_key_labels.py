from __future__ import annotations

from onibi.platform.annotation.captions import CaptionTable, text_hash
from onibi.platform.annotation.key_labels import KeyLabels, labelled_keys
from onibi.platform.annotation.labels import Judge, Label, LabelValue
from onibi.platform.fragment import CaptionText, KeyText

OURS, ANOTHERS = Judge("p", "m", "win"), Judge("q", "m", "win")


def label(text, seconds, judge=OURS, vote=0):
    return Label(
        key_hash=text_hash(text),
        key_text=text,
        raw_text=text,
        value=LabelValue.HELPFUL,
        score=1.0,
        annotator="test",
        model=judge.model,
        prompt_version=judge.prompt_version,
        goal=judge.goal,
        latency_seconds=0.0,
        tokens=0,
        reply="",
        time_seconds=seconds,
        vote=vote,
    )


def test_labelled_keys_stand_in_their_order_and_tell_when_the_newest_label_of_each_came():
    captions, keys = CaptionTable(1, "k1"), KeyLabels([OURS], votes=2, any_prompt=True)
    for text in ("door", "newt", "wall", "lamp"):
        captions.intern([CaptionText(text, (KeyText(text, True),))])
        keys.append(True, ())
    for key, given in (
        (2, label("wall", 10.0)),
        (0, label("door", 20.0)),
        (1, label("newt", 30.0)),
        (2, label("wall", 40.0, vote=1)),
        (0, label("door", 50.0, ANOTHERS)),  # does not count beside one of ours
    ):
        keys.add(key, given)
    data = labelled_keys(captions, keys, (), version=1)
    assert data.label_key.tolist() == [0, 1, 2]
    assert data.label_seconds.tolist() == [20.0, 30.0, 40.0]
