"""A hostile server gets no wrong label counted as a right one, holds nobody up, and everything it does is counted."""

from __future__ import annotations

import gzip
import json

import pytest

from onibi.platform.annotation.labels import LabelValue
from onibi.platform.errors import AnnotatorError

# Whoever hangs is ended by pytest; patience is 4 s.
pytestmark = pytest.mark.timeout(60)
TEXTS = ["The door opens.", "It rains.", "A door, at last.", "You sneeze."]
RIGHT = {
    "The door opens.": "helpful",
    "It rains.": "unhelpful",
    "A door, at last.": "helpful",
    "You sneeze.": "unhelpful",
}


def outcome(annotator, requests):
    """(labels, error) of one batch."""
    labels = []
    try:
        for label in annotator.annotate(requests, annotator.goal):
            labels.append(label)
    except AnnotatorError as error:
        return labels, error
    return labels, None


def slow(call):
    call.handler.server.ending.wait(30)


def half(call):
    call.handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
    call.handler.close_connection = True


def drip(call):
    call.chunks(b" ", b" ", lambda: call.handler.server.ending.wait(0.05))


def endless(call):
    call.chunks(b"{", b" " * 65536, lambda: call.handler.server.ending.is_set())


def endless_error(call):
    call.handler.send_response(500)
    call.handler.end_headers()
    while not call.handler.server.ending.is_set():
        call.handler.wfile.write(b"x" * 65536)


BOMB = gzip.compress(b" " * 5_000_000 + b'{"choices": []}')


def bomb(call):
    call.reply(BOMB, Content_Encoding="gzip")


def long_header(call):
    call.reply(b"{}", X_Long="y" * 2_000_000)


def redirect(call):
    call.reply(b"", status=307, Location="http://127.0.0.1:1/elsewhere")


def say(body, status=200):
    return lambda call: call.reply(body, status=status)


HTTP_FAULTS = {
    "slow": (slow, "timeout"),
    "drips": (drip, "timeout"),
    "drops": (lambda call: call.handler.server.drop(call), "connection"),
    "breaks off": (half, "connection"),
    "no HTTP": (lambda call: call.handler.wfile.write(b"\x00\x01 hello\r\n\r\n"), "connection"),
    "header of 2 MB": (long_header, "connection"),
    "endless": (endless, "too_long"),
    "endless error": (endless_error, "too_long"),
    "compressed": (bomb, "malformed"),
    "500": (say(b'{"error": {"message": "boom"}}', 500), "server_error"),
    "500 in HTML": (say(b"<h1>Bad gateway</h1>", 502), "server_error"),
    "429": (say(b'{"error": {"message": "slower"}}', 429), "rate_limited"),
    "401": (say(b'{"error": {"message": "who are you"}}', 401), "refused"),
    "404": (say(b"", 404), "refused"),
    "elsewhere": (redirect, "refused"),
    "HTML": (say(b"<html>Welcome to the portal</html>"), "malformed"),
    "half JSON": (say(b'{"choices": [{"message": {"content": "help'), "malformed"),
    "nothing": (say(b""), "malformed"),
    "null": (say(b"null"), "malformed"),
    "no choices": (say(b'{"choices": []}'), "malformed"),
    "choices of no kind": (say(b'{"choices": {"0": 1}}'), "malformed"),
    "two choices": (say(json.dumps({"choices": [{"message": {"content": "helpful"}}] * 2}).encode()), "malformed"),
    "content of no kind": (say(b'{"choices": [{"message": {"content": 7}}]}'), "malformed"),
    "error as 200": (say(b'{"error": {"message": "overloaded"}}'), "malformed"),
    "deep": (say(b"[" * 90_000), "malformed"),
    "not UTF-8": (say(b'{"choices": [{"text": "\xff\xfe"}]}'), "malformed"),
}


@pytest.mark.parametrize("name", HTTP_FAULTS)
def test_a_server_that_fails_gives_no_label_is_told_about_and_counted(name, make, ask_of, language_server):
    language_server.behave, kind = HTTP_FAULTS[name]
    annotator = make(server={"timeout_seconds": 1.0, "retries": 0} if kind == "timeout" else {})
    labels, error = outcome(annotator, ask_of(*TEXTS))
    figures = annotator.statistics()
    assert labels == [] and isinstance(error, AnnotatorError)
    assert "model server http://127.0.0.1" in str(error)
    assert figures[f"failures_{kind}"] == figures["failures"] > 0
    assert (figures["answers"], figures["healthy"], figures["verdicts"]) == (0, 0, 0)
    # The same annotator goes on when the server is well again.
    language_server.behave = language_server.polite
    labels, error = outcome(annotator, ask_of(*TEXTS))
    assert error is None and {label.key_text: label.value.value for label in labels} == RIGHT
    assert annotator.statistics()["healthy"] == 1


