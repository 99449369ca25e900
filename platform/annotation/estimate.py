"""What an annotation would cost, told before anybody is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from onibi.platform.annotation.annotator import AnnotationRequest, PairRequest


@dataclass(frozen=True, kw_only=True)
class AnnotationEstimate:
    """An upper bound where replies have a limit; else what is usual."""

    calls: int
    prompt_tokens: int
    reply_tokens: int
    cost: float  # money

    @property
    def tokens(self) -> int:
        """Of prompts and replies together."""
        return self.prompt_tokens + self.reply_tokens


NOTHING = AnnotationEstimate(calls=0, prompt_tokens=0, reply_tokens=0, cost=0.0)
"""Of an annotator that calls no server."""


@runtime_checkable
class Estimating(Protocol):
    """An annotator that can tell what its calls would cost; one without this calls no server."""

    def estimate(self, items: Sequence[AnnotationRequest] | Sequence[PairRequest]) -> AnnotationEstimate:
        """What judging these would cost; asks nobody."""
