from __future__ import annotations

import math
from dataclasses import replace

import pyarrow as pa
import pytest

from onibi.platform.captions import text_hash
from onibi.platform.errors import CaptionError
from onibi.platform.labels import Label, LabelTable, LabelValue, prompt_hash


def label(key="The door opens.", value=LabelValue.HELPFUL, prompt="p1", **changes):
    score = {LabelValue.HELPFUL: 1.0, LabelValue.UNHELPFUL: 0.0, LabelValue.INVALID: math.nan}[value]
    made = Label(
        key_hash=text_hash(key),
        key_text=key,
        raw_text=key,
        value=value,
        score=score,
        annotator="lexicon",
        model="nethack",
        prompt_version=prompt,
        goal="win",
        latency_seconds=0.5,
        tokens=12,
        reply="yes",
        time_seconds=1e9,
    )
    return replace(made, **changes)


def test_half_a_surrogate_pair_in_a_reply_is_stored_as_a_question_mark():
    made = label(reply="helpful \ud83d!")
    assert made.reply == "helpful ?!"
    assert LabelTable.from_arrow(LabelTable([made]).to_arrow()).get(made.key_hash, "p1") == made


def test_the_newest_valid_label_of_a_prompt_counts():
    table = LabelTable(
        [label(), label(value=LabelValue.UNHELPFUL), label(value=LabelValue.INVALID), label(prompt="p2")]
    )
    assert table.get(text_hash("The door opens."), "p1").value == LabelValue.UNHELPFUL
    assert table.get(text_hash("The door opens."), "p2").value == LabelValue.HELPFUL
    assert table.get(text_hash("The door opens."), "p3") is None
    assert table.get(text_hash("The door opens."), None).prompt_version == "p2"
    assert [table.count(value) for value in LabelValue] == [2, 1, 1]


def test_an_invalid_reply_is_kept_but_is_no_label():
    table = LabelTable([label(value=LabelValue.INVALID)])
    assert (len(table), table.get(text_hash("The door opens."), None)) == (1, None)


def test_labels_survive_a_file(tmp_path):
    table = LabelTable(
        [label(), label("It's a wall.", LabelValue.UNHELPFUL), label("?", LabelValue.INVALID, reply="é☃")]
    )
    arrow = table.to_arrow()
    with pa.OSFile(str(tmp_path / "labels.arrow"), "wb") as file, pa.ipc.new_file(file, arrow.schema) as writer:
        writer.write_table(arrow)
    back = list(LabelTable.read(tmp_path / "labels.arrow"))
    assert math.isnan(back[2].score)
    assert [replace(one, score=0) for one in back] == [replace(one, score=0) for one in table]
    assert [one.score for one in back[:2]] == [1.0, 0.0]


def test_what_is_no_label_table_is_refused_with_its_place(tmp_path):
    good = LabelTable([label()]).to_arrow()
    at = good.column_names.index("value")
    with pytest.raises(CaptionError, match="'maybe' is unknown"):
        LabelTable.from_arrow(good.set_column(at, good.schema.field(at), [["maybe"]]))
    with pytest.raises(CaptionError, match="does not fit the key"):
        LabelTable.from_arrow(good.set_column(1, good.schema.field(1), [["The door closes."]]))
    with pytest.raises(CaptionError, match="'reply'"):
        LabelTable.from_arrow(good.drop_columns(["reply"]))
    with pytest.raises(CaptionError, match="a label table has the fields"):
        LabelTable.from_arrow(good.set_column(0, "key_hash", [["no number"]]))
    (tmp_path / "x.arrow").write_bytes(b"not arrow")
    with pytest.raises(CaptionError, match=r"x\.arrow"):
        LabelTable.read(tmp_path / "x.arrow")
    with pytest.raises(CaptionError, match=r"none\.arrow"):
        LabelTable.read(tmp_path / "none.arrow")


@pytest.mark.parametrize("score", [-0.1, 1.1, math.nan])
def test_a_valid_label_has_a_score_between_0_and_1(score):
    with pytest.raises(CaptionError, match="outside 0 to 1"):
        label(score=score)


def test_a_prompt_hash_tells_where_one_part_ends():
    assert prompt_hash("ab", "c") != prompt_hash("a", "bc")
    assert prompt_hash("ab", "c") == prompt_hash("ab", "c")
