"""Moving pictures written one after the other: every pixel comes back, for its time."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from onibi.actors.filming.animation import gif, patches, webp

WRITERS = pytest.mark.parametrize("write", [gif, webp], ids=lambda write: write.__name__)


def scene(seed, count, shape=(31, 47, 3)):
    """Pictures of few colours in which now and then a rectangle changes, somewhere."""
    rng = np.random.default_rng(seed)
    palette = rng.integers(0, 256, (12, 3), np.uint8)
    picture = palette[rng.integers(0, 12, shape[:2])]
    for _ in range(count):
        yield picture.copy()
        top, left = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        height, width = rng.integers(0, 9, 2)  # of nothing, too: the next picture is the same
        picture[top : top + height, left : left + width] = palette[rng.integers(0, 12)]


def decoded(content):
    """(picture, milliseconds) of each."""
    image = Image.open(io.BytesIO(content))
    for number in range(image.n_frames):
        image.seek(number)
        image.load()
        yield np.asarray(image.convert("RGB")), image.info["duration"]


@WRITERS
@pytest.mark.parametrize("seed", range(10))
def test_every_pixel_of_every_picture_comes_back_for_its_time(write, seed):
    frames = list(scene(seed, 20))
    wanted = [(same[0], 80 * len(same)) for same in (list(group) for _, group in itertools.groupby(frames, bytes))]
    found = list(decoded(write(iter(frames), frames[0].shape, 80)))
    assert [milliseconds for _, milliseconds in found] == [milliseconds for _, milliseconds in wanted]
    for (picture, _), (frame, _) in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(picture, frame)


@pytest.mark.parametrize("seed", range(3))
def test_another_reader_sees_the_same_gif(seed):
    av = pytest.importorskip("av")
    frames = [frame for frame, _ in itertools.groupby(scene(seed, 20), bytes)]
    frames = [np.frombuffer(frame, np.uint8).reshape(31, 47, 3) for frame in frames]
    with av.open(io.BytesIO(gif(iter(frames), frames[0].shape, 80))) as video:
        found = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    np.testing.assert_array_equal(found, frames)


@WRITERS
def test_a_picture_of_many_colours_keeps_close_to_them(write):
    rows, columns = np.mgrid[0:96, 0:128]
    frames = [
        np.stack([rows * 2, columns, rows + columns + 8 * number], axis=2).astype(np.uint8) for number in range(3)
    ]
    found = [picture.astype(int) for picture, _ in decoded(write(iter(frames), frames[0].shape, 100))]
    assert np.abs(np.array(found) - np.array(frames).astype(int)).mean() < 5


def test_a_picture_that_stands_for_long_is_told_in_parts_that_a_file_can_tell():
    """GIF has 16 bits for hundredths of a second: 655 s."""
    still = [np.zeros((4, 4, 3), np.uint8)] * 1_000
    told = [patch.milliseconds for patch in patches(iter(still), 1_000)]
    assert sum(told) == 1_000_000
    assert max(told) <= 60_000
    assert sum(milliseconds for _, milliseconds in decoded(gif(iter(still), (4, 4, 3), 1_000))) == 1_000_000


@WRITERS
def test_one_picture_is_enough(write):
    ((picture, _),) = decoded(write(iter([np.full((3, 5, 3), 7, np.uint8)]), (3, 5, 3), 100))
    assert picture.tolist() == np.full((3, 5, 3), 7).tolist()
