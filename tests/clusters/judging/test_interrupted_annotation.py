"""Ctrl-C while `onibi annotate` waits for a judge that takes its time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pyarrow.parquet as pq
import pytest

from onibi.clusters.interruption import Interruption
from onibi.platform.annotation.annotator import AnnotationRequest, label_for
from onibi.platform.annotation.labels import Judge, labels_to_arrow
from onibi.platform.annotation.table import AnnotationTable

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def source(tmp_path):
    texts = [f"The door number {word} opens." for word in ("one", "two", "three", "four")]
    requests = [AnnotationRequest(key=0, key_text=text, raw_text=text) for text in texts]
    pq.write_table(
        labels_to_arrow([label_for(Judge("1", "m", "g"), request, 1.0) for request in requests]), tmp_path / "l.parquet"
    )
    return tmp_path / "l.parquet"


class Command:
    """`onibi annotate` in a process of its own: what is sent to it must not meet the one that runs the tests."""

    def __init__(self, language_server, source, *more) -> None:
        settings = ("--set", f"base_url={language_server.url}", "--set", "model=m", *more)
        folders = ("--table", str(source.parent / "table"), "--runs-folder", str(source.parent))
        command = [sys.executable, "-m", "onibi", "annotate", str(source), "--annotator", "openai", *settings, *folders]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._interrupted = False

    def interrupt(self) -> None:
        """Ctrl-C, once."""
        if not self._interrupted:
            self._interrupted = True
            self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """Without a word."""
        self._process.kill()
        self._process.communicate()

    def ended(self):
        """Exit code and all that was said."""
        try:
            said, _ = self._process.communicate(timeout=100)
        finally:
            self._process.kill()
        return self._process.returncode, said


@pytest.mark.parametrize("seconds", [0.0, 1.0])  # the first answer has come then; whether anybody has read it or not
def test_ctrl_c_ends_a_wait_for_a_reply_and_keeps_what_was_answered(seconds, language_server, source):
    started = []

    def behave(call):
        if call.number == 1:  # the first went alone
            language_server.ending.wait(seconds)
            started[0].interrupt()
        if call.number > 0:
            language_server.ending.wait(60)
        language_server.polite(call)

    language_server.behave = behave
    started.append(Command(language_server, source, "--set", "server.timeout_seconds=50", "--patience", "0"))
    code, said = started[0].ended()
    assert code == 130, said
    assert "1 of 4 judged" in said
    assert "3 left: interrupted. The same command goes on" in said
    assert len(AnnotationTable(source.parent / "table").labels()) == 1


def test_an_answer_is_in_the_table_before_the_next_one_comes_and_a_kill_does_not_lose_it(language_server, source):
    def behave(call):
        if call.number > 0:
            language_server.ending.wait(120)
        language_server.polite(call)

    language_server.behave = behave
    command = Command(language_server, source, "--set", "server.timeout_seconds=90", "--patience", "0")
    kept, deadline = [], time.monotonic() + 60
    while not kept and time.monotonic() < deadline:
        time.sleep(0.1)
        kept = AnnotationTable(source.parent / "table").labels()
    command.kill()
    assert len(kept) == len(AnnotationTable(source.parent / "table").labels()) == 1


def test_ctrl_c_ends_a_pause(language_server, source):
    started = []

    def behave(call):
        started[0].interrupt()
        call.reply(b"{}", status=503)

    language_server.behave = behave
    started.append(Command(language_server, source, "--set", "server.retries=0", "--patience", "9999"))
    code, said = started[0].ended()
    assert code == 130, said
    assert "4 left: interrupted" in said


def test_an_annotator_that_cannot_be_stopped_is_broken_off_in_its_wait_and_writing_is_not():
    stopped, written = threading.Event(), []
    interruption = Interruption(stopped.set)
    with interruption.heard():
        os.kill(os.getpid(), signal.SIGINT)
        assert stopped.wait(30)
        with pytest.raises(KeyboardInterrupt), interruption.waiting():
            time.sleep(60)
        written.append(1)  # not in a wait: nothing is raised here
        with pytest.raises(KeyboardInterrupt), interruption.waiting():
            written.append("never")
    assert written == [1]
    assert interruption.asked
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_breaks_into_whatever_is_done():
    interruption = Interruption()
    with interruption.heard():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
