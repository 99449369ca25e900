"""What a text encoder is: texts to fixed-width numbers once, and a network over those, for all members at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Generator

    from onibi.learners.reward_models.member_layers import MemberEncoder


class TextEncoder(Protocol):
    """One file in ``learners/reward_models`` and one line in its registry.

    Its module loads no torch before ``network`` is called: settings travel to processes that never learn.
    """

    def tokens(self, texts: Sequence[str]) -> NDArray[Any]:
        """[texts, W]: what the network reads of each text; the same text always gets the same row."""

    def network(self, generators: Sequence[Generator]) -> MemberEncoder:
        """A network for one member of each generator, which draws that member's first parameters."""
