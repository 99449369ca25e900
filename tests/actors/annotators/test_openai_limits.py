"""Concurrency, retries, rates, budgets and keys of the openai annotator."""

from __future__ import annotations

import json
import logging
import threading
import time

import pytest

from onibi.actors.annotators.openai import OpenaiAnnotator
from onibi.actors.annotators.spending import SpendingLedger
from onibi.platform.config import read_settings, to_mapping
from onibi.platform.errors import AnnotatorError, BudgetSpentError, ConfigError

pytestmark = pytest.mark.timeout(60)
WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa")
TEN = [f"Caption {word}." for word in WORDS]


def after(server, seconds):
    """Polite, and in no hurry."""

    def behave(call):
        server.ending.wait(seconds)
        server.polite(call)

    return behave


def test_so_many_requests_are_open_at_once_and_no_more(make, ask_of, language_server):
    language_server.behave = after(language_server, 0.1)
    annotator = make(server={"concurrency": 4})
    assert len(list(annotator.annotate(ask_of(*TEN), annotator.goal))) == 10
    assert language_server.most_in_flight == 4


def test_a_label_is_there_before_the_slowest_of_its_batch(make, ask_of, language_server):
    release = threading.Event()

    def behave(call):
        if "alpha" in call.body["messages"][-1]["content"]:
            release.wait(20)
        language_server.polite(call)

    annotator = make(server={"timeout_seconds": 20.0, "batch_seconds": 90.0})
    assert len(list(annotator.annotate(ask_of("It rains."), annotator.goal))) == 1  # the first goes alone
    language_server.behave = behave
    labels = annotator.annotate(ask_of(*TEN), annotator.goal)
    early = [next(labels).key_text for _ in range(9)]
    assert "Caption alpha." not in early
    release.set()
    assert [label.key_text for label in labels] == ["Caption alpha."]


def test_who_stops_reading_stops_the_asking(make, ask_of, language_server):
    language_server.behave = after(language_server, 0.05)
    annotator = make(server={"concurrency": 1})
    labels = annotator.annotate(ask_of(*TEN), annotator.goal)
    next(labels)
    labels.close()
    annotator.close()
    asked = len(language_server.calls)
    assert asked < 10
    time.sleep(0.3)
    assert len(language_server.calls) == asked


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_waited_for_by_all_requests(status, make, ask_of, language_server):
    annotator = make(server={"concurrency": 2, "first_wait_seconds": 0.001})
    assert len(list(annotator.annotate(ask_of("It rains."), annotator.goal))) == 1  # the first goes alone
    refused: list[float] = []
    later: list[float] = []
    both_open = threading.Event()

    def behave(call):
        if call.number == 1:
            both_open.wait(20)  # the other open request is none that could have waited
            refused.append(time.monotonic())
            return call.reply(b"{}", status=status, Retry_After="0.4")
        if call.number == 2:
            both_open.set()
            language_server.ending.wait(0.2)  # until the refusal is known
        else:
            later.append(time.monotonic())
        return language_server.polite(call)

    language_server.behave = behave
    assert len(list(annotator.annotate(ask_of(*TEN), annotator.goal))) == 10
    # Whichever caption it is about, no request comes before the time is over.
    assert len(later) == 9 and min(later) - refused[0] >= 0.4
    assert annotator.statistics()["retries"] == 1


def test_a_retry_after_beyond_patience_ends_the_batch_at_once(make, ask_of, language_server):
    language_server.behave = lambda call: call.reply(b"{}", status=429, Retry_After="3600")
    annotator = make(server={"concurrency": 1, "retries": 5})
    with pytest.raises(AnnotatorError, match="429"):
        list(annotator.annotate(ask_of(*TEN), annotator.goal))
    assert len(language_server.calls) == 1


def test_a_long_retry_after_holds_back_later_batches_too_but_not_for_ever(make, ask_of, language_server, monkeypatch):
    language_server.behave = lambda call: call.reply(b"{}", status=429, Retry_After="3600")
    annotator = make()
    for message in ("429", r"it asked to wait, \d+ s more", r"it asked to wait, \d+ s more"):
        with pytest.raises(AnnotatorError, match=message):
            list(annotator.annotate(ask_of(*TEN), annotator.goal))
    assert len(language_server.calls) == 1
    monkeypatch.setattr("onibi.actors.annotators.model_server._LONGEST_PAUSE_SECONDS", 0.6)
    patient = make(server={"longest_wait_seconds": 0.3})
    with pytest.raises(AnnotatorError, match="429"):
        list(patient.annotate(ask_of("It rains."), patient.goal))
    language_server.behave = language_server.polite
    time.sleep(0.7)
    assert len(list(patient.annotate(ask_of("It rains."), patient.goal))) == 1


