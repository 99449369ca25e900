"""A user's own annotator by import path: any class that judges captions.

    class Mine:                                   # my_package/judges.py, found by every process of the run
        goal, model, prompt_version = "Find the key.", "mine", "3"
        def __init__(self, threshold): ...        # annotator.arguments
        def annotate(self, requests, goal):       # yields onibi.platform.labels.Label as soon as each is there
            ...

Left out, ``prefer`` compares two labels, ``is_free`` is False, ``statistics`` are none, and ``close`` does nothing.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from onibi.platform.annotator import AnnotationRequest, PairRequest, prefer_by_scores
from onibi.platform.config import Settings
from onibi.platform.errors import AnnotatorError, ConfigError, OnibiError
from onibi.platform.labels import Label, Preference

log = logging.getLogger(__name__)

_NEEDED = ("goal", "model", "prompt_version", "annotate")
_EXAMPLE = "my_package.judges:Mine"


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
                f"annotator.path {settings.path!r}: {error!r}. The module must be importable in every process of the "
                f"run (PYTHONPATH), and {name} must take annotator.arguments {settings.arguments}"
            ) from error
        missing = [needed for needed in _NEEDED if not hasattr(self._judge, needed)]
        if missing:
            raise ConfigError(f"annotator.path {settings.path!r}: lacks {missing}; an annotator has {list(_NEEDED)}")

    @property
    def goal(self) -> str:
        """The user's."""
        return str(self._judge.goal)

    @property
    def model(self) -> str:
        """The user's."""
        return str(self._judge.model)

    @property
    def prompt_version(self) -> str:
        """The user's."""
        return str(self._judge.prompt_version)

    @property
    def is_free(self) -> bool:
        """The user's word; False without one, so that its labels are kept on disk."""
        return bool(getattr(self._judge, "is_free", False))

    def annotate(self, requests: Sequence[AnnotationRequest], goal: str) -> Iterator[Label]:
        """The user's labels. Raises: AnnotatorError for whatever else the user's code raises."""
        with self._told():
            yield from self._judge.annotate(requests, goal)

    def prefer(self, pairs: Sequence[PairRequest], goal: str) -> Iterator[Preference]:
        """The user's preferences, or those that follow from two labels."""
        if hasattr(self._judge, "prefer"):
            with self._told():
                yield from self._judge.prefer(pairs, goal)
        else:
            yield from prefer_by_scores(self, pairs, goal)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (OnibiError, GeneratorExit):
            raise
        except Exception as error:
            log.info("annotator %s raised", self.settings.path, exc_info=error)
            raise AnnotatorError(f"annotator.path {self.settings.path!r} raised {error!r}; see its code") from error

    def statistics(self) -> dict[str, float]:
        """The user's figures."""
        return dict(self._judge.statistics()) if hasattr(self._judge, "statistics") else {}

    def close(self) -> None:
        """Passed on."""
        if hasattr(self._judge, "close"):
            self._judge.close()
