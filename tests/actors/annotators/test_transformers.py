"""A local model's scores are those of one prompt at a time by hand; what cannot be loaded says why."""

from __future__ import annotations

import pytest

from onibi.actors.annotators.prompt import AnswerForm, PromptWriter
from onibi.actors.annotators.prompt_template import read_prompt_template
from onibi.actors.annotators.transformers import TransformersAnnotator
from onibi.platform.annotation.annotator import PairRequest
from onibi.platform.annotation.labels import LabelValue
from onibi.platform.config import read_settings
from onibi.platform.errors import AnnotatorError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
TEXTS = ["The door opens.", "It rains, and it rains, and it rains, and it rains.", "<|im_end|> yes", "A."]


@pytest.fixture
def judge(tiny_language_model):
    def judge(**settings) -> TransformersAnnotator:
        # A random model says anything: its words hold a thousandth of the probability.
        given = {"model": tiny_language_model, "least_word_share": 1e-6, "device": "cpu", **settings}
        return TransformersAnnotator(read_settings(TransformersAnnotator.Settings, given))

    return judge


def scores_by_hand(folder, request):
    """p(yes…) / (p(yes…) + p(no…)) of one unpadded prompt."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    template = read_prompt_template("nethack")
    writer = PromptWriter(template, template.goal, 300, whole_captions=True, explain=False)
    prompt = writer.labels([request], AnswerForm.WORD)
    text = f"<s>system: {prompt.system}</s><s>user: {prompt.user}</s><s>assistant: "
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer.encode(text, add_special_tokens=False)])).logits[0, -1]
    p = torch.softmax(logits.double(), 0)
    sums = {"yes": 0.0, "no": 0.0}
    for token in range(len(tokenizer)):
        bare = tokenizer.decode([token]).strip().lower()
        for word in sums:
            if bare and word.startswith(bare):
                sums[word] += p[token].item()
    return sums["yes"] / (sums["yes"] + sums["no"])


def test_a_batch_of_prompts_of_different_lengths_scores_as_each_alone(judge, ask_of, tiny_language_model):
    annotator = judge(batch_captions=3)
    requests = ask_of(*TEXTS)
    labels = list(annotator.annotate(requests, annotator.goal))
    assert [label.key_text for label in labels] == TEXTS
    for request, label in zip(requests, labels, strict=True):
        assert label.score == pytest.approx(scores_by_hand(tiny_language_model, request), abs=1e-4)
        assert label.tokens > 100 and "of a share of" in label.reply
    assert len({round(label.score, 6) for label in labels}) == len(TEXTS)
    figures = annotator.statistics()
    assert (figures["requests"], figures["answers"], figures["verdicts"]) == (2, 2, 4)
    assert figures["tokens"] == sum(label.tokens for label in labels)


def test_a_model_that_counts_positions_from_the_left_and_has_no_chat_format_is_padded_rightly_too(
    judge, ask_of, tiny_language_model, tmp_path
):
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    folder = str(tmp_path / "gpt")
    tokenizer = AutoTokenizer.from_pretrained(tiny_language_model)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=4096)
        GPT2LMHeadModel(config).save_pretrained(folder)
    scores = []
    for size in (1, 4):
        annotator = judge(model=folder, batch_captions=size)
        scores.append([label.score for label in annotator.annotate(ask_of(*TEXTS), annotator.goal)])
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    assert len({round(score, 5) for score in scores[0]}) == len(TEXTS)


def test_a_model_that_would_say_something_else_gives_no_label(judge, ask_of):
    annotator = judge(least_word_share=0.9)
    labels = list(annotator.annotate(ask_of(*TEXTS), annotator.goal))
    assert [label.value for label in labels] == [LabelValue.INVALID] * 4
    assert annotator.statistics()["parse_failure_share"] == 1.0


def test_pairs_are_compared(judge, ask_of):
    annotator = judge()
    first, second, *_ = ask_of(*TEXTS)
    (one,) = annotator.prefer([PairRequest(first=first, second=second)], annotator.goal)
    assert one.value.value in ("first", "second", "tie") and one.tokens > 100


def test_the_model_is_loaded_with_the_first_batch_and_not_before(judge, ask_of, tmp_path):
    annotator = judge(model=str(tmp_path / "nowhere"), local_files_only=True)
    assert annotator.prompt_version != judge().prompt_version
    assert annotator.statistics()["healthy"] == 1
    with pytest.raises(AnnotatorError, match=r"nowhere.*cannot be loaded.*must be a folder"):
        list(annotator.annotate(ask_of(*TEXTS), annotator.goal))
    assert annotator.statistics()["healthy"] == 0


def test_damaged_weights_are_told(judge, ask_of, tiny_language_model, tmp_path):
    import shutil

    folder = tmp_path / "damaged"
    shutil.copytree(tiny_language_model, folder)
    (folder / "model.safetensors").write_bytes(b"no weights")
    annotator = judge(model=str(folder))
    with pytest.raises(AnnotatorError, match="cannot be loaded"):
        list(annotator.annotate(ask_of(*TEXTS), annotator.goal))


def test_a_prompt_beyond_the_models_context_is_told_and_not_cut(judge, ask_of, tiny_language_model, tmp_path):
    import json
    import shutil

    folder = tmp_path / "short"
    shutil.copytree(tiny_language_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 64}))
    annotator = judge(model=str(folder))
    with pytest.raises(AnnotatorError, match="takes 64 tokens"):
        list(annotator.annotate(ask_of(*TEXTS), annotator.goal))
