"""Word pieces against the tokenizers library's BERT, and by hand on a vocabulary of twelve."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onibi.platform.errors import ConfigError
from onibi.platform.sentence_encoder import PACKAGED_MODEL, model_folder
from onibi.platform.word_pieces import WordPieces, words_of

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "door", "##s", "un", "##lock", "##ed", ".", "the", "##ing"]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("The doors.", [2, 10, 4, 5, 9, 3]),
        ("UNLOCKED", [2, 6, 7, 8, 3]),
        ("unlockx door", [2, 1, 4, 3]),  # one part that is in no piece makes the whole word unknown
        ("", [2, 3]),
        ("[SEP] door", [2, 1, 1, 1, 4, 3]),  # a text cannot end itself
        ("door" + "s" * 97, [2, 1, 3]),  # 101 characters
    ],
)
def test_the_longest_pieces_are_taken_from_the_left(text, ids):
    assert WordPieces(VOCABULARY).encode(text, 64) == ids


def test_what_is_too_long_loses_its_end_and_keeps_its_separator():
    assert WordPieces(VOCABULARY).encode("the the door door", 4) == [2, 10, 10, 3]


def test_accents_and_controls_go_and_marks_stand_alone():
    assert words_of("Çafé\x00s,\tdon't—stop 你好") == ["cafes", ",", "don", "'", "t", "—", "stop", "你", "好"]
    assert words_of("ΟΔΟΣ") == ["οδοσ"]


# Of scripts that have long been in Unicode: the library's tables and Python's are of different versions.
TEXTS = st.characters(max_codepoint=0x4FF, exclude_categories=("Cn",)) | st.characters(
    min_codepoint=0x2000, max_codepoint=0x206F, exclude_categories=("Cn",)
) | st.characters(min_codepoint=0x4E00, max_codepoint=0x9FA5)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.text(TEXTS, max_size=40))
def test_any_text_gets_the_ids_that_the_library_gives(text):
    tokenizers = pytest.importorskip("tokenizers")
    library, ours = _both(tokenizers)
    if not any(token in text for token in ("[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]")):
        assert ours.encode(text, 256) == library.encode(text).ids


def test_a_file_that_is_no_vocabulary_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("the\ndoor\n")
    with pytest.raises(ConfigError, match=r"\[CLS\], \[SEP\], \[UNK\], \[PAD\] are missing among 2"):
        WordPieces.read(tmp_path / "vocab.txt")
    with pytest.raises(ConfigError, match="cannot be read as a vocabulary"):
        WordPieces.read(tmp_path / "nowhere.txt")


_known: dict[str, object] = {}


def _both(tokenizers):
    if not _known:
        folder = model_folder(PACKAGED_MODEL)
        assert isinstance(folder, Path)
        library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        library.no_padding()
        library.no_truncation()
        _known["both"] = library, WordPieces.read(folder / "vocab.txt")
    return _known["both"]
