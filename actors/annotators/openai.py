"""Labels by a language model behind any OpenAI-compatible server: vLLM, Ray Serve LLM, llama.cpp, Ollama, hosted ones.

    annotator:
      kind: openai
      base_url: http://127.0.0.1:8000/v1
      model: meta-llama/Llama-3.1-8B-Instruct
      goal: Find the key and open the locked door.

``answer: json`` asks for a JSON object and has the server force its form by a schema; a server that refuses schemas is
asked in plain lines from then on. ``log_probabilities`` asks for one word and takes the probabilities of "yes" and "no"
as score; where a server gives none, the word itself counts. ``text`` asks for plain lines.

Differences from ONI: no label is guessed from a reply that cannot be read; structured answers, scores by probability
and budgets are ours; prompts are ours.
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field

from onibi.actors.annotators.background_loop import BackgroundLoop
from onibi.actors.annotators.call_fault import CallFault
from onibi.actors.annotators.call_statistics import CallFailure
from onibi.actors.annotators.language_model import LanguageModelAnnotator
from onibi.actors.annotators.model_server import Call, ModelServer, ServerSettings
from onibi.actors.annotators.prompt import AnswerForm, Prompt, answer_schema
from onibi.actors.annotators.question import Item, Origin, Question, Result
from onibi.actors.annotators.questioning import Questioning
from onibi.actors.annotators.spending import BudgetSettings, PriceSettings, SpendingLedger
from onibi.platform.annotation.annotator import AnnotationRequest, PairRequest
from onibi.platform.annotation.estimate import AnnotationEstimate
from onibi.platform.annotation.labels import prompt_hash
from onibi.platform.config import Settings
from onibi.platform.errors import AnnotatorError, BudgetSpentError, ConfigError

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FORMS = {"json": AnswerForm.JSON, "text": AnswerForm.TEXT, "log_probabilities": AnswerForm.WORD}
_OWN_FIELDS = ("model", "messages", "prompt", "max_tokens", "max_completion_tokens", "n", "best_of", "stream")
"""Of a request: what a label is said to come from, and what the budget counts as its worst case."""
_WORD_TOKENS = 4  # a blank or a quote may come first
_LEAST_BYTES_PER_TOKEN = 3.0  # of English prompts; 3.9 were seen
_FRAME_TOKENS, _ITEM_TOKENS, _ANALYSIS_TOKENS = 16, 16, 80


@dataclass(frozen=True, kw_only=True)
class OpenaiSettings(Settings):
    """Which model judges, how it is asked, and what that may cost."""

    kind: Literal["openai"] = "openai"
    base_url: str  # http://host:port/v1
    model: str  # as the server calls it
    api_key_env: str | None = None  # environment variable that holds the key; null where the server wants none
    goal: str | None = None  # in plain words; null: the prompt template's
    prompt: str = "nethack"  # template that ships with Onibi (general, minigrid, nethack), or path of a YAML file
    answer: Literal["json", "text", "log_probabilities"] = "json"
    api: Literal["chat", "completion"] = "chat"  # /chat/completions, or /completions for models without a chat format
    captions_per_request: Annotated[int, Field(ge=1, le=100)] = 1  # json and text only
    explain: bool = False  # one sentence of analysis before each label: better judged, many more tokens
    temperature: Annotated[float, Field(ge=0, le=2)] | None = 0.1  # null: the server's own
    reply_tokens: Annotated[int, Field(ge=1)] | None = None  # the most for one reply; null: enough for the answers
    caption_characters: Annotated[int, Field(ge=16)] = 300  # of one caption; the rest is cut
    whole_captions: bool = True  # show a sentence together with the caption in which it was heard
    likeliest_tokens: Annotated[int, Field(ge=2, le=100)] = 20  # asked for by log_probabilities; servers allow 5 to 20
    least_word_share: Annotated[float, Field(gt=0, le=1)] = 0.1  # of probability on the answer's words, else invalid
    system_role: bool = True  # false for models whose chat format has no system message
    reply_limit_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"  # the latter for newest hosted ones
    extra_body: dict[str, Any] = field(default_factory=dict)  # more fields of the request, as the server names them
    server: ServerSettings = field(default_factory=ServerSettings)
    budget: BudgetSettings = field(default_factory=BudgetSettings)
    prices: PriceSettings = field(default_factory=PriceSettings)

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        _ = parts.port  # raises ValueError for one above 65535, on which the first request would end in a traceback
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"base_url must be http://host:port/v1 or https://…, found scheme {parts.scheme!r}")
        if self.api_key_env is not None and not _VARIABLE.fullmatch(self.api_key_env):
            # A key that was put here by mistake must not be repeated.
            raise ValueError(
                "api_key_env is not the name of an environment variable (letters, digits and _): name the variable "
                "that holds the key, never the key itself"
            )
        if not self.model:
            raise ValueError("model is empty; name the model as the server calls it (GET base_url/models lists them)")
        if self.answer == "log_probabilities" and (self.captions_per_request > 1 or self.explain):
            raise ValueError(
                "answer: log_probabilities scores one word of one caption; set captions_per_request to 1 and explain "
                "to false, or choose answer: json"
            )
        if own := [name for name in _OWN_FIELDS if name in self.extra_body]:
            raise ValueError(
                f"extra_body holds {', '.join(own)}, which are set by model, prompt and reply_tokens (with "
                "reply_limit_name): labels would name another model, or the budget would count less than is asked for"
            )
        if self.budget.money is not None and not self.prices.prompt_per_million + self.prices.reply_per_million > 0:
            raise ValueError("budget.money is set, but both prices are 0: it would never be spent; set prices")


class OpenaiAnnotator(LanguageModelAnnotator[OpenaiSettings]):
    """Asks a model server. What is slow runs in a thread of its own; ``annotate`` yields what has come.

    Args:
        settings: which server, model, prompt and budget.
        clock: seconds since 1970, for the labels' time.
    Raises: ConfigError where the prompt template is missing or at fault.
    """

    Settings: ClassVar[type[OpenaiSettings]] = OpenaiSettings

    def __init__(self, settings: OpenaiSettings, clock: Callable[[], float] = time.time) -> None:
        super().__init__(settings, clock, explain=settings.explain)
        self._loop = BackgroundLoop(f"annotator {settings.model}")
        self._spending_file = None if settings.budget.file is None else Path(settings.budget.file).expanduser()
        self._server = settings.server
        self._ledger: SpendingLedger | None = None
        self._questioning: Questioning | None = None
        self._budget_spent: BudgetSpentError | None = None
        self._connecting = threading.Lock()

    def keep_spending(self, file: Path) -> None:
        """Keep the counts of the budget in this file, unless the settings name one; call before the first request.

        Beside it lies until when the server wants no requests: processes that share the folder wait together.
        """
        if self._spending_file is None:
            self._spending_file = file

    def share_limits(self, processes: int) -> None:
        """One of so many processes that ask the server at once: each keeps to its part of what a minute may hold.

        Raises: ConfigError where a part would be nothing. Call before the first request.
        """
        server = self.settings.server
        self._server = replace(
            server,
            requests_per_minute=_part("requests_per_minute", server.requests_per_minute, processes),
            tokens_per_minute=_part("tokens_per_minute", server.tokens_per_minute, processes),
        )

    def estimate(self, items: Sequence[AnnotationRequest] | Sequence[PairRequest]) -> AnnotationEstimate:
        """What judging these would cost without repeats, on the safe side; asks nobody."""
        writer, form, size = self._writer(self.goal), _FORMS[self.settings.answer], self.settings.captions_per_request
        calls = []
        for start in range(0, len(items), size):
            pairs = [item for item in items[start : start + size] if isinstance(item, PairRequest)]
            requests = [item for item in items[start : start + size] if isinstance(item, AnnotationRequest)]
            prompt = writer.preferences(pairs, form) if pairs else writer.labels(requests, form)
            calls.append(self._call(prompt, len(pairs) or len(requests), ("first", "second", "tie"), form))
        prompt_tokens = sum(math.ceil(call.prompt_bytes / _LEAST_BYTES_PER_TOKEN) for call in calls)
        reply_tokens = sum(call.reply_tokens for call in calls)
        ledger = SpendingLedger(self.settings.budget, self.settings.prices, None)
        return AnnotationEstimate(
            calls=len(calls),
            prompt_tokens=prompt_tokens,
            reply_tokens=reply_tokens,
            cost=ledger.price(prompt_tokens, reply_tokens),
        )

    def statistics(self) -> dict[str, float]:
        """Metrics since it was made; ``spent_…`` and ``budget_left_…`` over all runs that count in the same file."""
        metrics = super().statistics()
        if self._ledger is not None:
            spent = self._ledger.spent
            metrics |= {
                "spent_requests": float(spent.requests),
                "spent_tokens": float(spent.tokens),
                "spent_money": spent.money,
                **self._ledger.left(),
            }
        return metrics

    def interrupt(self) -> None:
        """Cancel what is asked, from any thread: its reader gets what has come, and then an AnnotatorError."""
        self.close()

    def close(self) -> None:
        """Cancel what is asked and close the connections."""
        questioning, self._questioning = self._questioning, None
        if questioning is not None:
            self._loop.close(questioning.close)

    def _ask(self, question: Question[Item, Result], items: Sequence[Item], goal: str) -> Iterator[Result]:
        if not items:
            return
        if self._budget_spent is not None:
            raise self._budget_spent
        writer = self._writer(goal)
        origin = Origin(annotator="openai", model=self.settings.model, prompt_version=self._version(goal), goal=goal)
        try:
            with self._connecting:  # several threads may ask
                if self._questioning is None:
                    self._questioning = self._loop.run(self._connected())
                questioning = self._questioning
            self._unable = False
            yield from self._loop.iterate(questioning.results(question, items, writer, origin))
        except BudgetSpentError as error:
            self._budget_spent, self._unable = error, True
            raise
        except AnnotatorError as error:
            # A limit of our own says nothing of the server.
            self._unable = not (isinstance(error, CallFault) and error.failure is CallFailure.RATE_LIMITED)
            raise

    async def _connected(self) -> Questioning:
        settings = self.settings
        # A coroutine: the client's locks belong to the loop that it is made on.
        self._ledger = self._ledger or SpendingLedger(settings.budget, settings.prices, self._spending_file)
        server = ModelServer(
            settings.base_url,
            self._server,
            settings.api_key_env,
            self._ledger,
            self._statistics,
            None if self._spending_file is None else self._spending_file.parent,
        )
        return Questioning(
            server,
            self._call,
            _FORMS[settings.answer],
            per_request=settings.captions_per_request,
            batch_seconds=settings.server.batch_seconds,
            explain=settings.explain,
            least_share=settings.least_word_share,
            statistics=self._statistics,
            clock=self._clock,
        )

    def _version(self, goal: str) -> str:
        # Model, every text of the prompt, form of the answer and sampling; not the server's address.
        settings, writer = self.settings, self._writer(goal)
        return prompt_hash(
            "openai",
            settings.model,
            goal,
            settings.answer,
            settings.api,
            # A server that refuses the form is asked in plain lines: both prompts shape the verdicts.
            writer.fingerprint(_FORMS[settings.answer]),
            writer.fingerprint(AnswerForm.TEXT),
            *(
                json.dumps(getattr(settings, name), sort_keys=True)
                for name in (
                    "captions_per_request",
                    "explain",
                    "temperature",
                    "reply_tokens",
                    "likeliest_tokens",
                    "least_word_share",
                    "system_role",
                    "extra_body",
                )
            ),
        )

    def _call(self, prompt: Prompt, count: int, verdict_words: Sequence[str], form: AnswerForm) -> Call:
        """The request that asks ``prompt`` about ``count`` items."""
        settings = self.settings
        reply_tokens = settings.reply_tokens or reply_bound(count, form, explain=settings.explain)
        body: dict[str, Any] = {"model": settings.model, settings.reply_limit_name: reply_tokens}
        if settings.temperature is not None:
            body["temperature"] = settings.temperature
        schema = answer_schema(count, verdict_words, explain=settings.explain)
        if form is AnswerForm.JSON:
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answers", "strict": True, "schema": schema},
            }
        if settings.api == "completion":
            body["prompt"] = prompt.text
            if form is AnswerForm.WORD:
                body["logprobs"] = settings.likeliest_tokens
            if form is not AnswerForm.JSON:
                body["stop"] = ["\n\n"]  # models without turns write on
            else:
                body["json_schema"] = schema  # what llama.cpp calls it here
        else:
            body["messages"] = _messages(prompt, system_role=settings.system_role)
            if form is AnswerForm.WORD:
                body |= {"logprobs": True, "top_logprobs": settings.likeliest_tokens}
        path = "/completions" if settings.api == "completion" else "/chat/completions"
        return Call(path, body | settings.extra_body, prompt.bytes, reply_tokens)


def reply_bound(count: int, form: AnswerForm, *, explain: bool) -> int:
    """Tokens that are enough for an answer about ``count`` items."""
    if form is AnswerForm.WORD:
        return _WORD_TOKENS
    return _FRAME_TOKENS + count * (_ITEM_TOKENS + (_ANALYSIS_TOKENS if explain else 0))


def _messages(prompt: Prompt, *, system_role: bool) -> list[dict[str, str]]:
    if not system_role:
        return [{"role": "user", "content": f"{prompt.system}\n\n{prompt.user}"}]
    return [{"role": "system", "content": prompt.system}, {"role": "user", "content": prompt.user}]


def _part(name: str, limit: int | None, processes: int) -> int | None:
    if limit is not None and limit < processes:
        raise ConfigError(
            f"annotator.server.{name} is {limit}, and annotation.workers {processes} processes would share it; set "
            f"annotation.workers to {limit} or fewer"
        )
    return None if limit is None else limit // processes