@pytest.mark.parametrize("name", ["drops", "breaks off", "endless", "500", "429", "401", "half JSON", "HTML"])
def test_what_fails_now_and_then_costs_repeats_and_never_a_wrong_label(name, make, ask_of, language_server):
    fault, kind = HTTP_FAULTS[name]
    language_server.behave = lambda call: (fault if call.number % 3 == 1 else language_server.polite)(call)
    annotator = make(server={"retries": 4, "concurrency": 1, "batch_seconds": 60.0})
    labels, error = outcome(annotator, ask_of(*TEXTS))
    figures = annotator.statistics()
    judged = {label.key_text: label.value.value for label in labels}
    assert figures[f"failures_{kind}"] >= 1
    if kind == "refused":  # not repeated
        assert judged.items() <= RIGHT.items()
    else:
        assert all(value in (RIGHT[text], "invalid") for text, value in judged.items())
        assert len(judged) == len(TEXTS) and error is None
        assert figures["retries"] >= 1 or kind == "too_long"


def test_nobody_listens(make, ask_of, language_server):
    annotator = make(base_url="http://127.0.0.1:1/v1")
    labels, error = outcome(annotator, ask_of(*TEXTS))
    assert labels == [] and "see that it is running" in str(error)
    figures = annotator.statistics()
    assert figures["failures_connection"] == figures["failures"]
    assert figures["spent_requests"] == 0  # what never left is not paid for


REPLIES = {  # to one caption, or to four
    "odd wording": ["It was quite helpful, I guess.", "Helpful? unhelpful!", "yes", "helpfull", "not helpful", "1", ""],
    "another language": ["hilfreich", "有用"],
    "contradictions": ["1: helpful\n1: unhelpful", "helpful\nunhelpful", '{"1": "helpful", "1": "unhelpful"}'],
    "wrong counts": [
        "1: helpful\n2: helpful",
        "2: helpful",
        '{"1": "helpful", "2": "unhelpful"}',
        "{}",
        "[]",
        "0: helpful",
    ],
    "wrong kinds": [
        '{"1": 1}',
        '{"1": true}',
        '{"1": null}',
        '{"1": ["helpful"]}',
        '["helpful"]',
        '{"1": {"label": "helpful"}}',
    ],
    "prose around": ["Sure! Here you go:\n1: helpful", "1: helpful\nHope this helps!", 'Answer: {"1": "helpful"}'],
    "cut": ['{"1": "helpful"', "```json\n{", "<think> it is helpful"],
    "thoughts without an answer": ["<think>1: helpful</think>"],
}


@pytest.mark.parametrize("name", REPLIES)
@pytest.mark.parametrize("answer", ["json", "text"])
def test_a_reply_that_can_be_read_in_no_one_way_is_invalid(name, answer, make, ask_of, language_server):
    annotator = make(answer=answer, server={"concurrency": 1})
    for text in REPLIES[name]:
        language_server.behave = lambda call, text=text: call.reply(language_server.completion(text))
        (label,) = annotator.annotate(ask_of("The door opens."), annotator.goal)
        assert (label.value, label.tokens) == (LabelValue.INVALID, 110), text
        assert "unreadable" in label.reply and text[:20] in label.reply
    figures = annotator.statistics()
    assert figures["invalid"] == figures["verdicts"] == len(REPLIES[name])
    assert figures["parse_failure_share"] == 1.0 and figures["failures"] == 0


READABLE = {
    "thoughts whose begin is in the prompt": "It may be so.\n</think>\n\n1: helpful",
    "thoughts": '<think>1: unhelpful</think>{"1": "helpful"}',
    "case": '{"1": "Helpful"}',
    "a fence in capitals": '```JSON\n{"1": "helpful"}\n```',
    "a full stop": '{"1": "helpful."}',
}


@pytest.mark.parametrize("name", READABLE)
def test_what_common_servers_send_is_read(name, make, ask_of, language_server):
    language_server.behave = lambda call: call.reply(language_server.completion(READABLE[name], finish="stop_sequence"))
    annotator = make()
    (label,) = annotator.annotate(ask_of("The door opens."), annotator.goal)
    assert label.value == LabelValue.HELPFUL, label.reply


@pytest.mark.parametrize("finish", ["length", "content_filter", "tool_calls", "function_call", 7])
def test_a_reply_that_the_server_cut_or_withheld_is_invalid_however_whole_it_looks(
    finish, make, ask_of, language_server
):
    language_server.behave = lambda call: call.reply(language_server.completion('{"1": "helpful"}', finish=finish))
    annotator = make()
    (label,) = annotator.annotate(ask_of("It rains."), annotator.goal)
    assert label.value == LabelValue.INVALID


