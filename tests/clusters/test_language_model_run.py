"""Whole runs with a language model as judge: labels come, budgets outlive a resume, a dead server stops nobody."""

from __future__ import annotations

import json

import pytest

SERVER = {"timeout_seconds": 5.0, "batch_seconds": 20.0, "retries": 1, "first_wait_seconds": 0.01}


def judge(url, **settings):
    return {"kind": "openai", "base_url": url, "model": "m", "prompt": "general", "server": SERVER, **settings}


def short(url, **settings):
    """Changes to the corridor run: long enough to hear more than two captions, whatever is learnt meanwhile."""
    return {"annotator": judge(url, **settings), "budget__max_env_steps": 600}


def metrics_of(result):
    return {name: value for name, value in result.figures.items() if name.startswith("annotator/openai/")}


def test_labels_of_a_model_server_pay_and_its_figures_are_metrics(workshop, language_server):
    result = workshop.train(**short(language_server.url))
    figures = metrics_of(result)
    assert figures["annotator/openai/requests"] == len(language_server.calls) > 2
    assert figures["annotator/openai/healthy"] == 1 and figures["annotator/openai/parse_failure_share"] == 0
    assert figures["annotator/openai/latency_p99_seconds"] > 0
    assert result.figures["annotation/keys_labelled"] == len(language_server.calls)
    captions = [text for call in language_server.calls for text in language_server.captions_of(call.body)]
    assert len(set(captions)) == len(captions)  # no key is asked about twice


def test_a_budget_holds_over_a_resume_and_training_goes_on_without(workshop, language_server):
    result = workshop.train(**short(language_server.url, budget={"requests": 2}))
    assert (result.env_steps >= 600, len(language_server.calls)) == (True, 2)
    assert result.figures["annotation/keys_labelled"] == 2
    spending = json.loads((workshop.runs / "run" / "spending" / "openai.json").read_text())
    assert spending["requests"] == 2
    result = workshop.resume(overrides=["budget.max_env_steps=840"])
    assert (result.env_steps >= 840, len(language_server.calls)) == (True, 2)
    assert metrics_of(result)["annotator/openai/budget_left_requests"] == 0


def test_a_dead_server_stops_nobody(workshop):
    result = workshop.train(**short("http://127.0.0.1:1/v1"))
    assert result.env_steps >= 600
    figures = metrics_of(result)
    assert figures["annotator/openai/healthy"] == 0 and figures["annotator/openai/failures_connection"] > 0
    assert result.figures["annotation/keys_labelled"] == 0


@pytest.mark.slow
def test_a_second_run_on_the_same_table_asks_for_nothing_that_is_there(workshop, language_server):
    workshop.train("first", **short(language_server.url))
    asked = len(language_server.calls)
    result = workshop.train("second", **short(language_server.url))
    assert asked > 2 and len(language_server.calls) == asked
    assert result.figures["annotation/keys_labelled"] == asked


@pytest.mark.slow
def test_the_workers_of_a_ray_run_share_one_purse_and_ask_no_key_twice(workshop, language_server):
    changes = {
        **short(language_server.url, budget={"requests": 3}),
        "annotation__workers": 2,
        "annotation__batch_keys": 1,
    }
    result = workshop.train(serial=False, **{**changes, "budget__max_env_steps": 2_000})
    captions = [text for call in language_server.calls for text in language_server.captions_of(call.body)]
    assert len(captions) == len(set(captions)) == 3
    assert json.loads((workshop.runs / "run" / "spending" / "openai.json").read_text())["requests"] == 3
    assert result.env_steps >= 2_000 and result.figures["annotation/keys_labelled"] == 3
