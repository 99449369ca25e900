"""The strip under a film's picture: what was heard in a step, what it pays, and how the episode stands."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onibi.actors.filming.terminal_picture import monospaced_font

_FONT_PIXELS, _MARGIN = 13, 6
_LEAST_WIDTH = 480  # narrower pictures would leave no room to read
_MOST_HEIGHT = 1_280  # of an enlarged picture
_GROUND = (28, 31, 40)

PLAIN, FAINT, PAID, FORBIDDEN = (225, 228, 235), (135, 140, 152), (110, 220, 130), (240, 120, 110)
"""Colours of lines: in general; of what pays nothing; of what pays; of what costs."""


class Line(NamedTuple):
    """Text and its colour."""

    text: str
    color: tuple[int, int, int] = PLAIN


def with_strip(picture: NDArray[np.uint8], lines: Sequence[Line], rows: int) -> NDArray[np.uint8]:
    """A picture with lines of text under it, enlarged in whole steps where it is too narrow for them.

    One that is narrow and tall has ground beside it instead.

    Args:
        picture: [H, W, 3] uint8.
        lines: long ones are broken; what there is no room for is left out behind "…", and each keeps a row of its own.
        rows: height of the strip in rows of text; the same for all pictures of a film.
    Returns: [H′, W′, 3] uint8, both even, as video codecs want them.
    """
    from PIL import Image, ImageDraw

    factor = max(1, min(-(-_LEAST_WIDTH // picture.shape[1]), _MOST_HEIGHT // picture.shape[0]))
    picture = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    height, width = picture.shape[0], max(picture.shape[1], _LEAST_WIDTH)
    font = monospaced_font(_FONT_PIXELS)
    row_pixels = sum(font.getmetrics()) + 1
    strip = 2 * _MARGIN + rows * row_pixels
    canvas = Image.new("RGB", (width + width % 2, height + strip + (height + strip) % 2), _GROUND)
    canvas.paste(Image.fromarray(picture), ((width - picture.shape[1]) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    columns = int((width - 2 * _MARGIN) // font.getlength("M"))
    for place, (text, color) in enumerate(_broken(lines[:rows], columns, rows)):
        draw.text((_MARGIN, height + _MARGIN + place * row_pixels), text, fill=color, font=font)
    return np.asarray(canvas)


def _broken(lines: Sequence[Line], columns: int, rows: int) -> list[Line]:
    """At most ``rows`` lines of ``columns`` characters; a long one leaves a row to each that follows."""
    shown: list[Line] = []
    for following, line in zip(range(len(lines) - 1, -1, -1), lines, strict=True):
        room = rows - len(shown) - following
        most = columns * (room + 1)  # characters that are looked at: a caption may be a book
        parts = textwrap.wrap(line.text[:most], columns) or [""]
        if len(parts) > room or len(line.text) > most:
            parts = parts[:room]
            parts[-1] = f"{parts[-1][: columns - 1]}…"
        shown += [Line(part, line.color) for part in parts]
    return shown
