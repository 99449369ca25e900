"""An annotator for tests, found by its import path in every process: makes the mistakes that a new user makes."""

from __future__ import annotations

import dataclasses

from onibi.platform.annotation.annotator import label_for
from onibi.platform.annotation.captions import text_hash
from onibi.platform.annotation.labels import Label

PATH = "faulty_judge:FaultyJudge"


class FaultyJudge:
    """Args: fault: what it yields in place of a label, or does."""

    goal, model, prompt_version = "Reach the end.", "faulty", "f1"

    def __init__(self, fault=""):
        self.fault = fault

    def annotate(self, requests, goal):
        for request in requests:
            label = label_for(self, request, 1.0, reply="because")
            match self.fault:
                case "string":
                    yield "helpful"
                case "none":
                    yield None
                case "few fields":
                    yield Label(key_text=request.key_text)
                case "plain value":
                    yield dataclasses.replace(label, value="helpful")
                case "other key":
                    yield dataclasses.replace(label, key_hash=text_hash("something else"))
                case "other judge":
                    yield dataclasses.replace(label, model="another")
                case "score":
                    yield label_for(self, request, 3.0)
                case "broken":
                    raise ValueError("a user's fault")
                case _:
                    yield label


class NoMethod:
    """Lacks what judges."""

    goal, model, prompt_version = "Reach the end.", "none", "1"


class NotCallable(NoMethod):
    """Has something else by its name."""

    annotate = "helpful"


class Drifting(FaultyJudge):
    """Is another judge each time that it is looked at."""

    looks = 0

    @property
    def prompt_version(self):
        self.looks += 1
        return str(self.looks)


class Shy(FaultyJudge):
    """Does not say what it judges by."""

    @property
    def prompt_version(self):
        raise ValueError("ask me later")
