"""GIF and WebP, one picture after the other: what is kept of those before is their compressed bytes.

Pillow's writers of moving pictures hold all of them until the last: two gigabytes for a quarter of an hour of NetHack
as GIF, six as WebP, where a run has just ended that wants its memory itself. So each picture is compressed by Pillow as
a picture, and put into the file here. Only what changed is stored, in a rectangle around it.

GIF: https://www.w3.org/Graphics/GIF/spec-gif89a.txt. WebP: RFC 9649, section 2.7.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_COLORS = 255  # of a GIF's picture; the one besides stands for what has not changed
_LONGEST_MILLISECONDS = 60_000  # of one picture; GIF could tell of eleven minutes


class Patch(NamedTuple):
    """What a picture changes in the one before.

    Args:
        pixels: [h, w, 3] uint8, of the smallest rectangle that holds all changes.
        unchanged: [h, w] bool; these could be left out.
        left: of the rectangle in the picture, even.
        top: likewise.
        milliseconds: until the next one.
    """

    pixels: NDArray[np.uint8]
    unchanged: NDArray[np.bool_]
    left: int
    top: int
    milliseconds: int


def patches(frames: Iterator[NDArray[np.uint8]], milliseconds: int) -> Iterator[Patch]:
    """The first picture whole, then what each changes; one that changes nothing prolongs the one before.

    Args:
        frames: [H, W, 3] uint8 each, all alike.
        milliseconds: that each of them is shown.
    """
    before = next(frames)
    patch = Patch(before, np.zeros(before.shape[:2], np.bool_), 0, 0, milliseconds)
    for frame in frames:
        changed = (frame != before).any(axis=2)
        if not changed.any() and patch.milliseconds + milliseconds <= _LONGEST_MILLISECONDS:
            patch = patch._replace(milliseconds=patch.milliseconds + milliseconds)
            continue
        yield patch
        rows, columns = _extent(changed.any(axis=1)), _extent(changed.any(axis=0))
        patch = Patch(frame[rows, columns], ~changed[rows, columns], columns.start, rows.start, milliseconds)
        before = frame
    yield patch


def gif(frames: Iterator[NDArray[np.uint8]], shape: tuple[int, ...], milliseconds: int) -> bytes:
    """The pictures as a GIF that begins anew for ever. Args: as of ``patches``; ``shape``: theirs."""
    from PIL import GifImagePlugin

    # No table of colours for all: each picture has its own 255.
    header = b"GIF89a" + struct.pack("<HHBBB", shape[1], shape[0], 0, 0, 0)
    loops = b"!\xff\x0bNETSCAPE2.0" + struct.pack("<BBHB", 3, 1, 0, 0)
    file = io.BytesIO()
    file.write(header + loops)
    for patch in patches(frames, milliseconds):
        indexed, transparent = _indexed(patch)
        written = GifImagePlugin.getdata(
            indexed,
            (patch.left, patch.top),
            duration=patch.milliseconds,
            disposal=1,  # stays where it is
            transparency=transparent,
            include_color_table=True,
        )
        file.writelines(written)
    file.write(b";")
    return file.getvalue()


def webp(frames: Iterator[NDArray[np.uint8]], shape: tuple[int, ...], milliseconds: int) -> bytes:
    """The pictures as a lossless WebP that begins anew for ever. Args: as of ``patches``; ``shape``: theirs."""
    has_motion_and_alpha = 0x02 | 0x10
    canvas = struct.pack("<I", has_motion_and_alpha) + _three_bytes(shape[1] - 1) + _three_bytes(shape[0] - 1)
    file = io.BytesIO()
    file.write(b"RIFF\0\0\0\0WEBP" + _chunk(b"VP8X", canvas) + _chunk(b"ANIM", struct.pack("<IH", 0, 0)))
    for patch in patches(frames, milliseconds):
        height, width = patch.unchanged.shape
        places = (patch.left // 2, patch.top // 2, width - 1, height - 1, patch.milliseconds)
        blended = b"\0"  # over what is there, which stays
        file.write(_chunk(b"ANMF", b"".join(map(_three_bytes, places)) + blended + _lossless(patch)))
    content = file.getvalue()
    return content[:4] + struct.pack("<I", len(content) - 8) + content[8:]


def _extent(changed: NDArray[np.bool_]) -> slice:
    """From the first to the last that changed, beginning at an even one, as WebP wants it; nothing: the first."""
    places = np.flatnonzero(changed)
    return slice(int(places[0]) // 2 * 2, int(places[-1]) + 1) if len(places) else slice(0, 1)


def _indexed(patch: Patch) -> tuple[Any, int]:
    """In colours of its own, and the index of what has not changed: long runs of one colour are small."""
    from PIL import Image

    image = Image.fromarray(patch.pixels).quantize(_COLORS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    indices = np.array(image)
    transparent = int(indices.max()) + 1
    indices[patch.unchanged] = transparent
    indexed = Image.fromarray(indices)
    indexed.putpalette([*(image.getpalette() or [])[: 3 * transparent], 0, 0, 0])
    return indexed, transparent


def _lossless(patch: Patch) -> bytes:
    """The chunk with the picture, of a WebP of its own."""
    from PIL import Image

    alpha = np.where(patch.unchanged, 0, 255).astype(np.uint8)
    single = io.BytesIO()
    Image.fromarray(np.dstack([patch.pixels, alpha])).save(single, format="WEBP", lossless=True, method=2)
    content = single.getvalue()
    place = 12
    while content[place : place + 4] != b"VP8L":
        (size,) = struct.unpack_from("<I", content, place + 4)
        place += 8 + size + size % 2
    (size,) = struct.unpack_from("<I", content, place + 4)
    return content[place : place + 8 + size + size % 2]


def _three_bytes(number: int) -> bytes:
    return struct.pack("<I", number)[:3]


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
