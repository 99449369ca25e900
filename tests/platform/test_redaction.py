"""Secrets never reach what is shown, and what is no secret stays readable."""

from __future__ import annotations

import pytest

from onibi.platform.redaction import flattened, names_a_secret, without_secrets


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
