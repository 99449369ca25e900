from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onibi.platform.annotation import captions as module
from onibi.platform.annotation.captions import NO_KEY, CaptionTable, printable, text_hash
from onibi.platform.errors import CaptionError
from onibi.platform.fragment import CaptionText, KeyText

NEWT = CaptionText("You kill the newt!  g - 3 rocks.", (KeyText("You kill the newt!"), KeyText("* - # rocks.")))
WALL = CaptionText("It's a wall.", (KeyText("It's a wall.", askable=False),))
EMPTY = CaptionText("", ())


def test_the_hash_of_a_text_is_the_same_in_every_process_and_version():
    # Stored captions and labels are found again by it. Bytes from: printf 'The door opens.' | b2sum -l 64
    assert text_hash("The door opens.").to_bytes(8, "little").hex() == "37051e6fce412a82"
    assert text_hash("") == 0


@settings(deadline=None)
@given(st.text(min_size=1))
def test_only_the_empty_text_hashes_to_0(text):
    assert 0 < text_hash(text) < 1 << 64


def test_equal_captions_get_one_index_and_the_empty_one_gets_0():
    table = CaptionTable(4, "test-1")
    assert table.intern([NEWT, EMPTY, WALL, NEWT]).tolist() == [1, 0, 2, 1]
    assert table.intern([WALL]).tolist() == [2]
    assert table.intern([]).dtype == np.uint32
    assert table.caption_keys.tolist() == [[-1, -1, -1, -1], [0, 1, -1, -1], [2, -1, -1, -1]]
    assert table.askable.tolist() == [True, True, False]
    assert table.example(1) == NEWT.text


def test_an_index_keeps_its_meaning_while_the_table_grows():
    table = CaptionTable(3, "test-1")
    captions = [CaptionText(f"line {i}", (KeyText(f"key {i % 700}"), KeyText(f"odd {i}"))) for i in range(2_000)]
    first = table.intern(captions[:100])
    early = table.caption_keys
    rest = table.intern(captions)
    assert rest[:100].tolist() == first.tolist()
    assert np.array_equal(early, table.caption_keys[: len(early)])
    for caption, index in zip(captions, rest.tolist(), strict=True):
        keys = table.caption_keys[index]
        assert table.caption(index) == caption
        assert tuple(table.key(key) for key in keys[keys != NO_KEY]) == caption.keys


def test_two_texts_with_one_hash_are_refused_not_merged(monkeypatch):
    monkeypatch.setattr(module, "text_hash", lambda text: 77 if text else 0)
    table = CaptionTable(4, "test-1")
    table.intern([CaptionText("a", ())])
    with pytest.raises(CaptionError, match="two captions have the hash 0x000000000000004d: 'a' and 'b'"):
        table.intern([CaptionText("b", ())])


def test_two_keys_with_one_hash_are_refused_not_merged(monkeypatch):
    monkeypatch.setattr(module, "text_hash", lambda text: 5 if text.startswith("key") else len(text))
    table = CaptionTable(4, "test-1")
    with pytest.raises(CaptionError, match="two keys have the hash"):
        table.intern([CaptionText("ab", (KeyText("key 1"), KeyText("key 2")))])


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        (CaptionText(NEWT.text, (KeyText("You kill the newt!"),)), "was interned with"),
        (CaptionText("other", (KeyText("It's a wall.", askable=True),)), "askable=True"),
        (CaptionText("many", tuple(KeyText(str(i)) for i in range(5))), "has 5 keys, this run stores 4"),
        (CaptionText("hollow", (KeyText(""),)), "empty key"),
    ],
)
def test_a_caption_that_contradicts_the_table_is_refused(caption, message):
    table = CaptionTable(4, "test-1")
    table.intern([NEWT, WALL])
    with pytest.raises(CaptionError, match=message):
        table.intern([caption])


def test_an_unknown_index_is_refused():
    table = CaptionTable(4, "test-1")
    table.intern([NEWT])
    for call in (table.caption, table.key, table.example, lambda i: table.keys_of(np.array([i]))):
        with pytest.raises(CaptionError):
            call(99)
        with pytest.raises(CaptionError):
            call(-1)