def test_a_rate_limit_that_leaves_no_time_gives_what_it_could_and_the_server_counts_as_well(
    make, ask_of, language_server
):
    annotator = make(server={"requests_per_minute": 3})
    labels = []
    with pytest.raises(AnnotatorError, match="rate limit"):
        labels.extend(annotator.annotate(ask_of(*TEN), annotator.goal))
    assert (len(labels), len(language_server.calls)) == (3, 3)
    assert annotator.statistics()["healthy"] == 1 and annotator.statistics()["failures"] == 0


def test_processes_that_ask_at_once_share_the_limits_of_a_minute(make, ask_of, language_server):
    limits = {"requests_per_minute": 5, "tokens_per_minute": 100_000}
    for _ in range(2):
        annotator = make(server=limits)
        annotator.share_limits(2)
        with pytest.raises(AnnotatorError, match="rate limit"):
            list(annotator.annotate(ask_of(*TEN), annotator.goal))
    assert len(language_server.calls) == 4  # two each: together no more than five
    with pytest.raises(ConfigError, match=r"requests_per_minute is 5.*annotation\.workers 6.*5 or fewer"):
        make(server=limits).share_limits(6)


def test_a_wrong_key_is_not_repeated_and_the_message_says_what_to_do(make, ask_of, language_server):
    language_server.behave = lambda call: call.reply(b'{"error": {"message": "bad key"}}', status=401)
    annotator = make(server={"concurrency": 1, "retries": 5})
    with pytest.raises(AnnotatorError, match=r"status 401, .*bad key.*api_key_env"):
        list(annotator.annotate(ask_of(*TEN), annotator.goal))
    assert len(language_server.calls) == 1


def test_after_its_budget_of_requests_it_asks_nothing_more_and_what_is_in_flight_counts(make, ask_of, language_server):
    language_server.behave = after(language_server, 0.1)
    annotator = make(budget={"requests": 4}, server={"concurrency": 8})
    labels = []
    with pytest.raises(BudgetSpentError, match=r"4 of 4 requests.*raise annotator\.budget"):
        labels.extend(annotator.annotate(ask_of(*TEN), annotator.goal))
    assert len(labels) == len(language_server.calls) == 4
    with pytest.raises(BudgetSpentError):
        list(annotator.annotate(ask_of(*TEN), annotator.goal))
    assert len(language_server.calls) == 4
    figures = annotator.statistics()
    assert (figures["budget_left_requests"], figures["healthy"], figures["failures"]) == (0, 0, 0)


def test_a_count_that_could_not_be_kept_lets_nobody_wait_for_the_budget(make, ask_of):
    annotator = make(budget={"requests": 1}, server={"retries": 0})

    class Unkept(SpendingLedger):
        def settle(self, reserved, tokens):
            raise AnnotatorError("spending file: Input/output error")

    annotator._ledger = Unkept(annotator.settings.budget, annotator.settings.prices, None)
    with pytest.raises(AnnotatorError, match="Input/output error"):
        list(annotator.annotate(ask_of("It rains."), annotator.goal))
    with pytest.raises(BudgetSpentError):
        list(annotator.annotate(ask_of("It snows."), annotator.goal))


def test_repeats_count_against_the_budget(make, ask_of, language_server):
    language_server.behave = lambda call: call.reply(b"{}", status=500)
    annotator = make(budget={"requests": 3}, server={"retries": 9, "concurrency": 1, "first_wait_seconds": 0.001})
    with pytest.raises(BudgetSpentError):
        list(annotator.annotate(ask_of(*TEN), annotator.goal))
    assert len(language_server.calls) == 3


@pytest.mark.parametrize(
    ("budget", "prices"),
    [({"tokens": 9000}, {}), ({"money": 0.05}, {"prompt_per_million": 4.0, "reply_per_million": 40.0})],
)
def test_tokens_and_money_are_never_passed_though_replies_are_used_up_to_the_end(
    budget, prices, make, ask_of, language_server
):
    language_server.behave = lambda call: call.reply(
        language_server.completion('{"1": "helpful"}', usage={"prompt_tokens": 900, "completion_tokens": 20})
    )
    annotator = make(budget=budget, prices=prices, server={"concurrency": 3})
    labels = []
    with pytest.raises(BudgetSpentError):
        labels.extend(annotator.annotate(ask_of(*TEN * 3), annotator.goal))
    figures = annotator.statistics()
    spent = figures["spent_money"] if "money" in budget else figures["spent_tokens"]
    (limit,) = budget.values()
    assert spent == pytest.approx(sum(label.cost if "money" in budget else label.tokens for label in labels))
    worst = 4000 * 4.0 / 1e6 if "money" in budget else 4000  # of one request: its bytes
    assert limit - worst < spent <= limit
    assert len(labels) == len(language_server.calls) > 3


