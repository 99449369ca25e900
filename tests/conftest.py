"""What every test counts on, however pytest was started."""

from __future__ import annotations

import functools
import importlib.util
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is.
settings.register_profile("onibi", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("onibi")

# A shell without job control starts what it puts in the background with SIGINT ignored, and that is inherited: the
# commands that the tests start and interrupt would not hear of it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

TESTS = Path(__file__).parent

_STARTS_RAY = re.compile(r"serial=False|\bimport ray\b|\bfrom ray\b|ray start|under_ray|empty_cluster")


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in a hook of its own
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several workers (``-n``) a file's tests stay together, and files that start Ray are one worker's: clusters
    of all workers at a time would have the cores of one. Those with a Ray in the tests' own process are another
    worker's: all in one row take longer than the rest.
    """
    for item in items:
        group = "ray in here" if "small_ray" in item.fixturenames else _group(item.path)
        item.add_marker(pytest.mark.xdist_group(group))


@functools.cache
def _group(path: Path) -> str:
    return "ray" if _STARTS_RAY.search(path.read_text(encoding="utf-8")) else str(path.relative_to(TESTS))


@pytest.fixture(scope="session")
def language_server_class():
    """The class in actors/language_server.py, which is no module that tests could import."""
    spec = importlib.util.spec_from_file_location("language_server", TESTS / "actors" / "language_server.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.LanguageServer


@pytest.fixture
def language_server(language_server_class):
    """A server that speaks OpenAI's protocol on loopback, polite until told otherwise."""
    server = language_server_class()
    yield server
    server.close()
    assert server.faults == []


@pytest.fixture(scope="session")
def smollm_url():
    """Of an OpenAI-compatible server in a process of its own, with a real language model of 135 M parameters."""
    pytest.importorskip("xllamacpp", reason="comes with onibi[llm-tests]")
    script = TESTS / "actors" / "annotators" / "smollm_server.py"
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        line = process.stdout.readline().strip()
        assert line.startswith("http://127.0.0.1:")
        yield f"{line}/v1"
        process.stdin.close()
        try:
            assert process.wait(timeout=20) == 0
        finally:
            process.kill()


@pytest.fixture(scope="session")
def tiny_language_model(tmp_path_factory):
    """Folder of a random Llama of two layers with a tokenizer that was trained on a few words."""
    pytest.importorskip("transformers", reason="comes with onibi[llm-tests]")
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = str(tmp_path_factory.mktemp("tiny") / "llama")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["yes no first second tie The door opens."] * 10, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = (
        "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant: {% endif %}"
    )
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=8192,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder
