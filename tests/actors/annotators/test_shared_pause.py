"""A pause that a server asked one process for is kept by all that ask it."""

from __future__ import annotations

import asyncio

import pytest

from onibi.actors.annotators.rate_limit import RateLimiter
from onibi.actors.annotators.shared_pause import SharedPause
from onibi.platform.errors import AnnotatorError


class Clock:
    """Stands still unless somebody sleeps."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_what_one_limiter_was_asked_holds_back_the_other_and_the_longer_pause_counts(tmp_path):
    clock = Clock()

    async def run() -> None:
        one, other = (
            RateLimiter(None, None, clock, clock.sleep, 30.0, SharedPause(tmp_path / "pause", 600.0, clock))
            for _ in range(2)
        )
        assert (await other.admit(1, float("inf"))).time == 1000.0
        one.pause(20.0)
        one.pause(5.0)
        assert (await other.admit(1, float("inf"))).time == 1020.0
        one.pause(31.0)
        assert await other.admit(1, float("inf")) is None, "longer than is waited for"
        assert other.pause_left == pytest.approx(31.0)

    asyncio.run(run())


@pytest.mark.parametrize("written", [b"", b"soon", b"nan", b"inf", b"-inf", b"999", b"99999", b"\xff" * 9])
def test_a_file_that_tells_no_time_to_come_holds_nobody_back(tmp_path, written):
    (tmp_path / "pause").write_bytes(written)
    pause = SharedPause(tmp_path / "pause", 600.0, Clock())
    assert pause.left == 0.0
    pause.extend(7.0)
    assert pause.left == pytest.approx(7.0)


def test_a_folder_that_is_not_there_holds_nobody_back(tmp_path):
    pause = SharedPause(tmp_path / "none" / "pause", 600.0, Clock())
    pause.extend(7.0)
    assert pause.left == 0.0


def test_workers_of_a_run_wait_when_one_of_them_is_told_to(make, ask_of, language_server, tmp_path):
    told, other, stranger = make(), make(), make()
    told.keep_spending(tmp_path / "run" / "first.json")
    other.keep_spending(tmp_path / "run" / "second.json")  # of another name, at the same server
    stranger.keep_spending(tmp_path / "another run" / "first.json")
    language_server.behave = lambda call: call.reply(b"{}", status=429, Retry_After="3600")
    with pytest.raises(AnnotatorError, match="429"):
        list(told.annotate(ask_of("It rains."), told.goal))
    with pytest.raises(AnnotatorError, match=r"it asked to wait, \d+ s more"):
        list(other.annotate(ask_of("It rains."), other.goal))
    assert len(language_server.calls) == 1
    language_server.behave = language_server.polite
    assert len(list(stranger.annotate(ask_of("It rains."), stranger.goal))) == 1
