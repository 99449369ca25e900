"""Asks a model server about many items at once, and makes labels or preferences of what comes back, as it comes.

When a whole request fails:

* the server is gone, out of patience or wrong: what is in flight is waited for, nothing more is sent, and the error is
  raised behind what was judged;
* it stumbles over these very items (it refuses their text, or answers with rubbish) while it answers others: they are
  ``INVALID``, so that they are parked in the end and do not stand in the way for ever;
* else they get no label now, and are asked again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass

from onibi.actors.annotators.call_fault import CallDropped, CallFault
from onibi.actors.annotators.call_statistics import CallFailure, CallStatistics
from onibi.actors.annotators.model_server import Answer, Call, ModelServer
from onibi.actors.annotators.prompt import AnswerForm, Prompt, PromptWriter
from onibi.actors.annotators.question import Item, Judged, Origin, Question, Result
from onibi.actors.annotators.reply import Verdict, read_reply
from onibi.actors.annotators.word_probabilities import word_scores
from onibi.platform.errors import AnnotatorError, BudgetSpentError

log = logging.getLogger(__name__)

CallMaker = Callable[[Prompt, int, Sequence[str], AnswerForm], Call]
"""(prompt, items in it, words of the verdicts, form) → the request."""

_FORM_REFUSED = (400, 404, 415, 422, 501)  # what servers answer to a response_format or logprobs that they do not know
_CONTENT_REFUSED = (400, 413, 422)
_CONTENT_FAILURES = (CallFailure.MALFORMED, CallFailure.TOO_LONG)
_ENOUGH_FAILURES = 3  # requests that failed, with none that succeeded, after which a batch is given up
_NOTABLE_SHARE, _NOTABLE_VERDICTS = 0.5, 20


@dataclass
class _Batch:
    """How the requests of one batch went so far."""

    deadline: float
    answered: int = 0
    failed: int = 0
    fault: AnnotatorError | None = None
    given_up: bool = False

    def fail(self, fault: AnnotatorError) -> None:
        self.failed += 1
        # The first of a kind says most, but for the end of the budget, which must not be overheard.
        if self.fault is None or isinstance(fault, BudgetSpentError):
            self.fault = fault
        hopeless = (
            not isinstance(fault, CallFault)
            or fault.failure in (CallFailure.CONNECTION, CallFailure.RATE_LIMITED)
            or fault.status in (401, 403, 404, 429)
        )
        self.given_up |= hopeless or (self.answered == 0 and self.failed >= _ENOUGH_FAILURES)


class Questioning:
    """Questions for one server. All methods belong to one event loop.

    Args:
        server: who is asked.
        make_call: makes a request.
        form: of the answer; ``TEXT`` takes its place where the server refuses it.
        per_request: most items in one request.
        batch_seconds: most time for one batch.
        explain: whether an analysis is asked for.
        least_share: of probability on the answer's words, for WORD.
        statistics: counts verdicts.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        server: ModelServer,
        make_call: CallMaker,
        form: AnswerForm,
        *,
        per_request: int,
        batch_seconds: float,
        explain: bool,
        least_share: float,
        statistics: CallStatistics,
        clock: Callable[[], float],
    ) -> None:
        self._server = server
        self._make_call = make_call
        self._form = form
        self._form_works = form is AnswerForm.TEXT
        self._per_request = per_request
        self._batch_seconds = batch_seconds
        self._explain = explain
        self._least_share = least_share
        self._statistics = statistics
        self._clock = clock
        self._trial = asyncio.Lock()
        self._told: set[str] = set()

    async def results(
        self, question: Question[Item, Result], items: Sequence[Item], writer: PromptWriter, origin: Origin
    ) -> AsyncGenerator[Result]:
        """Judge items.

        Yields: results in the order in which they come; none for an item whose request failed.
        Raises: AnnotatorError, BudgetSpentError: behind what was judged.
        """
        batch = _Batch(deadline=time.monotonic() + self._batch_seconds)
        groups = [items[start : start + self._per_request] for start in range(0, len(items), self._per_request)]
        tasks = {asyncio.create_task(self._judge(question, group, writer, batch)): group for group in groups}
        refused: list[tuple[Sequence[Item], CallFault]] = []
        waiting = set(tasks)
        try:
            while waiting:
                finished, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in finished:
                    group = tasks[task]
                    try:
                        judged = task.result()
                    except CallFault as fault:
                        if fault.status in _CONTENT_REFUSED or fault.failure in _CONTENT_FAILURES:
                            refused.append((group, fault))
                        continue
                    except AnnotatorError:
                        continue  # kept in the batch
                    for item, one in zip(group, judged, strict=False):  # none where the batch was given up
                        yield question.result(item, self._counted(one), origin)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        if batch.answered:
            for group, refusal in refused:
                for item in group:
                    yield question.result(item, self._counted(self._unanswered(refusal)), origin)
        if batch.fault is not None and (batch.given_up or not batch.answered):
            raise batch.fault
        if items and not batch.answered:
            raise AnnotatorError(
                f"no request of {len(items)} could be sent within {self._batch_seconds} s (server.batch_seconds); "
                "raise it, or lower annotation.batch_keys"
            )

    async def close(self) -> None:
        """Close the connections."""
        await self._server.close()

    async def _judge(
        self, question: Question[Item, Result], items: Sequence[Item], writer: PromptWriter, batch: _Batch
    ) -> list[Judged]:
        try:
            form, answer = await self._ask(question, items, writer, batch)
        except CallDropped:
            return []
        except AnnotatorError as fault:
            batch.fail(fault)
            raise
        batch.answered += 1
        words = question.words(form)
        verdicts = self._read(answer, len(items), words, form)
        count = len(items)
        return [
            Judged(
                verdict=verdict,
                probability=probability,
                reply=read.text,
                fault=read.fault,
                latency_seconds=answer.latency_seconds,
                # Whole tokens, and their sum is the request's.
                tokens=answer.tokens // count + (index < answer.tokens % count),
                cost=answer.cost / count,
                time_seconds=self._clock(),
            )
            for index, (verdict, probability, read) in enumerate(verdicts)
        ]

    async def _ask(
        self, question: Question[Item, Result], items: Sequence[Item], writer: PromptWriter, batch: _Batch
    ) -> tuple[AnswerForm, Answer]:
        if not self._form_works:
            async with self._trial:  # one request finds out for all
                if not self._form_works:
                    return await self._try_form(question, items, writer, batch)
        return self._form, await self._send(question, items, writer, self._form, batch)

    async def _try_form(
        self, question: Question[Item, Result], items: Sequence[Item], writer: PromptWriter, batch: _Batch
    ) -> tuple[AnswerForm, Answer]:
        form = self._form
        try:
            answer = await self._send(question, items, writer, form, batch)
        except CallFault as fault:
            if self._form_works or form is AnswerForm.TEXT or fault.status not in _FORM_REFUSED:
                raise
            try:
                answer = await self._send(question, items, writer, AnswerForm.TEXT, batch)
            except CallFault:
                raise fault from None  # not the form: the first refusal says more
            form = self._form = AnswerForm.TEXT
            self._tell_once("form", "%s; it is asked in plain lines instead", fault)
        self._form_works = True
        return form, answer

    async def _send(
        self,
        question: Question[Item, Result],
        items: Sequence[Item],
        writer: PromptWriter,
        form: AnswerForm,
        batch: _Batch,
    ) -> Answer:
        prompt = question.prompt(writer, items, form)
        call = self._make_call(prompt, len(items), list(question.words(form).values()), form)
        return await self._server.ask(call, batch)

    def _read(
        self, answer: Answer, count: int, words: Mapping[str, str], form: AnswerForm
    ) -> list[tuple[str | None, Mapping[str, float] | None, Verdict]]:
        completion = answer.completion
        if form is AnswerForm.WORD and completion.first_tokens is not None:
            scores = word_scores(completion.first_tokens, words, self._least_share)
            text = f"{completion.text.strip()} [{scores.describe()}]"
            if scores.probability is None:
                return [(None, None, Verdict(None, text, "the model was about to say something else"))]
            likeliest = max(scores.probability, key=scores.probability.__getitem__)
            return [(likeliest, scores.probability, Verdict(words[likeliest], text))]
        if form is AnswerForm.WORD:
            self._tell_once("probabilities", "the model server sends no log-probabilities; its words count instead")
        explain = self._explain and form is not AnswerForm.WORD
        verdict_of = {word: verdict for verdict, word in words.items()}
        read = read_reply(completion.text, count, tuple(verdict_of), explain=explain, complete=completion.complete)
        return [(None if one.word is None else verdict_of[one.word], None, one) for one in read]

    def _unanswered(self, fault: CallFault) -> Judged:
        return Judged(
            verdict=None,
            reply="",
            fault=str(fault),
            latency_seconds=0.0,
            tokens=0,
            cost=0.0,
            time_seconds=self._clock(),
        )

    def _counted(self, judged: Judged) -> Judged:
        self._statistics.judged(invalid=judged.verdict is None)
        if judged.verdict is None:
            share, count = self._statistics.parse_failure_share()
            if share > _NOTABLE_SHARE and count >= _NOTABLE_VERDICTS:
                self._tell_once(
                    "unreadable",
                    "%.0f%% of the model's answers cannot be read, such as %r; choose another model, another form of "
                    "answer (annotator.answer), or a larger annotator.reply_tokens where they are cut",
                    100 * share,
                    judged.kept_reply[:200],
                )
        return judged

    def _tell_once(self, what: str, message: str, *arguments: object) -> None:
        if what not in self._told:
            self._told.add(what)
            log.warning(message, *arguments)
