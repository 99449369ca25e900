"""What the annotation desk asks, and what answers: the seam between captions and whoever judges them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from onibi.platform.captions import KeyIndex
from onibi.platform.labels import Label


@dataclass(frozen=True, kw_only=True)
class AnnotationRequest:
    """One key to be judged: rules match ``key_text``, a language model reads ``raw_text``."""

    key: KeyIndex
    key_text: str
    raw_text: str


class Annotator(Protocol):
    """Judges caption keys against a goal. One file in ``actors/annotators`` and one line in its registry."""

    @property
    def goal(self) -> str:
        """The goal in plain words that this annotator's settings name."""

    @property
    def prompt_version(self) -> str:
        """``labels.prompt_hash`` over all that shapes its verdicts: kind, model, prompt or rules, goal."""

    def annotate(self, requests: Sequence[AnnotationRequest], goal: str) -> list[Label]:
        """Judge keys.

        Args:
            requests: what to judge; may be empty.
            goal: what "helpful" is measured against.
        Returns: one label per request, in order; a reply that cannot be read is ``LabelValue.INVALID``.
        Raises: OnibiError where it cannot judge at all; the requests are then asked again when their lease ends.
        """
