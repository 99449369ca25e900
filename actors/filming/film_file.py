"""Moving pictures as the bytes of a file that browsers show: MP4, or GIF and WebP, which need no codec."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onibi.actors.filming.animation import gif, webp
from onibi.platform.errors import ConfigError
from onibi.platform.shell_words import pip_install

_FORMS = (".mp4", ".gif", ".webp")
_STILLS_PER_SECOND = 12.5  # of GIF and WebP at most: each picture is compressed for itself


def has_video_codec() -> bool:
    """Whether MP4 can be written here."""
    import importlib.util

    return importlib.util.find_spec("av") is not None


def check_film_path(path: Path) -> None:
    """Raises: ConfigError where a film cannot be written under this name, told before it is played."""
    if path.suffix.lower() not in _FORMS:
        raise ConfigError(f"{path}: a film's name ends in {', '.join(_FORMS[:-1])} or {_FORMS[-1]}.")
    if path.suffix.lower() == ".mp4" and not has_video_codec():
        raise ConfigError(
            f"{path}: MP4 needs the package av. Install it with: {pip_install('onibi[video]')}; or choose "
            f"{path.stem}.gif."
        )
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{path}: the folder {path.absolute().parent} is not there.")
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file.")


def encoded(frames: Iterator[NDArray[np.uint8]], frames_per_second: float, form: str) -> bytes:
    """A film's bytes.

    Args:
        frames: [H, W, 3] uint8 each, H and W even and the same in all; taken one at a time, and none of them kept.
        frames_per_second: of them; GIF and WebP leave pictures out where there are more than 12.5 a second.
        form: ``.mp4`` (H.264, needs the package av), ``.gif`` or ``.webp``.
    Raises: ConfigError where there is no picture at all, or the codec does not work here.
    """
    first = next(frames, None)
    if first is None:
        raise ConfigError("there is nothing to film: not one step was played.")
    frames = itertools.chain([first], frames)
    if form == ".mp4":
        return _mp4(frames, first.shape, frames_per_second)
    every = max(1, round(frames_per_second / _STILLS_PER_SECOND + 0.49))
    stills = itertools.islice(frames, 0, None, every)
    return (gif if form == ".gif" else webp)(stills, first.shape, round(1000 * every / frames_per_second))


def _mp4(frames: Iterator[NDArray[np.uint8]], shape: tuple[int, ...], frames_per_second: float) -> bytes:
    from fractions import Fraction

    import av

    file = io.BytesIO()
    try:
        with av.open(file, "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=Fraction(frames_per_second).limit_denominator(1000))
            stream.height, stream.width = shape[:2]
            stream.pix_fmt = "yuv420p"  # what browsers play
            stream.options = {"crf": "20", "preset": "veryfast"}
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
    except (av.FFmpegError, av.codec.codec.UnknownCodecError) as error:  # a build of av without this codec
        raise ConfigError(f"the film cannot be encoded as MP4 ({error}). Choose .gif, which needs no codec.") from error
    return file.getvalue()
