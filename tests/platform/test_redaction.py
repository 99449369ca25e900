"""Secrets never reach what is shown, and what is no secret stays readable."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import onibi.platform.redaction
from onibi.platform.redaction import flattened, names_a_secret, text_without_secrets, without_secrets


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("api_key", True),
        ("openai_api_key", True),
        ("apiKey", True),
        ("API_KEY", True),
        ("api-key", True),
        ("apikey", True),
        ("hf_token", True),
        ("token", True),
        ("tokenSecret", True),
        ("password", True),
        ("aws_secret_access_key", True),
        ("Authorization", True),
        ("Proxy-Authorization", True),
        ("X-Auth", True),
        ("Bearer", True),
        ("key", True),
        ("openai_key", True),
        ("openai_apikey", True),
        ("info_key", False),
        ("sort_key", False),
        ("monkey", False),
        ("author", False),
        ("max_tokens", False),
        ("tokenizer", False),
        ("api_key_env", False),
        ("key_version", False),
        ("keys_per_caption", False),
        ("observation_keys", False),
        ("discount", False),
        ("", False),
    ],
)
def test_a_setting_is_a_secret_by_the_words_of_its_name(name, secret):
    assert names_a_secret(name) is secret


def test_secrets_are_hidden_at_any_depth_and_in_urls_and_the_original_is_untouched():
    config = {
        "annotator": {
            "api_key": "sk-1",
            "max_tokens": 16,
            "endpoints": [{"url": "http://me:pw@host:1/v1", "token": "t"}],
        },
        "password": None,
        "credential": {"user": "me", "key": "x"},
    }
    shown = without_secrets(config)
    assert shown == {
        "annotator": {
            "api_key": "***",
            "max_tokens": 16,
            "endpoints": [{"url": "http://***@host:1/v1", "token": "***"}],
        },
        "password": None,  # says that none is set
        "credential": "***",
    }
    assert config["annotator"]["api_key"] == "sk-1"


def test_nested_settings_flatten_to_dotted_names_with_one_text_each():
    config = {
        "seed": 1,
        "learner": {"discount": 0.99, "kind": "dqn", "hidden": (128, 128), "extra": {}},
        "on": True,
        "no": None,
    }
    assert flattened(config) == {
        "seed": "1",
        "learner.discount": "0.99",
        "learner.kind": "dqn",
        "learner.hidden": "[128, 128]",
        "learner.extra": "{}",
        "on": "true",
        "no": "null",
    }


def test_secrets_in_an_addresss_options_are_hidden_and_other_options_are_not():
    address = "http://user:pw@host/v1?key=Q1&region=eu&access_token=Q2&sig=Q3"
    assert without_secrets(address) == "http://***@host/v1?key=***&region=eu&access_token=***&sig=***"


def test_no_setting_of_ours_is_taken_for_a_secret():
    root = Path(onibi.platform.redaction.__file__).parents[1]
    names = {
        statement.target.id
        for folder in ("actors", "clusters", "learners", "platform")
        for file in (root / folder).rglob("*.py")
        for owner in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(owner, ast.ClassDef) and any(ast.unparse(base) == "Settings" for base in owner.bases)
        for statement in owner.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    }
    assert {"info_key", "minimum_keys", "keys_per_caption", "api_key_env"} <= names
    assert {name for name in names if names_a_secret(name)} == set()


def test_headers_and_fields_of_a_request_are_hidden_and_sections_of_any_name_are_not():
    body = {
        "key": "k",
        "openai_key": "k",
        "auth": ["me", "pw"],
        "headers": {"Bearer": "k", "X-Auth": "k", "X-Top": "k"},
    }
    assert without_secrets(body) == {
        "key": "***",
        "openai_key": "***",
        "auth": "***",
        "headers": {"Bearer": "***", "X-Auth": "***", "X-Top": "k"},
    }
    sections = {"annotators": {"key": {"kind": "lexicon"}}, "info_key": "caption", "minimum_keys": 20}
    assert without_secrets(sections) == sections


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Bearer sk-1", "Bearer ***"),
        ("sk-proj-abc", "***"),
        ("header 'Bearer eyJhbGciOiJIUzI1NiIsInR5cCI' refused", "header 'Bearer ***' refused"),
        ("Find the bearer of the amulet.", "Find the bearer of the amulet."),
        ("The task-1 is risk-free.", "The task-1 is risk-free."),
        ("mysql://user:p@ss@host/db", "mysql://***@host/db"),
        ("http://u:a/b@host", "http://***@host"),
        ("http://user@host:1/v1", "http://***@host:1/v1"),
        ("http://host:8000/v1 of me@here", "http://host:8000/v1 of me@here"),
        ("http://host:8000/@me", "http://host:8000/@me"),
        ("https://unpkg.com/@scope/name", "https://unpkg.com/@scope/name"),
        ("sqlite:////tmp/a:b@c.db", "sqlite:////tmp/a:b@c.db"),
        ("asked http://a:b@one/x and http://c:d@two/y", "asked http://***@one/x and http://***@two/y"),
    ],
)
def test_what_looks_like_a_secret_is_hidden_whatever_it_is_called(text, shown):
    assert without_secrets({"note": text}) == {"note": shown}


def test_what_others_write_about_settings_is_shown_without_their_secrets():
    settings = {
        "api_key": "pa55word",
        "nested": [{"auth": {"password": "longer pa55word"}}],
        "pin_secret": 12,
        "n": 7777,
    }
    text = "ValueError('pa55word is wrong, longer pa55word too; 12, 7777, http://a:b@host')"
    assert text_without_secrets(text, settings) == "ValueError('*** is wrong, *** too; 12, 7777, http://***@host')"
