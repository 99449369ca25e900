"""What a language model has cost, and the budget that ends it: hard, and kept over restarts.

Before a request is sent its worst case is counted: all prompt tokens that its bytes could make and all reply tokens it
may use. When the answer is there, the real figures take its place. So what is in flight always counts, a process that
is killed leaves its open requests counted in full, and no limit is passed unless a server gives more tokens than it was
asked for.

With a file, the counts are in it after each change, and several processes (workers, a resumed run) count in it
together.
"""

from __future__ import annotations

import fcntl
import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated

from pydantic import Field

from onibi.platform.config import Settings
from onibi.platform.durable import write_durably
from onibi.platform.errors import AnnotatorError

_MILLION = 1_000_000
_TEXT_BYTES = 256  # of the file, filled with blanks: four numbers and their names take less, and a disk's block more
_Limit = Annotated[int, Field(ge=1)] | None
_Price = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, kw_only=True)
class PriceSettings(Settings):
    """What a million tokens cost, in any currency; 0 for a server of your own."""

    prompt_per_million: _Price = 0.0
    reply_per_million: _Price = 0.0


@dataclass(frozen=True, kw_only=True)
class BudgetSettings(Settings):
    """Where the annotator stops for good; null is no limit. Failed and repeated requests count as well."""

    requests: _Limit = None
    tokens: _Limit = None  # of prompts and replies together
    money: Annotated[float, Field(gt=0)] | None = None  # in the currency of the prices
    file: str | None = None  # counts are kept here and go on from here; null: in the run's folder, for this run alone


@dataclass(frozen=True)
class Spending:
    """What was used up."""

    requests: int = 0
    prompt_tokens: int = 0
    reply_tokens: int = 0
    money: float = 0.0

    def __add__(self, other: Spending) -> Spending:
        return Spending(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.reply_tokens + other.reply_tokens,
            self.money + other.money,
        )

    def __sub__(self, other: Spending) -> Spending:
        return Spending(
            self.requests - other.requests,
            self.prompt_tokens - other.prompt_tokens,
            self.reply_tokens - other.reply_tokens,
            self.money - other.money,
        )

    def at_least_nothing(self) -> Spending:
        """The same, with 0 where it is below."""
        return Spending(
            max(0, self.requests), max(0, self.prompt_tokens), max(0, self.reply_tokens), max(0.0, self.money)
        )

    @property
    def tokens(self) -> int:
        """Of prompts and replies."""
        return self.prompt_tokens + self.reply_tokens


