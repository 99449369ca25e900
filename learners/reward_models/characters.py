"""Characters through a small convolutional or recurrent network: ONI's own form, for texts whose spelling matters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from onibi.platform.config import Settings

if TYPE_CHECKING:
    from torch import Generator

    from onibi.learners.reward_models.member_layers import MemberEncoder

BYTES = 256


@dataclass(frozen=True, kw_only=True)
class CharactersSettings(Settings):
    """Embedded bytes of a text, then two convolutions and the maximum over places, or a GRU.

    Smaller than ONI's, which has six convolutions of 64 channels and learns from tens of thousands of labels.
    """

    kind: Literal["characters"] = "characters"
    network: Literal["cnn", "gru"] = "cnn"
    length: Annotated[int, Field(ge=8, le=4096)] = 96  # bytes of a text that are read, from its start
    embedding: Annotated[int, Field(ge=1)] = 16
    width: Annotated[int, Field(ge=1)] = 48  # channels, or the GRU's state


class Characters:
    """UTF-8 bytes of a text as numbers from 1."""

    Settings: ClassVar[type[CharactersSettings]] = CharactersSettings

    def __init__(self, settings: CharactersSettings) -> None:
        self.settings = settings

    def tokens(self, texts: Sequence[str]) -> NDArray[np.int16]:
        """[texts, length] int16; 0 pads."""
        tokens = np.zeros((len(texts), self.settings.length), np.int16)
        for row, text in zip(tokens, texts, strict=True):
            read = np.frombuffer(text.encode("utf-8", "surrogatepass")[: len(row)], np.uint8)
            row[: len(read)] = read.astype(np.int16) + 1
        return tokens

    def network(self, generators: Sequence[Generator]) -> MemberEncoder:
        """[N, B, length] → [N, B, width]."""
        from onibi.learners.reward_models.text_networks import CharacterConvolutions, CharacterGru

        owner = CharacterConvolutions if self.settings.network == "cnn" else CharacterGru
        return owner(generators, BYTES + 1, self.settings.embedding, self.settings.width)