def test_sightings_count_rows_for_captions_and_for_each_of_their_keys():
    table = CaptionTable(4, "test-1")
    table.intern([NEWT, WALL])
    table.count_sightings(np.array([1, 1, 2], np.uint32))
    table.count_sightings(np.array([1, 0], np.uint32), np.array([10, 7]))
    assert table.caption_sightings.tolist() == [7, 12, 1]
    assert table.key_sightings.tolist() == [12, 12, 1]


key_texts = st.text(alphabet="abc #*.é", min_size=1, max_size=6)
caption_texts = st.dictionaries(
    st.text(alphabet="xyz é\u2603", min_size=1, max_size=8), st.lists(key_texts, max_size=3, unique=True), max_size=20
)


@settings(deadline=None)
@given(caption_texts)
def test_arrow_gives_back_the_same_table(drawn):
    table = CaptionTable(3, "test-1")
    ids = table.intern(
        [CaptionText(text, tuple(KeyText(k, askable="#" not in k) for k in keys)) for text, keys in drawn.items()]
    )
    table.count_sightings(np.repeat(ids, 3))
    back = CaptionTable.from_arrow(table.to_arrow())
    assert (back.keys_per_caption, back.key_version, len(back), back.key_count) == (
        3,
        "test-1",
        len(table),
        table.key_count,
    )
    assert np.array_equal(back.caption_keys, table.caption_keys)
    assert [back.caption(i) for i in range(len(back))] == [table.caption(i) for i in range(len(table))]
    assert [back.example(i) for i in range(back.key_count)] == [table.example(i) for i in range(table.key_count)]
    assert np.array_equal(back.key_sightings, table.key_sightings)
    assert np.array_equal(back.caption_sightings, table.caption_sightings)


def damaged(tables, name, column, values):
    at = tables[name].column_names.index(column)
    field = tables[name].schema.field(column)
    return {**tables, name: tables[name].set_column(at, field, [values])}


@pytest.mark.parametrize(
    ("name", "column", "values", "message"),
    [
        ("captions", "text", ["", "You kill the gnu!"], "does not fit the text"),
        ("keys", "text", ["You kill the newt!", "gnu"], "does not fit the key"),
        ("captions", "keys", [[], ["nobody"]], "which the table of keys lacks"),
        ("captions", "text", ["", ""], "does not fit|only 1 different"),
    ],
)
def test_a_damaged_table_is_refused(name, column, values, message):
    table = CaptionTable(4, "test-1")
    table.intern([NEWT])
    with pytest.raises(CaptionError, match=message):
        CaptionTable.from_arrow(damaged(table.to_arrow(), name, column, values))


def test_a_missing_column_is_named():
    table = CaptionTable(4, "test-1").to_arrow()
    with pytest.raises(CaptionError, match="'askable'"):
        CaptionTable.from_arrow({**table, "keys": table["keys"].drop_columns(["askable"])})
    with pytest.raises(CaptionError, match="'keys' is missing"):
        CaptionTable.from_arrow({"captions": table["captions"]})


def test_a_table_that_is_stored_again_and_again_while_it_grows_is_as_one_stored_at_once():
    growing, whole = CaptionTable(2, "test-1"), CaptionTable(2, "test-1")
    captions = [
        CaptionText(
            f"Text {number}, {number % 7}", (KeyText(f"Text {number}"), KeyText(f"{number % 7}", number % 2 < 9))
        )
        for number in range(200)
    ]
    for begin in range(0, 200, 2):
        indices = growing.intern(captions[begin : begin + 2])
        growing.count_sightings(indices)
        growing.to_arrow()
    whole.count_sightings(whole.intern(captions))
    stored = growing.to_arrow()
    assert all(stored[name].equals(table, check_metadata=True) for name, table in whole.to_arrow().items())
    assert stored["captions"].column("text").num_chunks < 70
    assert stored["captions"].column("sightings").to_pylist() == [0] + [1] * 200


def test_what_a_terminal_could_obey_is_a_blank_in_what_is_printed():
    assert (
        printable("The \x1b[2Jdoor\x07 opens.\r\n\u202eIt\ud83d is  a\u200b wall.")
        == "The [2Jdoor opens. It is a wall."
    )
    assert printable("Ünï ☃ 日本 “x” <b>") == "Ünï ☃ 日本 “x” <b>"
