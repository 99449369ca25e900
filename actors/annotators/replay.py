"""Labels that were given before, given again: from another run, an annotation table or a Parquet file. Asks nobody.

For repeating a run with the very labels it had, for training on what ``onibi annotate`` made beforehand (Motif's way,
arXiv 2310.00166), and for labels that people wrote. What is given depends on the key alone, never on time or order.

A key that was never judged is ``invalid``, so it is worth nothing and stays in sight as parked; or another annotator
judges it, the ``fallback``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from onibi.actors.annotators.registry import ANNOTATORS
from onibi.platform.annotation.annotator import AnnotationRequest, Annotator, PairRequest, prefer_by_scores
from onibi.platform.annotation.captions import text_hash
from onibi.platform.annotation.estimate import NOTHING, AnnotationEstimate, Estimating
from onibi.platform.annotation.labels import Label, LabelValue, Preference, PreferenceValue, prompt_hash
from onibi.platform.annotation.recorded_verdicts import Verdicts, read_verdicts
from onibi.platform.config import Settings, load_class, selected
from onibi.platform.errors import ConfigError

_FLIPPED = {PreferenceValue.FIRST: PreferenceValue.SECOND, PreferenceValue.SECOND: PreferenceValue.FIRST}


@dataclass(frozen=True, kw_only=True)
class ReplaySettings(Settings):
    """Where the labels are, and which of them."""

    kind: Literal["replay"] = "replay"
    path: str = ""  # a run's folder, an annotation table's, or a .parquet or .arrow file; must be given
    prompt_version: str | None = None  # of the judge to repeat; these three are needed where several judged
    model: str | None = None
    goal: str | None = None
    # Judges keys that were never judged, by its own goal; null: they are invalid.
    fallback: Settings | None = selected(ANNOTATORS, "lexicon", optional=True)


class ReplayAnnotator:
    """Gives recorded verdicts. They are read when the annotator is made.

    Args:
        settings: where they are.
        clock: seconds since 1970, for the labels' time.
    Raises: ConfigError where nothing is recorded there, or several judges fit.
    """

    Settings: ClassVar[type[ReplaySettings]] = ReplaySettings

    def __init__(self, settings: ReplaySettings, clock: Callable[[], float] = time.time) -> None:
        if not settings.path:
            raise ConfigError(
                "annotator.path is empty: kind replay repeats recorded labels. Set it to a run's folder, to that of an "
                "annotation table, or to a .parquet file of labels"
            )
        self.settings = settings
        self._clock = clock
        verdicts = read_verdicts(Path(settings.path))
        self._judge = verdicts.choose_judge(settings.prompt_version, settings.model, settings.goal)
        self._labels, self._pairs = _by_key(verdicts.of(self._judge))
        self._fallback: Annotator | None = None
        if settings.fallback is not None:
            chosen: Any = settings.fallback
            self._fallback = load_class(ANNOTATORS, chosen.kind)(chosen)
        self._unknown = 0
        self._judged: dict[int, Label] = {}  # keys of pairs: the fallback is asked about each once

    @property
    def goal(self) -> str:
        """The goal that the recorded judge was asked about."""
        return self._judge.goal

    @property
    def model(self) -> str:
        """The recorded judge's model."""
        return self._judge.model

    @property
    def is_free(self) -> bool:
        """As free as what judges unknown keys."""
        return self._fallback is None or self._fallback.is_free

    @property
    def prompt_version(self) -> str:
        """Hash over the recorded judge and what becomes of unknown keys."""
        unknown = "invalid" if self._fallback is None else self._fallback.prompt_version
        return prompt_hash("replay", self._judge.prompt_version, self._judge.model, self._judge.goal, unknown)

    def keep_spending(self, file: Path) -> None:
        """As the fallback's."""
        self._tell_fallback("keep_spending", file)

    def share_limits(self, processes: int) -> None:
        """As the fallback's."""
        self._tell_fallback("share_limits", processes)

    def interrupt(self) -> None:
        """As the fallback's; recorded verdicts come at once."""
        self._tell_fallback("interrupt")

    def estimate(self, items: Sequence[AnnotationRequest] | Sequence[PairRequest]) -> AnnotationEstimate:
        """What the fallback would cost for what is not recorded; asks nobody."""
        unknown: dict[int, AnnotationRequest] = {}
        for item in items:
            requests = [item] if isinstance(item, AnnotationRequest) else []
            if isinstance(item, PairRequest):
                hashes = text_hash(item.first.key_text), text_hash(item.second.key_text)
                requests = [] if hashes in self._pairs else [item.first, item.second]
            unknown |= {
                text_hash(request.key_text): request
                for request in requests
                if (text_hash(request.key_text), request.vote) not in self._labels
            }
        fallback: object = self._fallback
        if unknown and isinstance(fallback, Estimating):
            return fallback.estimate(list(unknown.values()))
        return NOTHING

    def annotate(self, requests: Sequence[AnnotationRequest], goal: str) -> Iterator[Label]:
        """Recorded labels first, then those of unknown keys. Raises: ConfigError for another goal; the fallback's."""
        self._check(goal)
        unknown = []
        for request in requests:
            known = self._labels.get((text_hash(request.key_text), request.vote))
            if known is None:
                unknown.append(request)
            else:
                yield self._mine(known, request)
        self._unknown += len(unknown)
        if self._fallback is not None and unknown:
            # By key alone: a batch asks one vote of a key, and not every annotator writes it on its label.
            asked = {text_hash(request.key_text): request for request in unknown}
            for label in self._fallback.annotate(unknown, self._fallback.goal):
                yield replace(self._mine(label, asked[label.key_hash]), tokens=label.tokens, cost=label.cost)
        elif unknown:
            for request in unknown:
                yield self._invalid(request)

    def prefer(self, pairs: Sequence[PairRequest], goal: str) -> Iterator[Preference]:
        """Recorded preferences, whichever key came first; of other pairs what the labels tell, ``prefer_by_scores``."""
        self._check(goal)
        other = []
        for pair in pairs:
            first, second = text_hash(pair.first.key_text), text_hash(pair.second.key_text)
            known = self._pairs.get((first, second))
            if known is None:
                other.append(pair)
                continue
            yield replace(
                known,
                annotator="replay",
                prompt_version=self.prompt_version,
                latency_seconds=0.0,
                tokens=0,
                cost=0.0,
                time_seconds=self._clock(),
            )
        if other:
            yield from prefer_by_scores(self, other, goal, self._judged)

    def statistics(self) -> dict[str, float]:
        """How much is recorded, and how often something was asked that is not; what the fallback tells besides."""
        told = {} if self._fallback is None else self._fallback.statistics()
        return {**told, "recorded_labels": float(len(self._labels)), "unknown_keys": float(self._unknown)}

    def close(self) -> None:
        """Closes the fallback."""
        if self._fallback is not None:
            self._fallback.close()

    def _tell_fallback(self, method: str, *arguments: object) -> None:
        """Call what not every annotator has."""
        if (told := getattr(self._fallback, method, None)) is not None:
            told(*arguments)

    def _check(self, goal: str) -> None:
        if goal != self.goal:
            raise ConfigError(f"annotator replay has labels for {self.goal!r}, it was asked about {goal!r}")

    def _mine(self, label: Label, request: AnnotationRequest) -> Label:
        """A label as this annotator's answer: it costs nothing again."""
        return replace(
            label,
            raw_text=request.raw_text,
            annotator="replay",
            model=self.model,
            prompt_version=self.prompt_version,
            goal=self.goal,
            latency_seconds=0.0,
            tokens=0,
            cost=0.0,
            time_seconds=self._clock(),
            vote=request.vote,
        )

    def _invalid(self, request: AnnotationRequest) -> Label:
        return Label(
            key_hash=text_hash(request.key_text),
            key_text=request.key_text,
            raw_text=request.raw_text,
            value=LabelValue.INVALID,
            score=float("nan"),
            annotator="replay",
            model=self.model,
            prompt_version=self.prompt_version,
            goal=self.goal,
            latency_seconds=0.0,
            tokens=0,
            reply=f"not recorded in {self.settings.path}",
            time_seconds=self._clock(),
            vote=request.vote,
        )


def _by_key(verdicts: Verdicts) -> tuple[dict[tuple[int, int], Label], dict[tuple[int, int], Preference]]:
    """The newest valid label of each key and vote, and the newest valid preference of each pair in both orders."""
    by_time = sorted(verdicts.labels, key=lambda label: label.time_seconds)  # tables of several files are in no order
    labels = {(label.key_hash, label.vote): label for label in by_time if label.is_readable}
    pairs: dict[tuple[int, int], Preference] = {}
    for pair in sorted(verdicts.preferences, key=lambda pair: pair.time_seconds):
        if not pair.is_readable:
            continue
        pairs[pair.first_hash, pair.second_hash] = pair
        pairs[pair.second_hash, pair.first_hash] = replace(
            pair,
            first_hash=pair.second_hash,
            second_hash=pair.first_hash,
            first_text=pair.second_text,
            second_text=pair.first_text,
            value=_FLIPPED.get(pair.value, pair.value),
        )
    return labels, pairs