def test_ten_megabytes_are_broken_off_and_only_their_caption_is_invalid(make, ask_of, language_server):
    def behave(call):
        if "rains" in call.body["messages"][-1]["content"]:
            return call.reply(language_server.completion('{"1": "helpful"}' + " " * 10_000_000))
        return language_server.polite(call)

    language_server.behave = behave
    annotator = make()
    labels, error = outcome(annotator, ask_of(*TEXTS))
    judged = {label.key_text: label.value.value for label in labels}
    assert error is None and judged == {**RIGHT, "It rains.": "invalid"}
    figures = annotator.statistics()
    assert (figures["failures_too_long"], figures["invalid"]) == (1, 1)


def test_of_a_request_with_a_wrong_count_no_label_is_taken_and_of_one_odd_word_only_its_own(
    make, ask_of, language_server
):
    annotator = make(captions_per_request=4, answer="text")
    say = language_server.completion
    language_server.behave = lambda call: call.reply(say("1: helpful\n2: unhelpful\n3: helpful"))
    labels, _ = outcome(annotator, ask_of(*TEXTS))
    assert [label.value.value for label in labels] == ["invalid"] * 4
    language_server.behave = lambda call: call.reply(say("1: helpful\n2: dunno\n3: helpful\n4: unhelpful"))
    labels, _ = outcome(annotator, ask_of(*TEXTS))
    assert {label.key_text: label.value.value for label in labels} == {**RIGHT, "It rains.": "invalid"}
    language_server.behave = lambda call: call.reply(say("4: unhelpful\n2: unhelpful\n3: helpful\n1: helpful"))
    labels, _ = outcome(annotator, ask_of(*TEXTS))
    assert {label.key_text: label.value.value for label in labels} == RIGHT  # by number, not by place


@pytest.mark.parametrize(
    "usage",
    [
        {},
        [],
        "many",
        {"prompt_tokens": -5},
        {"prompt_tokens": "9", "completion_tokens": 1e99},
        {"prompt_tokens": True},
        {"prompt_tokens": 0, "completion_tokens": 0},  # of servers that do not count
    ],
)
def test_made_up_usage_is_replaced_by_the_most_that_it_can_have_been(usage, make, ask_of, language_server):
    language_server.behave = lambda call: call.reply(language_server.completion('{"1": "helpful"}', usage=usage))
    annotator = make(reply_tokens=5000)  # thoughts before the answer are paid, and not shown
    (label,) = annotator.annotate(ask_of("It rains."), annotator.goal)
    (call,) = language_server.calls
    prompt_bytes = sum(len(message["content"].encode()) for message in call.body["messages"])
    assert prompt_bytes + 5000 < label.tokens < prompt_bytes + 5100


@pytest.mark.parametrize(
    "probability", [float("nan"), float("inf"), 5.0, pytest.param(-(10**400), id="beyond any float"), "0", None]
)
def test_probabilities_that_are_none_give_no_score(probability, make, ask_of, language_server):
    top = [{"token": "yes", "logprob": probability}, {"token": "no", "logprob": probability}]
    content = [{"token": "yes", "logprob": 0, "top_logprobs": top}]
    language_server.behave = lambda call: call.reply(language_server.completion("yes", logprobs={"content": content}))
    annotator = make(answer="log_probabilities")
    (label,) = annotator.annotate(ask_of("It rains."), annotator.goal)
    # Without numbers the word counts; with impossible ones nothing does.
    assert label.value == (LabelValue.HELPFUL if probability in ("0", None, -(10**400)) else LabelValue.INVALID)


def test_half_a_surrogate_pair_in_a_reply_can_be_stored(make, ask_of, language_server):
    language_server.behave = lambda call: call.reply(language_server.completion("\ud83d helpful"))
    annotator = make()
    (label,) = annotator.annotate(ask_of("It rains."), annotator.goal)
    assert label.value == LabelValue.INVALID and label.reply.encode()


def test_text_that_the_server_refuses_is_parked_while_it_answers_others_and_else_asked_again(
    make, ask_of, language_server
):
    def behave(call):
        if "rains" in call.body["messages"][-1]["content"]:
            return call.reply(b'{"error": {"message": "this violates our policy"}}', status=400)
        return language_server.polite(call)

    language_server.behave = behave
    annotator = make()
    labels, error = outcome(annotator, ask_of(*TEXTS))
    assert error is None
    assert {label.key_text: label.value.value for label in labels} == {**RIGHT, "It rains.": "invalid"}
    labels, error = outcome(annotator, ask_of("It rains."))
    assert labels == [] and "policy" in str(error)
