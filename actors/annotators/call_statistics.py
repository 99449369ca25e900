"""What happened to the requests of an annotator, in numbers."""

from __future__ import annotations

import threading
from collections import Counter, deque
from enum import StrEnum

import numpy as np

_RECENT = 1000  # answers over which shares and percentiles are taken
_PERCENTILES = (50, 95, 99)


class CallFailure(StrEnum):
    """Why a request brought no answer."""

    TIMEOUT = "timeout"  # not whole in time: slow, silent, or an endless stream
    CONNECTION = "connection"  # refused, dropped, broken off, no such host
    RATE_LIMITED = "rate_limited"  # 429
    SERVER_ERROR = "server_error"  # 5xx
    REFUSED = "refused"  # any other status that is not 200
    MALFORMED = "malformed"  # 200, and no completion in it
    TOO_LONG = "too_long"  # more bytes than allowed


class CallStatistics:
    """Counts since the annotator was made; one thread counts, any may read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures: Counter[CallFailure] = Counter()
        self._requests = 0
        self._answers = 0
        self._retries = 0
        self._tokens = 0
        self._cost = 0.0
        self._invalid = 0
        self._verdicts = 0
        self._latencies: deque[float] = deque(maxlen=_RECENT)
        self._recent_invalid: deque[bool] = deque(maxlen=_RECENT)
        self._healthy = True

    def sent(self, *, again: bool) -> None:
        """A request went out; ``again`` where it repeats a failed one."""
        with self._lock:
            self._requests += 1
            self._retries += again

    def answered(self, latency_seconds: float, tokens: int, cost: float) -> None:
        """An answer came."""
        with self._lock:
            self._answers += 1
            self._latencies.append(latency_seconds)
            self._tokens += tokens
            self._cost += cost
            self._healthy = True

    def failed(self, failure: CallFailure) -> None:
        """A request brought no answer."""
        with self._lock:
            self._failures[failure] += 1
            self._healthy = False

    def judged(self, *, invalid: bool) -> None:
        """One caption or pair of an answer was read, or could not be."""
        with self._lock:
            self._verdicts += 1
            self._invalid += invalid
            self._recent_invalid.append(invalid)

    def parse_failure_share(self) -> tuple[float, int]:
        """Unreadable share of the newest verdicts, at most 1,000, and how many these are; 0 where there is none."""
        with self._lock:
            count = len(self._recent_invalid)
            return (sum(self._recent_invalid) / count if count else 0.0), count

    def metrics(self) -> dict[str, float]:
        """All of it by name. Percentiles are over the newest 1,000 answers and absent before the first."""
        share, _ = self.parse_failure_share()
        with self._lock:
            metrics = {
                "requests": float(self._requests),
                "answers": float(self._answers),
                "retries": float(self._retries),
                "failures": float(self._failures.total()),
                **{f"failures_{failure.value}": float(self._failures[failure]) for failure in CallFailure},
                "tokens": float(self._tokens),
                "cost": self._cost,
                "verdicts": float(self._verdicts),
                "invalid": float(self._invalid),
                "parse_failure_share": share,
                "healthy": float(self._healthy),
            }
            if self._latencies:
                values = np.percentile(np.array(self._latencies), _PERCENTILES)
                metrics |= {f"latency_p{p}_seconds": float(v) for p, v in zip(_PERCENTILES, values, strict=True)}
        return metrics
