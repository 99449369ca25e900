"""An annotator for tests, found by its import path in every process: writes down what it answers, and fails as told."""

from __future__ import annotations

import os
import time
from pathlib import Path

from onibi.platform.annotation.captions import text_hash
from onibi.platform.annotation.labels import Label, LabelValue
from onibi.platform.errors import AnnotatorError, BudgetSpentError

PATH = "recording_judge:RecordingJudge"


class RecordingJudge:
    """Everything is helpful.

    Args:
        record: file to which a line is added for each answer, before it is given.
        seconds: for each answer.
        trouble: after ``answers`` answers in this process: "down" (AnnotatorError), "spent" (BudgetSpentError), "bug"
            (ValueError), "hangs"; "" for none.
        once: a file that the first process in trouble makes: later ones have none.
    """

    goal, model = "Reach the end.", "recorder"

    def __init__(self, record="", seconds=0.0, trouble="", answers=0, once="", prompt_version="r1"):
        self.record, self.seconds, self.trouble, self.answers, self.once = record, seconds, trouble, answers, once
        self.prompt_version = prompt_version
        self.given = 0
        self.closed = False

    def annotate(self, requests, goal):
        for request in requests:
            if self.trouble and self.given >= self.answers:
                self.fail()
            if self.seconds:
                time.sleep(self.seconds)
            now = time.time()
            if self.record:
                with Path(self.record).open("a", encoding="utf-8") as file:
                    file.write(f"{request.key_text}\t{request.vote}\t{os.getpid()}\n")
            self.given += 1
            yield Label(
                key_hash=text_hash(request.key_text),
                key_text=request.key_text,
                raw_text=request.raw_text,
                value=LabelValue.HELPFUL,
                score=1.0,
                annotator="custom",
                model=self.model,
                prompt_version=self.prompt_version,
                goal=goal,
                latency_seconds=self.seconds,
                tokens=10,
                reply="yes",
                time_seconds=now,
                cost=0.5,
            )

    def fail(self):
        if self.once:
            if Path(self.once).exists():
                return
            Path(self.once).touch()
        match self.trouble:
            case "down":
                raise AnnotatorError("the server is gone")
            case "spent":
                raise BudgetSpentError("the budget of 3 requests is used up")
            case "bug":
                raise ValueError("a plug-in's fault")
            case "hangs":
                time.sleep(3600)

    def close(self):
        self.closed = True
