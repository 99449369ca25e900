from __future__ import annotations

import numpy as np

from onibi.actors.filming.terminal_picture import terminal_picture

WHITE, RED, NOWHERE = 15, 1, np.array([-1, -1])


def picture_of(text, color=WHITE, cursor=NOWHERE):
    chars = np.full((2, 4), ord(" "), np.uint8)
    chars[0, : len(text)] = [ord(each) for each in text]
    return terminal_picture(chars, np.full((2, 4), color, np.int8), cursor)


def cell(picture, row, column):
    height, width = picture.shape[0] // 2, picture.shape[1] // 4
    return picture[row * height : (row + 1) * height, column * width : (column + 1) * width]


def test_characters_stand_in_their_cells_in_their_colour():
    picture = picture_of("@ @", RED)
    ground = cell(picture, 1, 0)
    assert (ground == ground[0, 0]).all(), "an empty cell is ground alone"
    assert (cell(picture, 0, 0) == cell(picture, 0, 2)).all()
    assert (cell(picture, 0, 1) == ground).all()
    inked = cell(picture, 0, 0).astype(int) - ground
    assert inked[..., 0].max() > 100 > inked[..., 1].max(), "red is red"
    assert (cell(picture_of("#"), 0, 0) != cell(picture_of("@"), 0, 0)).any()


def test_the_cursor_is_a_block_and_may_be_nowhere():
    without, with_cursor = picture_of("@"), picture_of("@", cursor=np.array([0, 0]))
    assert cell(with_cursor, 0, 0).mean() > cell(without, 0, 0).mean()
    assert (cell(with_cursor, 1, 3) == cell(without, 1, 3)).all()


def test_attributes_above_the_sixteen_colours_are_not_drawn():
    assert (picture_of("@", np.int8(-128 + WHITE)) == picture_of("@", WHITE)).all()


def test_a_whole_terminal_has_the_size_of_its_cells():
    chars, colors = np.full((24, 80), 219, np.uint8), np.full((24, 80), WHITE, np.int8)
    picture = terminal_picture(chars, colors, NOWHERE)
    assert picture.dtype == np.uint8
    assert picture.shape[0] % 24 == picture.shape[1] % 80 == 0
    assert picture.mean() > 200, "cells of code 219 are full blocks"