def test_a_resumed_run_goes_on_with_the_counts_of_its_file(make, ask_of, language_server, tmp_path):
    file = tmp_path / "run" / "spending.json"
    first = make(budget={"requests": 4})
    first.keep_spending(file)
    assert len(list(first.annotate(ask_of(*TEN[:3]), first.goal))) == 3
    first.close()
    second = make(budget={"requests": 4})
    second.keep_spending(file)
    with pytest.raises(BudgetSpentError):
        list(second.annotate(ask_of(*TEN[3:]), second.goal))
    assert len(language_server.calls) == 4
    assert json.loads(file.read_text())["requests"] == 4


def test_tokens_and_money_of_a_request_are_shared_by_its_labels(make, ask_of, language_server):
    prices = {"prompt_per_million": 10.0, "reply_per_million": 100.0}
    annotator = make(captions_per_request=3, prices=prices)
    labels = list(annotator.annotate(ask_of(*TEN[:3]), annotator.goal))
    assert sorted(label.tokens for label in labels) == [36, 37, 37]  # 110
    assert sum(label.cost for label in labels) == pytest.approx(0.002)  # 100 · 10 + 10 · 100 millionths
    figures = annotator.statistics()
    assert (figures["tokens"], figures["cost"], figures["requests"]) == (110, pytest.approx(0.002), 1)
    assert 0 < figures["latency_p50_seconds"] <= figures["latency_p95_seconds"] <= figures["latency_p99_seconds"]


def test_the_key_reaches_the_server_and_nothing_else(make, ask_of, language_server, monkeypatch, caplog):
    secret = "sk-onibi-8c1f0"
    monkeypatch.setenv("JUDGE_KEY", secret)
    annotator = make(api_key_env="JUDGE_KEY")
    with caplog.at_level(logging.DEBUG):
        labels = list(annotator.annotate(ask_of(*TEN[:1]), annotator.goal))
        language_server.behave = lambda call: call.reply(b"{}", status=403)
        with pytest.raises(AnnotatorError) as failure:
            list(annotator.annotate(ask_of(*TEN[:1]), annotator.goal))
    assert language_server.calls[0].headers["authorization"] == f"Bearer {secret}"
    told = [caplog.text, str(failure.value), repr(labels), repr(annotator.statistics()), repr(vars(annotator))]
    told += [json.dumps(to_mapping(annotator.settings)), json.dumps(language_server.calls[0].body)]
    assert not any(secret in text for text in told)


