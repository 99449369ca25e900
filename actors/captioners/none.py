"""No captions: for runs on the environment's reward alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from onibi.actors.captioners.captioner import envs_of
from onibi.platform.annotation.captions import EMPTY_TEXT
from onibi.platform.config import Settings
from onibi.platform.fragment import CaptionText


@dataclass(frozen=True, kw_only=True)
class NoCaptionerSettings(Settings):
    """Nothing to set."""

    kind: Literal["none"] = "none"


class NoCaptioner:
    """Every caption is empty."""

    Settings: ClassVar[type[NoCaptionerSettings]] = NoCaptionerSettings

    def __init__(self, settings: NoCaptionerSettings) -> None:
        self.settings = settings
        self.observation_keys: tuple[str, ...] = ()
        self.keys_per_caption = 0
        self.key_version = "none-1"

    def captions(self, raw: Any, infos: Mapping[str, Any]) -> list[CaptionText]:  # noqa: ARG002 - the contract's
        """[E] empty captions."""
        return [EMPTY_TEXT] * envs_of(raw)
