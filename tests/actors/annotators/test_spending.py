"""A budget holds over processes and kills; a rate limit holds in every window of a minute."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onibi.actors.annotators.rate_limit import WINDOW_SECONDS, RateLimiter
from onibi.actors.annotators.spending import BudgetSettings, PriceSettings, SpendingLedger
from onibi.platform.errors import AnnotatorError

FREE = PriceSettings()


def test_a_request_that_was_open_when_its_process_died_is_counted_in_full(tmp_path):
    file = tmp_path / "spending.json"
    budget = BudgetSettings(tokens=1000)
    prices = PriceSettings(prompt_per_million=1.0, reply_per_million=2.0)
    ledger = SpendingLedger(budget, prices, file)
    assert ledger.reserve(500, 100) is not None  # and never settled
    again = SpendingLedger(budget, prices, file)
    assert (again.spent.requests, again.spent.tokens) == (1, 600)
    assert again.spent.money == pytest.approx(700e-6)
    assert again.reserve(300, 101) is None
    reserved = again.reserve(300, 100)
    again.settle(reserved, (20, 5))
    assert again.spent.tokens == 625 and again.left() == {"budget_left_tokens": 375.0}
    again.settle(again.reserve(10, 10), None)  # never sent
    assert (again.spent.requests, again.spent.tokens) == (2, 625)


def test_processes_that_share_a_file_pass_its_limit_together_by_nothing(tmp_path):
    file = tmp_path / "spending.json"
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from onibi.actors.annotators.spending import *\n"
        "ledger = SpendingLedger(BudgetSettings(requests=250), PriceSettings(), Path(sys.argv[1]))\n"
        "print(sum(ledger.reserve(3, 1) is not None for _ in range(200)))\n"
    )
    workers = [
        subprocess.Popen([sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    admitted = [int(worker.communicate(timeout=60)[0]) for worker in workers]
    assert sum(admitted) == 250
    assert json.loads(file.read_text()) == {"requests": 250, "prompt_tokens": 750, "reply_tokens": 250, "money": 0.0}


def test_a_count_is_written_in_place_and_a_kill_leaves_it_whole(tmp_path):
    file = tmp_path / "spending.json"
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from onibi.actors.annotators.spending import *\n"
        "ledger = SpendingLedger(BudgetSettings(), PriceSettings(prompt_per_million=0.3), Path(sys.argv[1]))\n"
        "while True:\n"
        "    reserved = ledger.reserve(10**9, 7)\n"
        "    print(flush=True)\n"
        "    ledger.settle(reserved, (123, 4))\n"
    )
    SpendingLedger(BudgetSettings(), FREE, file)
    counted = 0
    (tmp_path / "link").hardlink_to(file)
    for kill_after in (1, 300, 77, 500):
        with subprocess.Popen([sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE) as worker:
            assert worker.stdout is not None
            for _ in range(kill_after):
                worker.stdout.readline()
            worker.kill()
        ledger = SpendingLedger(BudgetSettings(), FREE, file)
        assert ledger.spent.requests >= counted + kill_after
        counted = ledger.spent.requests
        assert file.stat().st_nlink == 2  # a new file for each request costs milliseconds of the disk


def test_a_file_that_was_corrected_by_hand_is_counted_on(tmp_path):
    file = tmp_path / "spending.json"
    for text in (
        '{"requests": 5, "prompt_tokens": 10, "reply_tokens": 2, "money": 0.5}',
        f'{{"requests": {10**300}, "prompt_tokens": 0, "reply_tokens": 0, "money": 0.0}}\n',
    ):
        file.write_text(text)
        before = json.loads(text)["requests"]
        ledger = SpendingLedger(BudgetSettings(), FREE, file)
        ledger.settle(ledger.reserve(3, 1), (3, 1))
        assert json.loads(file.read_text())["requests"] == before + 1


@pytest.mark.parametrize("seed", range(5))
def test_money_of_requests_that_were_never_sent_leaves_nothing_behind_in_whatever_order_they_end(seed, tmp_path):
    prices = PriceSettings(prompt_per_million=0.15, reply_per_million=0.6)
    ledger = SpendingLedger(BudgetSettings(money=5.0), prices, tmp_path / "spending.json")
    rng = random.Random(seed)
    for _ in range(50):  # rounds of a server that is not up yet; some round the sum to -5e-19
        reserved = [ledger.reserve(rng.randrange(1000, 3000), 32) for _ in range(8)]
        for one in rng.sample(reserved, 8):
            ledger.settle(one, None)
    assert ledger.reserve(1, 1) is not None
    assert (ledger.spent.requests, ledger.spent.money) == (1, pytest.approx(0.75e-6))


def test_a_file_that_is_removed_while_a_request_is_open_counts_from_nothing(tmp_path):
    ledger = SpendingLedger(BudgetSettings(tokens=5000), FREE, tmp_path / "spending.json")
    reserved = ledger.reserve(1000, 10)
    (tmp_path / "spending.json").unlink()
    ledger.settle(reserved, (100, 5))
    assert ledger.spent.tokens == 0
    assert ledger.reserve(1, 1) is not None


def test_a_folder_that_cannot_be_made_is_an_error_that_says_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AnnotatorError, match=r"spending file .*budget\.file"):
        SpendingLedger(BudgetSettings(), FREE, tmp_path / "file" / "spending.json")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"requests": 1}',
        b'{"requests": -1, "prompt_tokens": 0, "reply_tokens": 0, "money": 0}',
        pytest.param(b'{"requests": 1\xff}', id="no UTF-8"),
        pytest.param(b'{"requests": 1, "prompt_tokens": 0, "reply_tokens": 0, "money": 1%s}' % (b"0" * 400), id="huge"),
        pytest.param(b"[" * 200_000, id="deep"),
    ],
)
def test_a_damaged_file_is_an_error_that_says_what_to_do(content, tmp_path):
    file = tmp_path / "spending.json"
    file.write_bytes(content)
    with pytest.raises(AnnotatorError, match=r"is damaged.*remove it"):
        SpendingLedger(BudgetSettings(), FREE, file)


def test_money_is_counted_by_prices():
    ledger = SpendingLedger(
        BudgetSettings(money=1.0), PriceSettings(prompt_per_million=0.5, reply_per_million=1.5), None
    )
    reserved = ledger.reserve(1_000_000, 300_000)
    assert ledger.spent.money == pytest.approx(0.95)  # 0.5 + 0.45
    assert ledger.reserve(0, 40_000) is None  # 0.06 more
    ledger.settle(reserved, (500_000, 100_000))
    assert ledger.left()["budget_left_money"] == pytest.approx(0.6)
    assert "0.4 of 1.0 money" in ledger.describe()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


@given(
    st.lists(st.tuples(st.integers(1, 50), st.floats(0, 20)), min_size=1, max_size=40),
    st.integers(1, 5) | st.none(),
    st.integers(50, 200) | st.none(),
)
def test_no_window_of_a_minute_holds_more_than_the_limits(asked, requests, tokens):
    clock = Clock()

    async def run() -> list[tuple[float, int]]:
        limiter = RateLimiter(requests, tokens, clock, clock.sleep)
        admitted = []
        for used, pause in asked:
            admission = await limiter.admit(used, float("inf"))
            admitted.append((admission.time, used))
            clock.now += pause
        return admitted

    admitted = asyncio.run(run())
    assert len(admitted) == len(asked)
    for end, _ in admitted:
        window = [used for time, used in admitted if end - WINDOW_SECONDS + 1e-6 < time <= end]
        assert requests is None or len(window) <= requests
        assert tokens is None or sum(window) <= tokens


def test_a_limiter_without_limits_never_waits_and_a_pause_holds_for_all():
    clock = Clock()

    async def run() -> None:
        limiter = RateLimiter(None, None, clock, clock.sleep)
        for _ in range(1000):
            await limiter.admit(10**9, float("inf"))
        assert clock.now == 1000.0
        limiter.pause(7.0)
        assert await limiter.admit(1, deadline=1006.0) is None
        assert (await limiter.admit(1, deadline=1007.0)).time == 1007.0

    asyncio.run(run())


def test_requests_that_nobody_wants_any_more_take_no_part_of_the_window():
    clock = Clock()

    async def run() -> None:
        limiter = RateLimiter(1, None, clock, clock.sleep)
        assert await limiter.admit(1, float("inf")) is not None
        waiting = [limiter.admit(1, float("inf"), lambda: False) for _ in range(5)]
        assert await asyncio.gather(*waiting) == [None] * 5
        assert clock.now == 1000.0
        assert (await limiter.admit(1, float("inf"))).time == 1000.0 + WINDOW_SECONDS

    asyncio.run(run())


def test_a_request_above_the_token_limit_goes_when_the_window_is_empty():
    clock = Clock()

    async def run() -> None:
        limiter = RateLimiter(None, 100, clock, clock.sleep)
        await limiter.admit(60, float("inf"))
        assert (await limiter.admit(500, float("inf"))).time == 1060.0

    asyncio.run(run())
