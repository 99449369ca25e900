"""A user's own annotator by import path: any class that judges captions.

    class Mine:                                   # my_package/judges.py, found by every process of the run
        goal, model, prompt_version = "Find the key.", "mine", "3"
        def __init__(self, threshold): ...        # annotator.arguments
        def annotate(self, requests, goal):       # yields a label as soon as each is there
            for request in requests:
                yield label_for(self, request, 1.0 if "key" in request.key_text else 0.0)

``label_for`` is ``onibi.platform.annotation.annotator.label_for``. Left out, ``prefer`` compares two labels,
``is_free`` is False, ``statistics`` are none, and ``close`` does nothing. docs/annotators.md has a whole example.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from onibi.platform.annotation.annotator import AnnotationRequest, PairRequest, prefer_by_scores
from onibi.platform.annotation.captions import text_hash
from onibi.platform.annotation.labels import Judge, Label, LabelValue, Preference, PreferenceValue
from onibi.platform.config import Settings
from onibi.platform.errors import AnnotatorError, ConfigError, OnibiError
from onibi.platform.redaction import text_without_secrets, without_secrets
from onibi.platform.user_code import raised_at

log = logging.getLogger(__name__)

_NEEDED = ("goal", "model", "prompt_version", "annotate")
_EXAMPLE = "my_package.judges:Mine"
_OF_CODE = (AttributeError, ImportError, NameError, TypeError)  # no waiting mends what raises these
_SHOWN_CHARACTERS = 80


@dataclass(frozen=True, kw_only=True)
class CustomAnnotatorSettings(Settings):
    """``path`` names what is called as ``path(**arguments)`` and returns the annotator."""

    kind: Literal["custom"] = "custom"
    path: str = ""  # module:name; must be given
    arguments: dict[str, bool | int | float | str] = field(default_factory=dict)


class CustomAnnotator:
    """The user's annotator.

    Args:
        settings: where it is and its arguments.
    Raises: ConfigError where it cannot be imported or made, or lacks what an annotator has.
    """

    Settings: ClassVar[type[CustomAnnotatorSettings]] = CustomAnnotatorSettings

    def __init__(self, settings: CustomAnnotatorSettings) -> None:
        self.settings = settings
        module, colon, name = settings.path.partition(":")
        if not (module and colon and name.isidentifier()):
            raise ConfigError(f"annotator.path is {settings.path!r}; expected module:name, as in {_EXAMPLE}")
        try:
            self._judge: Any = getattr(importlib.import_module(module), name)(**settings.arguments)
        except Exception as error:  # whatever the user's module does when it is imported and called
            raise ConfigError(
                f"annotator.path {settings.path!r}: {self._shown(repr(error))}. The module must be importable in every "
                f"process of the run (PYTHONPATH), and {name}, a class with {', '.join(_NEEDED)}, must take "
                f"annotator.arguments {without_secrets(settings.arguments)}: docs/annotators.md has a whole example"
            ) from error
        self._judged: dict[int, Label] = {}  # keys of pairs: each is asked, and perhaps paid, once
        # Once: verdicts are found again by these, so what changes on the way is told as a fault, not asked for ever.
        self._identity, missing = self._looked_over()
        if missing:
            raise ConfigError(
                f"annotator.path {settings.path!r}: lacks {missing}; an annotator has {list(_NEEDED)}. Add what is "
                "missing, as the example in docs/annotators.md does"
            )
        for method in ("annotate", "prefer", "statistics", "close"):
            if hasattr(self._judge, method) and not callable(getattr(self._judge, method)):
                raise ConfigError(
                    f"annotator.path {settings.path!r}: {method} is {_short(getattr(self._judge, method))}; it must be "
                    "a method, as in docs/annotators.md"
                )

    def _looked_over(self) -> tuple[Judge, list[str]]:
        """Whose verdicts its verdicts are, and what it lacks."""
        try:
            missing = [needed for needed in _NEEDED if not hasattr(self._judge, needed)]
            told = {name: str(getattr(self._judge, name, "")) for name in ("prompt_version", "model", "goal")}
        except Exception as error:  # of a property of the user's
            raise ConfigError(
                f"annotator.path {self.settings.path!r} raised{raised_at(error)}: {self._shown(repr(error))}. An "
                "annotator tells goal, model and prompt_version as soon as it is made"
            ) from error
        return Judge(**told), missing

    @property
    def goal(self) -> str:
        """The user's, as it was when the annotator was made."""
        return self._identity.goal

    @property
    def model(self) -> str:
        """The user's, likewise."""
        return self._identity.model

    @property
    def prompt_version(self) -> str:
        """The user's, likewise."""
        return self._identity.prompt_version

    @property
    def is_free(self) -> bool:
        """The user's word; False without one, so that its labels are kept on disk."""
        return bool(getattr(self._judge, "is_free", False))

    def annotate(self, requests: Sequence[AnnotationRequest], goal: str) -> Iterator[Label]:
        """The user's labels.

        Raises: AnnotatorError for whatever else the user's code raises, and for what it yields that is no label of one
            of the requests by this judge.
        """
        asked = {text_hash(request.key_text) for request in requests}
        with self._told("annotate"):
            for label in self._judge.annotate(requests, goal):
                self._check_kind("annotate", label, Label, LabelValue)
                if label.key_hash not in asked:
                    raise self._fault(
                        f"annotate yielded a label of {label.key_text!r} with key_hash {label.key_hash}, which is not "
                        "that of the key_text of a request"
                    )
                self._check_judge("annotate", label, goal)
                yield label

    def prefer(self, pairs: Sequence[PairRequest], goal: str) -> Iterator[Preference]:
        """The user's preferences, or those that follow from two labels. Raises: AnnotatorError as ``annotate``."""
        if not hasattr(self._judge, "prefer"):
            yield from prefer_by_scores(self, pairs, goal, self._judged)
            return
        asked = {(text_hash(pair.first.key_text), text_hash(pair.second.key_text)) for pair in pairs}
        with self._told("prefer"):
            for preference in self._judge.prefer(pairs, goal):
                self._check_kind("prefer", preference, Preference, PreferenceValue)
                if (preference.first_hash, preference.second_hash) not in asked:
                    raise self._fault(
                        f"prefer yielded a preference of {preference.first_text!r} and {preference.second_text!r}, "
                        "whose hashes are not those of a pair that was asked"
                    )
                self._check_judge("prefer", preference, goal)
                yield preference

    def _check_kind(self, method: str, given: object, kind: type, values: type) -> None:
        if not isinstance(given, kind):
            raise self._fault(
                f"{method} yielded {_short(given)}; allowed is {kind.__module__}.{kind.__name__}, one for each request"
            )
        value = given.value  # type: ignore[attr-defined]
        if not isinstance(value, values):
            raise self._fault(
                f"{method} yielded a {kind.__name__} whose value is {_short(value)}; allowed is one of "
                f"{', '.join(f'{values.__name__}.{each.name}' for each in values)}"  # type: ignore[attr-defined]
            )

    def _check_judge(self, method: str, given: Label | Preference, goal: str) -> None:
        """Verdicts are kept, and found again, by whose they are."""
        expected = Judge(self.prompt_version, self.model, goal)
        if given.judge != expected:
            raise self._fault(f"{method} yielded a verdict of {given.judge}; allowed is its own judge, {expected}")

    def _fault(self, what: str) -> AnnotatorError:
        fault = AnnotatorError(
            f"annotator.path {self.settings.path!r}: {what}. onibi.platform.annotation.annotator.label_for(self, "
            "request, score) makes a label that fits; see docs/annotators.md"
        )
        fault.may_pass = False
        return fault

    @contextmanager
    def _told(self, method: str) -> Iterator[None]:
        try:
            yield
        except (AnnotatorError, GeneratorExit):
            raise
        except Exception as error:
            log.debug("annotator %s raised", self.settings.path, exc_info=error)
            what = self._shown(str(error) if isinstance(error, OnibiError) else repr(error))
            told = AnnotatorError(
                f"annotator.path {self.settings.path!r} raised in {method}{raised_at(error)}: {what}. Mend its code; "
                "docs/annotators.md has an example"
            )
            told.may_pass = not isinstance(error, (*_OF_CODE, OnibiError))
            raise told from error

    def _shown(self, text: str) -> str:
        """What the user's code says, without a key that it was given."""
        return text_without_secrets(text, self.settings.arguments)

    def statistics(self) -> dict[str, float]:
        """The user's figures."""
        return dict(self._judge.statistics()) if hasattr(self._judge, "statistics") else {}

    def close(self) -> None:
        """Passed on."""
        if hasattr(self._judge, "close"):
            self._judge.close()


def _short(value: object) -> str:
    """A value and its type, for a message."""
    text = repr(value)
    return f"{text[:_SHOWN_CHARACTERS]}{'…' if len(text) > _SHOWN_CHARACTERS else ''} ({type(value).__name__})"