class SpendingLedger:
    """Counts what is spent against a budget. Safe to use from several threads, and with a file from several processes.

    Args:
        budget: the limits.
        prices: of tokens.
        file: where the counts are kept; None keeps them in memory.
    Raises: AnnotatorError where the file is there and cannot be read, or its folder cannot be made.
    """

    def __init__(self, budget: BudgetSettings, prices: PriceSettings, file: Path | None) -> None:
        self._budget = budget
        self._prices = prices
        self._file = file
        self._lock = threading.Lock()
        self._spent = Spending()
        if file is not None:
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise _unusable(file, error) from error
            with self._counting():
                pass

    @property
    def spent(self) -> Spending:
        """Everything counted so far, worst cases of open requests included; by this process as it last knew."""
        return self._spent

    def price(self, prompt_tokens: int, reply_tokens: int) -> float:
        """Money for so many tokens."""
        return (
            prompt_tokens * self._prices.prompt_per_million + reply_tokens * self._prices.reply_per_million
        ) / _MILLION

    def reserve(self, prompt_tokens: int, reply_tokens: int) -> Spending | None:
        """Count one request at its worst case; None, and nothing is counted, where that does not fit the budget.

        Args:
            prompt_tokens: the most that its prompt can have.
            reply_tokens: the most that its reply may have.
        Raises: AnnotatorError where the file cannot be read or written.
        """
        wanted = Spending(1, prompt_tokens, reply_tokens, self.price(prompt_tokens, reply_tokens))
        with self._counting():
            if self._over(self._spent + wanted):
                return None
            self._spent += wanted
        return wanted

    def settle(self, reserved: Spending, tokens: tuple[int, int] | None) -> None:
        """The request that was counted as ``reserved`` has ended.

        Args:
            reserved: what ``reserve`` gave.
            tokens: of its prompt and of its reply; None where it was never sent.
        Raises: as ``reserve``.
        """
        used = Spending() if tokens is None else Spending(1, *tokens, self.price(*tokens))
        with self._counting():
            # Sums of money are rounded, in another order to another figure, and who removes the file to count from 0
            # may do so while a request is open: a count below 0 would be taken for damage.
            self._spent = (self._spent + used - reserved).at_least_nothing()

    def left(self) -> dict[str, float]:
        """What is left of each limit that is set, 0 or more: ``budget_left_requests`` …"""
        spent = self._spent
        limits = (
            ("requests", self._budget.requests, spent.requests),
            ("tokens", self._budget.tokens, spent.tokens),
            ("money", self._budget.money, spent.money),
        )
        return {
            f"budget_left_{name}": max(0.0, float(limit) - used) for name, limit, used in limits if limit is not None
        }

    def describe(self) -> str:
        """What was spent of what, for messages."""
        spent, budget = self._spent, self._budget
        figures = (
            (f"{spent.requests} of {budget.requests} requests", budget.requests),
            (f"{spent.tokens} of {budget.tokens} tokens", budget.tokens),
            (f"{spent.money:.6g} of {budget.money} money", budget.money),
        )
        return ", ".join(text for text, limit in figures if limit is not None) or "no limit is set"

    def _over(self, spending: Spending) -> bool:
        budget = self._budget
        return (
            (budget.requests is not None and spending.requests > budget.requests)
            or (budget.tokens is not None and spending.tokens > budget.tokens)
            or (budget.money is not None and spending.money > budget.money * (1 + 1e-12))
        )

    @contextmanager
    def _counting(self) -> Iterator[None]:
        """Inside, the counts are the newest of all processes; behind it they are in the file."""
        with self._lock:
            if self._file is None:
                yield
                return
            try:
                with self._file.with_name(f"{self._file.name}.lock").open("a") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX)  # released with the file
                    known = _read_spending(self._file)
                    self._spent = known
                    yield
                    if self._spent != known or not self._file.exists():
                        _write_spending(self._file, self._spent)
            except OSError as error:
                raise _unusable(self._file, error) from error


def _unusable(file: Path, error: OSError) -> AnnotatorError:
    return AnnotatorError(
        f"spending file {file}: {error}; without it the budget cannot be kept. Make the folder writable, or name "
        "another in annotator.budget.file"
    )


def _read_spending(file: Path) -> Spending:
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return Spending()
    try:
        counts = json.loads(content.decode())
        spending = Spending(**{field.name: counts[field.name] for field in fields(Spending)})
        numbers = asdict(spending).values()
        if not all(type(number) in (int, float) and number >= 0 and math.isfinite(number) for number in numbers):
            raise ValueError(f"counts are {counts}")
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise AnnotatorError(
            f"spending file {file} is damaged ({error}); correct the counts of {[f.name for f in fields(Spending)]} in "
            "it, or remove it to count from 0"
        ) from error
    return spending


def _write_spending(file: Path, spending: Spending) -> None:
    """Whoever is killed here leaves the old counts or the new ones."""
    text = (json.dumps(asdict(spending)).ljust(_TEXT_BYTES - 1) + "\n").encode()
    if file.exists() and file.stat().st_size == len(text):
        # In place and by one call: to put a new file there for each request made the file system write it out at once,
        # milliseconds in which no other request was sent.
        with file.open("r+b", buffering=0) as opened:
            opened.write(text)
        return
    write_durably(file, text)