def test_a_key_that_is_not_there_is_told_when_it_is_needed_and_not_before(make, ask_of, language_server, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    annotator = make(api_key_env="JUDGE_KEY")
    assert annotator.prompt_version and annotator.statistics()
    with pytest.raises(AnnotatorError, match=r"JUDGE_KEY.*is not set"):
        list(annotator.annotate(ask_of(*TEN), annotator.goal))
    assert annotator.statistics()["healthy"] == 0
    monkeypatch.setenv("JUDGE_KEY", "k")
    assert len(list(annotator.annotate(ask_of(*TEN), annotator.goal))) == 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "localhost:8000"}, "http://host:port/v1"),
        ({"base_url": "http://127.0.0.1:99999/v1"}, "Port out of range"),
        ({"model": ""}, "model is empty"),
        ({"answer": "log_probabilities", "captions_per_request": 5}, "one word of one caption"),
        ({"answer": "log_probabilities", "explain": True}, "one word of one caption"),
        ({"budget": {"money": 1.0}}, "set prices"),
        ({"extra_body": {"max_tokens": 5000, "seed": 1}}, "extra_body holds max_tokens, which .*reply_tokens"),
        ({"extra_body": {"model": "other"}}, "extra_body holds model"),
        ({"server": {"timeout_seconds": 200.0}}, "no request could start"),
        ({"base_url": "http://a/v1", "captions_per_request": 0}, "at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        read_settings(OpenaiAnnotator.Settings, {"base_url": "http://a/v1", "model": "m", **settings})


def test_a_server_that_answers_too_late_for_its_batch_is_not_asked_again(make, ask_of, language_server):
    language_server.behave = after(language_server, 30.0)
    annotator = make(server={"timeout_seconds": 0.3, "batch_seconds": 0.5, "retries": 9, "concurrency": 10})
    with pytest.raises(AnnotatorError, match=r"no whole reply within 0\.3 s"):
        list(annotator.annotate(ask_of(*TEN), annotator.goal))
    assert len(language_server.calls) <= 10


def test_two_batches_at_once_share_connections_and_limits(make, ask_of, language_server):
    language_server.behave = after(language_server, 0.02)
    annotator = make(server={"concurrency": 2})
    found: list[int] = []

    def work():
        found.append(len(list(annotator.annotate(ask_of(*TEN), annotator.goal))))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [10, 10, 10] and language_server.most_in_flight <= 2


def test_a_server_too_slow_for_a_whole_batch_labels_what_it_can_without_an_error(make, ask_of, language_server):
    language_server.behave = after(language_server, 0.4)
    annotator = make(server={"concurrency": 1, "timeout_seconds": 5.0, "batch_seconds": 6.0})
    labels = list(annotator.annotate(ask_of(*TEN), annotator.goal))
    assert 1 <= len(labels) < 10 and annotator.statistics()["healthy"] == 1


@pytest.mark.parametrize("settings", [{}, {"captions_per_request": 4}, {"answer": "log_probabilities"}])
def test_an_estimate_is_what_is_then_asked_and_no_less_than_it_costs(settings, make, ask_of, language_server):
    annotator = make(prices={"prompt_per_million": 1.0, "reply_per_million": 10.0}, **settings)
    expected = annotator.estimate(ask_of(*TEN))
    assert language_server.calls == []

    def count(call):  # as a tokenizer of 3.9 bytes a token does
        prompt = sum(len(message["content"].encode()) for message in call.body["messages"])
        usage = {"prompt_tokens": round(prompt / 3.9), "completion_tokens": min(call.body["max_tokens"], 30)}
        words = [language_server.judge(text) for text in language_server.captions_of(call.body)]
        text = "\n".join(f"{number}: {word}" for number, word in enumerate(words, start=1))
        call.reply(language_server.completion("yes" if "logprobs" in call.body else text, usage=usage))

    language_server.behave = count
    assert len(list(annotator.annotate(ask_of(*TEN), annotator.goal))) == 10
    figures = annotator.statistics()
    assert expected.calls == figures["requests"] == len(language_server.calls)
    assert figures["tokens"] <= expected.tokens <= 1.6 * figures["tokens"]
    assert figures["cost"] <= expected.cost


def test_closing_from_another_thread_ends_a_reader_with_an_error_that_says_so(make, ask_of, language_server):
    language_server.behave = after(language_server, 30.0)
    annotator = make(server={"timeout_seconds": 30.0, "batch_seconds": 60.0})
    failures: list[BaseException] = []

    def read():
        try:
            list(annotator.annotate(ask_of(*TEN), annotator.goal))
        except AnnotatorError as error:
            failures.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    while not language_server.calls:
        time.sleep(0.01)
    annotator.close()
    thread.join(timeout=20)
    assert len(failures) == 1 and "closed while it was asked" in str(failures[0])


@pytest.mark.parametrize("status", [401, 500])
def test_a_server_that_repeats_the_key_does_not_spread_it(make, ask_of, language_server, monkeypatch, caplog, status):
    secret = "sk-TOPSECRET99"
    monkeypatch.setenv("JUDGE_KEY", secret)
    body = b'{"error": {"message": "bad key Bearer sk-TOPSECRET99"}}'
    language_server.behave = lambda call: call.reply(body, status=status)
    annotator = make(api_key_env="JUDGE_KEY")
    with pytest.raises(AnnotatorError, match=r"\*\*\*") as caught:
        list(annotator.annotate(ask_of("Hello."), annotator.goal))
    assert caught.value.may_pass == (status == 500)
    assert secret not in f"{caught.value}{caplog.text}"


@pytest.mark.parametrize("key", ["sk-ключ", "sk-a\nb", "two words"])
def test_a_key_that_no_header_carries_is_told_without_its_value(make, ask_of, monkeypatch, key):
    monkeypatch.setenv("JUDGE_KEY", key)
    annotator = make(api_key_env="JUDGE_KEY")
    with pytest.raises(AnnotatorError, match=r"JUDGE_KEY.*no HTTP header") as caught:
        list(annotator.annotate(ask_of("Hello."), annotator.goal))
    assert not caught.value.may_pass
    assert key not in str(caught.value)


def test_a_key_in_place_of_its_variables_name_is_refused_and_not_repeated(make):
    with pytest.raises(ConfigError, match="name of an environment variable") as caught:
        make(api_key_env="sk-TOPSECRET99")
    assert "TOPSECRET" not in str(caught.value)
