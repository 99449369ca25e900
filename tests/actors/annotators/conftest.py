"""Annotators that ask the server of tests/actors/language_server.py, impatient enough for tests."""

from __future__ import annotations

import pytest

from onibi.actors.annotators.openai import OpenaiAnnotator
from onibi.platform.annotation.annotator import AnnotationRequest
from onibi.platform.config import read_settings

IMPATIENT = {
    "timeout_seconds": 5.0,  # long where nothing is to time out: the machine may be busy
    "batch_seconds": 20.0,
    "retries": 1,
    "first_wait_seconds": 0.01,
    "longest_wait_seconds": 0.5,
    "concurrency": 3,
    "reply_bytes": 100_000,
}


@pytest.fixture
def ask_of():
    """Requests about texts."""

    def ask_of(*texts: str) -> list[AnnotationRequest]:
        return [AnnotationRequest(key=index, key_text=text, raw_text=text) for index, text in enumerate(texts)]

    return ask_of


@pytest.fixture
def make(language_server):
    """Makes annotators of the server; ``server=…`` are settings over impatient ones."""
    made = []

    def make(*, server: dict | None = None, **settings) -> OpenaiAnnotator:
        given = {"base_url": language_server.url, "model": "m", "server": {**IMPATIENT, **(server or {})}, **settings}
        annotator = OpenaiAnnotator(read_settings(OpenaiAnnotator.Settings, given))
        made.append(annotator)
        return annotator

    yield make
    for annotator in made:
        annotator.close()
