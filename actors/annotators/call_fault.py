"""Why a request to a model server brought no answer."""

from __future__ import annotations

import email.utils
import math
from collections.abc import Mapping

from onibi.actors.annotators.call_statistics import CallFailure
from onibi.platform.errors import AnnotatorError


class CallFault(AnnotatorError):
    """A request brought no answer.

    Args:
        failure: what kind.
        message: for the user.
        status: of the reply; 0 where there was none.
        wait_seconds: what the server asked for.
        sent: False where the request never left.
    """

    def __init__(
        self,
        failure: CallFailure,
        message: str,
        *,
        status: int = 0,
        wait_seconds: float | None = None,
        sent: bool = True,
    ) -> None:
        super().__init__(message)
        self.failure = failure
        self.may_pass = failure is not CallFailure.REFUSED
        self.status = status
        self.wait_seconds = wait_seconds
        self.sent = sent


class CallDropped(AnnotatorError):
    """A request was not sent, as nobody waits for it any more."""


def retry_after_seconds(headers: Mapping[str, str], now: float) -> float | None:
    """What Retry-After asks for, 0 or more; None where it is absent or no time.

    Args:
        headers: of the reply.
        now: seconds since 1970.
    """
    text = headers.get("retry-after", "").strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - now
        except (ValueError, TypeError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
