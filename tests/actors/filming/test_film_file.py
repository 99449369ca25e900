from __future__ import annotations

import gc
import io
import sys

import numpy as np
import pytest
from PIL import Image

from onibi.actors.filming.film_file import check_film_path, encoded
from onibi.platform.errors import ConfigError


def frames(count, shape=(20, 30, 3)):
    """Pictures that are told apart by their brightness."""
    for number in range(count):
        yield np.full(shape, 10 + number * 8, np.uint8)


@pytest.mark.parametrize(("form", "tolerance"), [(".gif", 0), (".webp", 0)])
def test_stills_come_back_in_order_at_their_pace(form, tolerance):
    image = Image.open(io.BytesIO(encoded(frames(20), 5.0, form)))
    assert image.n_frames == 20
    levels = []
    for number in range(20):
        image.seek(number)
        levels.append(int(np.asarray(image.convert("RGB"))[5, 5, 0]))
        image.load()
        assert image.info["duration"] == 200
    assert levels == pytest.approx([10 + number * 8 for number in range(20)], abs=tolerance)


@pytest.mark.parametrize(("rate", "every"), [(12.5, 1), (13.0, 2), (25.0, 2), (30.0, 3), (50.0, 4)])
def test_stills_leave_pictures_out_where_there_are_more_than_twelve_and_a_half_a_second(rate, every):
    image = Image.open(io.BytesIO(encoded(frames(24), rate, ".gif")))
    assert image.n_frames == -(-24 // every)
    assert image.info["duration"] == pytest.approx(1000 * every / rate, abs=10), "hundredths of a second"


def test_a_video_holds_every_picture_at_its_pace():
    av = pytest.importorskip("av")
    content = encoded(frames(24, (64, 96, 3)), 6.0, ".mp4")
    with av.open(io.BytesIO(content)) as video:
        stream = video.streams.video[0]
        assert float(stream.average_rate) == 6.0
        assert stream.codec_context.name == "h264"
        levels = [float(frame.to_ndarray(format="rgb24").mean()) for frame in video.decode(video=0)]
    assert levels == pytest.approx([10 + number * 8 for number in range(24)], abs=3)


@pytest.mark.parametrize("form", [".gif", ".webp", ".mp4"])
def test_pictures_are_not_kept_until_the_last(form):
    """5,000 of a terminal are 5 GB; in NetHack a film can be as long."""
    if form == ".mp4":
        pytest.importorskip("av")
    alive = []

    def watched():
        for frame in frames(8, (64, 96, 3)):
            # Not isinstance, at which some of torch's objects warn.
            alive.append(sum(issubclass(type(each), Image.Image) for each in gc.get_objects()))
            yield frame

    encoded(watched(), 5.0, form)
    assert max(alive) <= min(alive) + 3


def test_a_film_of_nothing_is_told():
    with pytest.raises(ConfigError, match="not one step"):
        encoded(iter(()), 6.0, ".gif")


def test_one_picture_is_a_film():
    assert Image.open(io.BytesIO(encoded(frames(1), 6.0, ".gif"))).size == (30, 20)


def test_a_name_that_cannot_be_written_is_told_before_anything_is_played(tmp_path, monkeypatch):
    check_film_path(tmp_path / "film.GIF")
    with pytest.raises(ConfigError, match=r"ends in \.mp4, \.gif or \.webp"):
        check_film_path(tmp_path / "film.avi")
    with pytest.raises(ConfigError, match="is not there"):
        check_film_path(tmp_path / "nowhere" / "film.gif")
    (tmp_path / "folder.gif").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        check_film_path(tmp_path / "folder.gif")
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"needs the package av.*choose film\.gif"):
        check_film_path(tmp_path / "film.mp4")
