"""One OpenAI-compatible server: requests with limits, retries and a budget, and no trust in what comes back.

The ``openai`` package's async client does the HTTP: addresses, keys, proxies, connections, errors by status. Its own
retries are switched off and ``tenacity`` repeats instead: each repetition must pass the rate limits and the budget and
be counted, and the client's would do neither. Retry-After holds back all requests of all processes that share a folder
of spending files, not only the one that met it: up to ``longest_wait_seconds`` they wait, and for longer their batches
fail at once and nothing is sent.

A reply has a deadline as a whole, since a server that sends a byte now and then never meets a timeout per read, and a
length as a whole. Compressed replies are refused: a kilobyte may unfold to any size.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol

import httpx2
import openai
import tenacity
from pydantic import Field

from onibi.actors.annotators.body_limit import body_limit
from onibi.actors.annotators.call_fault import CallDropped, CallFault, retry_after_seconds
from onibi.actors.annotators.call_statistics import CallFailure, CallStatistics
from onibi.actors.annotators.completion import Completion, CompletionFault, read_completion
from onibi.actors.annotators.rate_limit import RateLimiter
from onibi.actors.annotators.shared_pause import SharedPause
from onibi.actors.annotators.spending import SpendingLedger
from onibi.platform.annotation.captions import printable, text_hash
from onibi.platform.config import Settings
from onibi.platform.errors import AnnotatorError, BudgetSpentError, ConfigError
from onibi.platform.redaction import HIDDEN, without_secrets

_LONGEST_PAUSE_SECONDS = 600.0  # whatever Retry-After says
_PROMPT_OVERHEAD_TOKENS = 64  # what a chat format puts around two messages
_REPEATED = (
    CallFailure.TIMEOUT,
    CallFailure.CONNECTION,
    CallFailure.RATE_LIMITED,
    CallFailure.SERVER_ERROR,
    CallFailure.MALFORMED,
)
# Not billed anywhere: the server answered with an error instead of a reply.
_FREE = (CallFailure.RATE_LIMITED, CallFailure.SERVER_ERROR, CallFailure.REFUSED)
_NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)


@dataclass(frozen=True, kw_only=True)
class ServerSettings(Settings):
    """How requests are sent."""

    concurrency: Annotated[int, Field(ge=1, le=1024)] = 8  # requests at once
    timeout_seconds: Annotated[float, Field(gt=0)] = 30.0  # for one whole reply
    # No request starts that might end later than this after its batch was given; the rest is asked again later.
    batch_seconds: Annotated[float, Field(gt=0)] = 100.0
    retries: Annotated[int, Field(ge=0, le=20)] = 3  # after a failure that may pass
    first_wait_seconds: Annotated[float, Field(gt=0)] = 0.5  # before the first of them, at most; doubled each time
    longest_wait_seconds: Annotated[float, Field(gt=0)] = 30.0
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    reply_bytes: Annotated[int, Field(ge=1024)] = 1_000_000  # of one body; more is broken off

    def __post_init__(self) -> None:
        if self.timeout_seconds >= self.batch_seconds:
            raise ValueError(
                f"timeout_seconds {self.timeout_seconds} is not below batch_seconds {self.batch_seconds}: no request "
                "could start"
            )


class Patience(Protocol):
    """How long the answer to a call is wanted."""

    deadline: float  # by time.monotonic; no attempt starts that may end later
    given_up: bool  # no attempt starts any more


@dataclass(frozen=True)
class Call:
    """One request: where to, what, and the most that it may use."""

    path: str
    body: Mapping[str, Any]
    prompt_bytes: int
    reply_tokens: int


@dataclass(frozen=True)
class Answer:
    """What a call brought and took."""

    completion: Completion
    latency_seconds: float
    tokens: int
    cost: float


@dataclass
class _OpenCalls:
    """Calls that wait for their reply; ``changed`` is set when one ends."""

    count: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class ModelServer:
    """Sends calls. All methods belong to one event loop.

    Args:
        base_url: of the server, with its version: ``http://127.0.0.1:8000/v1``.
        settings: how to send.
        api_key_env: environment variable that holds the key; None sends a placeholder.
        ledger: counts what is spent.
        statistics: counts what happens.
        pauses: folder in which the processes that ask this server tell one another that they were asked to wait; None:
            each waits by itself.
    Raises: AnnotatorError where the variable is not set; ConfigError where the address is none.
    """

    def __init__(
        self,
        base_url: str,
        settings: ServerSettings,
        api_key_env: str | None,
        ledger: SpendingLedger,
        statistics: CallStatistics,
        pauses: Path | None = None,
    ) -> None:
        self._shown_url = str(without_secrets(base_url))
        self._settings = settings
        self._ledger = ledger
        self._statistics = statistics
        self._limiter = RateLimiter(
            settings.requests_per_minute,
            settings.tokens_per_minute,
            time.monotonic,
            asyncio.sleep,
            settings.longest_wait_seconds,
            None if pauses is None else SharedPause(_pause_file(pauses, base_url), _LONGEST_PAUSE_SECONDS),
        )
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._open = _OpenCalls()
        self._tokens_per_byte = 1.0  # the largest seen, once one was seen
        self._measured = False
        key = api_key(api_key_env)
        self._secret = None if api_key_env is None else key
        try:
            self._client = openai.AsyncOpenAI(
                base_url=base_url,
                api_key=key,
                max_retries=0,
                timeout=settings.timeout_seconds,
                default_headers={"Accept-Encoding": "identity"},
                http_client=openai.DefaultAsyncHttpxClient(
                    # A redirected request would take captions and perhaps the key elsewhere.
                    follow_redirects=False,
                    event_hooks={"response": [body_limit(settings.reply_bytes, self._shown_url)]},
                ),
            )
        except (httpx2.InvalidURL, ValueError) as error:
            raise ConfigError(
                f"annotator.base_url {self._shown_url!r}: {error}; expected http://host:port/v1"
            ) from error

    async def ask(self, call: Call, patience: Patience) -> Answer:
        """The answer to a call, repeated where it fails in a way that may pass.

        Args:
            call: what to ask.
            patience: how long the answer is wanted; looked at before each attempt.

        Raises:
            CallFault: of the last attempt.
            CallDropped: time was over, or it was given up, before an attempt.
            BudgetSpentError: its worst case does not fit what is left, with nothing else in flight.
        """
        attempts = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(_may_pass),
            wait=self._wait_seconds,
            stop=lambda state: self._is_last(state, patience),
            sleep=asyncio.sleep,
            reraise=True,
        )
        async for attempt in attempts:
            with attempt:
                return await self._attempt(call, patience, again=attempt.retry_state.attempt_number > 1)
        raise AssertionError("tenacity ends with an answer or an error")

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _attempt(self, call: Call, patience: Patience, *, again: bool) -> Answer:
        latest = patience.deadline - self._settings.timeout_seconds
        async with self._slots:
            most_prompt = call.prompt_bytes + _PROMPT_OVERHEAD_TOKENS
            expected = math.ceil(most_prompt * self._tokens_per_byte) + call.reply_tokens
            if time.monotonic() > latest:
                raise CallDropped(f"model server {self._shown_url}: slower than batch_seconds allow")
            admission = await self._limiter.admit(expected, latest, lambda: not patience.given_up)
            if patience.given_up:
                raise CallDropped(f"model server {self._shown_url}: given up with its batch")
            if admission is None:
                pause = self._limiter.pause_left
                why = (
                    f"it asked to wait, {pause:.0f} s more"
                    if pause
                    else "the rate limit leaves no time within batch_seconds"
                )
                raise CallFault(
                    CallFailure.RATE_LIMITED,
                    f"model server {self._shown_url}: {why}; what is left is asked again later",
                    wait_seconds=math.inf,
                )
            reserved = await self._reserve(most_prompt, call.reply_tokens)
            used: tuple[int, int] | None = (most_prompt, call.reply_tokens)  # what an unknown end is counted as
            self._open.count += 1
            self._statistics.sent(again=again)
            started = time.monotonic()
            try:
                completion = await self._send(call)
                prompt_tokens, reply_tokens = used = self._used(call, completion)
            except CallFault as fault:
                self._statistics.failed(fault.failure)
                if fault.failure in _FREE:
                    used = (0, 0)
                if not fault.sent:
                    used = None
                if fault.wait_seconds is not None:
                    self._limiter.pause(min(fault.wait_seconds, _LONGEST_PAUSE_SECONDS))
                raise
            finally:
                admission.tokens = 0 if used is None else sum(used)
                self._open.count -= 1
                self._open.changed.set()
                # Last, as it may raise: who waits for the budget must not wait for a call that has ended.
                self._ledger.settle(reserved, used)
        latency, tokens = time.monotonic() - started, prompt_tokens + reply_tokens
        cost = self._ledger.price(prompt_tokens, reply_tokens)
        self._statistics.answered(latency, tokens, cost)
        return Answer(completion, latency, tokens, cost)

    async def _reserve(self, prompt_tokens: int, reply_tokens: int) -> Any:
        while (reserved := self._ledger.reserve(prompt_tokens, reply_tokens)) is None:
            if not self._open.count:
                raise BudgetSpentError(
                    f"model server {self._shown_url}: the budget is spent ({self._ledger.describe()}; the next request "
                    f"may use {prompt_tokens + reply_tokens} tokens). Labels that are there go on counting; raise "
                    "annotator.budget and resume for more"
                )
            # What is in flight mostly uses less than its worst case.
            self._open.changed.clear()
            await self._open.changed.wait()
        return reserved

    async def _send(self, call: Call) -> Completion:
        place = f"model server {self._shown_url}"
        seconds = self._settings.timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                response = await self._client.post(call.path, cast_to=httpx2.Response, body=dict(call.body))
            return read_completion(response.content)
        except (TimeoutError, openai.APITimeoutError) as error:
            raise CallFault(
                CallFailure.TIMEOUT,
                f"{place}: no whole reply within {seconds} s (timeout_seconds)",
                sent=not isinstance(error.__cause__, _NEVER_SENT),
            ) from error
        except openai.APIStatusError as error:
            raise self._status_fault(error) from error
        except CompletionFault as error:
            raise CallFault(
                CallFailure.MALFORMED,
                f"{place}: {self._without_key(str(error))}; annotator.base_url must lead to an OpenAI-compatible "
                "server",
            ) from error
        except (openai.OpenAIError, httpx2.HTTPError, OSError) as error:
            cause = error.__cause__ or error
            raise CallFault(
                CallFailure.CONNECTION,
                f"{place}: {type(cause).__name__} {self._without_key(str(cause))}; see that it is running and "
                "annotator.base_url right",
                sent=not isinstance(cause, _NEVER_SENT),
            ) from error

    def _status_fault(self, error: openai.APIStatusError) -> CallFault:
        status = error.status_code
        said = printable(self._without_key(str(without_secrets(error.message)))[:300])
        text = f"model server {self._shown_url}: status {status}, {said}"
        if status == 429 and error.code != "insufficient_quota":
            wait = retry_after_seconds(error.response.headers, time.time())
            return CallFault(CallFailure.RATE_LIMITED, text, status=status, wait_seconds=wait)
        if (status >= 500 and status != 501) or status in (408, 409, 425):  # 501: not implemented
            wait = retry_after_seconds(error.response.headers, time.time())
            return CallFault(CallFailure.SERVER_ERROR, text, status=status, wait_seconds=wait)
        hint = {
            401: "set the variable that annotator.api_key_env names to a valid key",
            403: "this key may not use the model",
            404: "check annotator.base_url (it ends in /v1) and annotator.model",
            429: "the account has no credit left",
        }.get(status, "see what it says")
        return CallFault(CallFailure.REFUSED, f"{text}; {hint}", status=status)

    def _without_key(self, text: str) -> str:
        """What a server says, without the key if it says that, too."""
        return text if self._secret is None else text.replace(self._secret, HIDDEN)

    def _used(self, call: Call, completion: Completion) -> tuple[int, int]:
        prompt, reply = completion.prompt_tokens, completion.reply_tokens
        if prompt is not None:
            ratio = prompt / (call.prompt_bytes + _PROMPT_OVERHEAD_TOKENS)
            self._tokens_per_byte = max(self._tokens_per_byte, ratio) if self._measured else ratio
            self._measured = True
        # A server that counts nothing: bytes, which are never fewer than tokens. Of the reply all that it may have had,
        # as thoughts are paid and not shown.
        return (
            call.prompt_bytes + _PROMPT_OVERHEAD_TOKENS if prompt is None else prompt,
            call.reply_tokens if reply is None else reply,
        )

    def _wait_seconds(self, state: tenacity.RetryCallState) -> float:
        settings = self._settings
        fault = state.outcome.exception() if state.outcome is not None else None
        if isinstance(fault, CallFault) and fault.wait_seconds is not None:
            return fault.wait_seconds + tenacity.wait_random(0.0, settings.first_wait_seconds)(state)
        backoff = tenacity.wait_random_exponential(settings.first_wait_seconds, settings.longest_wait_seconds)
        return backoff(state)  # uniform from 0 to the doubled time: those that failed together do not come together

    def _is_last(self, state: tenacity.RetryCallState, patience: Patience) -> bool:
        settings = self._settings
        too_long = state.upcoming_sleep > settings.longest_wait_seconds
        ends = time.monotonic() + state.upcoming_sleep + settings.timeout_seconds
        return state.attempt_number > settings.retries or too_long or ends > patience.deadline or patience.given_up


def _pause_file(folder: Path, base_url: str) -> Path:
    """Of one server: its address may hold a key, so its hash is the name."""
    return folder / f"pause-{text_hash(base_url):016x}"


def api_key(variable: str | None) -> str:
    """The key in an environment variable; a placeholder, which local servers ignore, where None is named.

    Raises: AnnotatorError where it is not set, or no header can carry it. Nothing says what is in it.
    """
    if variable is None:
        return "none"
    key = os.environ.get(variable, "").strip()
    if not key:
        raise _lasting(
            f"the environment variable {variable} (annotator.api_key_env) is not set in the annotator's process; set "
            "it where the run is started, on a cluster on every node"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise _lasting(
            f"the key in the environment variable {variable} (annotator.api_key_env) holds blanks, line ends or other "
            "characters that no HTTP header carries; see how it was copied"
        )
    return key


def _lasting(message: str) -> AnnotatorError:
    error = AnnotatorError(message)
    error.may_pass = False
    return error


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, CallFault) and error.failure in _REPEATED
