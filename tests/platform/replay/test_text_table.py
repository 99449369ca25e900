"""The table that holds what the hashes of Text columns stand for."""

from __future__ import annotations

import pyarrow as pa
import pytest

from onibi.platform.annotation.captions import text_hash
from onibi.platform.errors import SpecError
from onibi.platform.replay import text_table
from onibi.platform.replay.text_table import TextTable


def test_each_text_goes_out_as_new_once_and_the_empty_one_never():
    texts = TextTable()
    assert texts.intern(["a", "", "b", "a"]).tolist() == [text_hash("a"), 0, text_hash("b"), text_hash("a")]
    assert texts.take_new()["text"].to_pylist() == ["a", "b"]
    texts.intern(["b", "c"])
    assert texts.take_new()["text"].to_pylist() == ["c"]
    assert (len(texts), texts[text_hash("b")], texts[0]) == (3, "b", "")


def test_tables_of_two_actors_merge_and_survive_an_arrow_file(tmp_path):
    one, other = TextTable(), TextTable()
    one.intern(["find the key", "open"])
    other.intern(["open", "Ω naïve ☃"])
    one.merge(other.to_arrow())
    with pa.OSFile(str(tmp_path / "texts.arrow"), "wb") as sink, pa.ipc.new_file(sink, one.to_arrow().schema) as file:
        file.write_table(one.to_arrow())
    with pa.ipc.open_file(str(tmp_path / "texts.arrow")) as file:
        again = TextTable.from_arrow(file.read_all())
    assert again.to_arrow().equals(one.to_arrow())
    assert again[text_hash("Ω naïve ☃")] == "Ω naïve ☃"
    assert again.take_new().num_rows == 0


def test_two_texts_of_one_hash_are_an_error_and_not_one_text(monkeypatch):
    monkeypatch.setattr(text_table, "text_hash", lambda text: 7)
    texts = TextTable()
    texts.intern(["left"])
    with pytest.raises(SpecError, match="'left' and 'right' have one hash"):
        texts.intern(["right"])


@pytest.mark.parametrize("wrong", [3, None, b"bytes"])
def test_what_is_no_text_is_refused(wrong):
    with pytest.raises(SpecError, match="must be a str"):
        TextTable().intern([wrong])


def test_text_that_no_file_can_hold_is_refused_by_the_actor_that_brings_it():
    with pytest.raises(SpecError, match="lone surrogates"):
        TextTable().intern(["\ud800"])


def test_table_with_a_wrong_hash_or_without_texts_is_refused():
    wrong = pa.table({"text_hash": pa.array([1], pa.uint64()), "text": ["a"]})
    with pytest.raises(SpecError, match="the table says 0x0000000000000001"):
        TextTable.from_arrow(wrong)
    with pytest.raises(SpecError, match="holds no texts"):
        TextTable.from_arrow(pa.table({"x": [1]}))
