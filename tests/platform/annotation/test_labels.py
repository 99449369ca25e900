from __future__ import annotations

import math
from dataclasses import asdict, replace

import pyarrow as pa
import pytest

from onibi.platform.annotation.captions import text_hash
from onibi.platform.annotation.labels import Label, LabelTable, LabelValue, prompt_hash
from onibi.platform.annotation.recorded_verdicts import read_verdicts
from onibi.platform.errors import CaptionError


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
    assert LabelTable.from_arrow(LabelTable([made]).to_arrow()).valid(made.key_hash) == [made]


def test_the_newest_valid_label_of_a_judge_counts():
    table = LabelTable(
        [label(), label(value=LabelValue.UNHELPFUL), label(value=LabelValue.INVALID), label(prompt="p2")]
    )
    found = [(each.prompt_version, each.value) for each in table.valid(text_hash("The door opens."))]
    assert found == [("p1", LabelValue.UNHELPFUL), ("p2", LabelValue.HELPFUL)]


def test_an_invalid_reply_is_kept_but_is_no_label():
    table = LabelTable([label(value=LabelValue.INVALID)])
    assert (len(table), table.valid(text_hash("The door opens."))) == (1, [])


def test_labels_survive_a_file(tmp_path):
    table = LabelTable(
        [label(), label("It's a wall.", LabelValue.UNHELPFUL), label("?", LabelValue.INVALID, reply="é☃")]
    )
    arrow = table.to_arrow()
    with pa.OSFile(str(tmp_path / "labels.arrow"), "wb") as file, pa.ipc.new_file(file, arrow.schema) as writer:
        writer.write_table(arrow)
    back = list(read_verdicts(tmp_path / "labels.arrow").labels)
    assert math.isnan(back[2].score)
    assert [asdict(one) | {"score": 0} for one in back] == [asdict(one) | {"score": 0} for one in table]
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
    with pytest.raises(CaptionError, match="it needs the fields"):
        LabelTable.from_arrow(good.set_column(0, "key_hash", [["no number"]]))
    (tmp_path / "x.arrow").write_bytes(b"not arrow")
    with pytest.raises(CaptionError, match=r"x\.arrow"):
        read_verdicts(tmp_path / "x.arrow")
    with pytest.raises(CaptionError, match=r"label table, row 0: label of .* score nan"):
        LabelTable.from_arrow(good.set_column(4, good.schema.field(4), [pa.array([math.nan], pa.float32())]))


@pytest.mark.parametrize("score", [-0.1, 1.1, math.nan])
def test_a_valid_label_has_a_score_between_0_and_1(score):
    with pytest.raises(CaptionError, match="outside 0 to 1"):
        label(score=score)


@pytest.mark.parametrize(("value", "score"), [(LabelValue.HELPFUL, 0.3), (LabelValue.UNHELPFUL, 0.6)])
def test_a_verdict_and_a_score_that_say_two_things_are_no_label(value, score):
    with pytest.raises(CaptionError, match=f"{value.value} with score {score}; one of 0.5 or more is helpful"):
        label(value=value, score=score)


def test_a_score_just_below_a_half_survives_the_rounding_of_a_file():
    made = label(value=LabelValue.UNHELPFUL, score=0.49999999)
    (back,) = LabelTable.from_arrow(LabelTable([made]).to_arrow())
    assert (back.value, back.score) == (LabelValue.UNHELPFUL, 0.5)


def test_a_prompt_hash_tells_where_one_part_ends():
    assert prompt_hash("ab", "c") != prompt_hash("a", "bc")
    assert prompt_hash("ab", "c") == prompt_hash("ab", "c")
