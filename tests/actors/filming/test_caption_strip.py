from __future__ import annotations

import numpy as np
import pytest
from PIL import ImageDraw

from onibi.actors.filming.caption_strip import PAID, Line, with_strip


@pytest.mark.parametrize("shape", [(24, 480, 3), (401, 601, 3), (7, 5, 3), (1, 1, 3)])
def test_pictures_of_a_film_have_one_even_size_whatever_is_said(shape):
    picture = np.full(shape, 90, np.uint8)
    texts = ["", "You see here a key.", "word " * 400, "unbroken" * 90, "two\nlines", "Ünïcode ☃ \x07"]
    sizes = {with_strip(picture, [Line("episode 1"), Line(text)], 3).shape for text in texts}
    assert len(sizes) == 1
    height, width, _ = sizes.pop()
    assert height % 2 == width % 2 == 0
    assert width >= 480, "narrow pictures are enlarged, or their captions could not be read"


def test_a_narrow_picture_that_is_tall_has_room_beside_it_and_no_giant_one():
    picture = np.full((1_000, 3, 3), 90, np.uint8)
    shown = with_strip(picture, [Line("episode 1")], 2)
    assert shown.shape[1] == 480
    assert shown.shape[0] < 1_100
    assert (shown[:1_000] == 90).all(axis=2).sum() == 3_000


def test_only_as_much_of_a_caption_is_broken_into_lines_as_can_be_shown(monkeypatch):
    broken = []
    monkeypatch.setattr("textwrap.wrap", lambda text, _columns: broken.append(len(text)) or [text[:10]])
    with_strip(np.full((24, 480, 3), 90, np.uint8), [Line("word " * 20_000)], 4)
    assert broken[0] <= 4 * 100


@pytest.mark.parametrize("text", ["word " * 400, "unbroken" * 90, "few" + " " * 900 + "words"])
def test_a_caption_that_is_too_long_ends_in_a_mark_and_leaves_what_follows_its_row(text, drawn):
    with_strip(np.full((24, 480, 3), 90, np.uint8), [Line("episode 1"), Line(text), Line("success", PAID)], 4)
    assert (drawn[0], drawn[-1]) == ("episode 1", "success")
    assert len(drawn) <= 4
    assert drawn[-2].endswith("…")


def test_a_caption_that_fits_has_no_mark(drawn):
    with_strip(np.full((24, 480, 3), 90, np.uint8), [Line("episode 1"), Line("word " * 30)], 4)
    assert " ".join(drawn[1:]).split() == ["word"] * 30


@pytest.fixture
def drawn(monkeypatch):
    """Texts that were drawn, in order."""
    texts, draw = [], ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "text", lambda self, at, text, **how: texts.append(text) or draw(self, at, text, **how)
    )
    return texts


def test_the_picture_stays_as_it_is_and_the_text_stands_under_it_in_its_colour():
    picture = np.arange(40 * 600 * 3, dtype=np.uint32).reshape(40, 600, 3).astype(np.uint8)
    silent, heard = with_strip(picture, [], 2), with_strip(picture, [Line(""), Line("You win!", PAID)], 2)
    assert (silent[:40, :600] == picture).all()
    assert (heard[:40] == silent[:40]).all()
    changed = heard[40:][(heard[40:] != silent[40:]).any(axis=2)].astype(int)
    assert len(changed)
    assert changed[:, 1].max() == PAID[1]
    half = len(silent[40:]) // 2
    assert (heard[40 : 40 + half - 2] == silent[40 : 40 + half - 2]).all(), "the first line is empty"
