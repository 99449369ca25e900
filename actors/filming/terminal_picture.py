"""NetHack's terminal as a picture."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TERMINAL_KEYS = ("tty_chars", "tty_colors", "tty_cursor")
"""Of NLE's observations, in the order that ``terminal_picture`` takes them."""

_FONT_PIXELS = 15
_COLORS = 16
# NetHack's own order: black (drawn blue-grey, as most terminals do), red, green, brown, blue, magenta, cyan, grey,
# none, orange, bright green, yellow, bright blue, bright magenta, bright cyan, white.
_PALETTE = np.array(
    [
        (92, 99, 112), (205, 64, 64), (80, 176, 80), (190, 140, 60), (90, 120, 230), (190, 90, 190), (70, 180, 180),
        (200, 200, 200), (120, 120, 120), (255, 140, 50), (120, 240, 120), (250, 230, 100), (140, 170, 255),
        (250, 140, 250), (120, 240, 240), (255, 255, 255),
    ],
    np.float32,
)  # fmt: skip
_GROUND = np.array((16, 18, 24), np.float32)


@functools.cache  # a film asks for it with each picture
def monospaced_font(pixels: int) -> Any:
    """The monospaced font that comes with Matplotlib, as Pillow's."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSansMono.ttf", pixels)


def terminal_picture(chars: NDArray[Any], colors: NDArray[Any], cursor: NDArray[Any]) -> NDArray[np.uint8]:
    """A terminal drawn in a monospaced font, the cursor as a block.

    Args:
        chars: [rows, columns] uint8, code page 437 as NLE gives it.
        colors: [rows, columns] int8, NetHack's 16 colours; the bits above them are attributes, which are not drawn.
        cursor: [2] row and column.
    Returns: [rows × cell height, columns × cell width, 3] uint8, RGB.
    """
    glyphs = _glyphs()
    cells = glyphs[chars.astype(np.intp)]  # [rows, columns, h, w], ink from 0 to 1
    row, column = int(cursor[0]), int(cursor[1])
    if 0 <= row < chars.shape[0] and 0 <= column < chars.shape[1]:
        cells[row, column] = 1.0 - cells[row, column]
    ink = _PALETTE[colors.astype(np.intp) & (_COLORS - 1)][:, :, None, None]
    picture = _GROUND + cells[..., None] * (ink - _GROUND)
    rows, columns, height, width = cells.shape
    drawn: NDArray[np.float32] = picture.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3)
    shown: NDArray[np.uint8] = np.rint(drawn).astype(np.uint8)
    return shown


@functools.cache
def _glyphs() -> NDArray[np.float32]:
    """[256, h, w], the ink of each character in its cell."""
    from PIL import Image, ImageDraw

    font = monospaced_font(_FONT_PIXELS)
    width, height = round(font.getlength("M")), sum(font.getmetrics())
    ink: NDArray[np.float32] = np.zeros((256, height, width), np.float32)
    for code in range(256):
        character = bytes([code]).decode("cp437")
        if character.isprintable() and not character.isspace():
            cell = Image.new("L", (width, height))
            ImageDraw.Draw(cell).text((0, 0), character, fill=255, font=font)
            ink[code] = np.asarray(cell, np.float32) / 255.0
    return ink
