"""A causal language model that is only asked for the next token: probabilities of a few words, in batches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import torch
import transformers
from safetensors import SafetensorError

from onibi.actors.annotators.prompt import Prompt
from onibi.actors.annotators.word_probabilities import WordScores, verdict_of_token, word_scores
from onibi.platform.errors import AnnotatorError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class CausalModel:
    """Model and tokenizer.

    Args:
        name: on the Hugging Face hub, or a folder.
        revision: on the hub.
        local_files_only: whether the hub is never asked.
        device: "auto" takes a GPU where there is one.
        dtype: "auto" takes the weights' own.
    Raises: AnnotatorError where it cannot be loaded.
    """

    def __init__(self, name: str, *, revision: str | None, local_files_only: bool, device: str, dtype: str) -> None:
        self.device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        self._name = name
        transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # runs have a display of their own
        try:
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
                name, revision=revision, local_files_only=local_files_only, padding_side="left"
            )
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                name, revision=revision, local_files_only=local_files_only, dtype=_DTYPES.get(dtype, "auto")
            )
            self._model = model.to(self.device).eval()
        # The package raises all kinds: files missing, no network, no such architecture, no memory, a damaged file.
        except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
            text = " ".join(str(error).split())
            raise AnnotatorError(
                f"language model {name!r} cannot be loaded on {self.device}: {text[:300]}. annotator.model must be a "
                "folder with config.json, tokenizer and weights, or a name on the Hugging Face hub"
            ) from error
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._masks: dict[tuple[tuple[str, str], ...], torch.Tensor] = {}

    def scores(
        self, prompts: Sequence[Prompt], words: Mapping[str, str], least_share: float
    ) -> list[tuple[WordScores, int]]:
        """How likely each verdict's word comes next.

        Args:
            prompts: one batch.
            words: verdict → word.
            least_share: of probability on the words.
        Returns: scores and number of tokens of each prompt.
        Raises: AnnotatorError where a prompt is too long for the model, or memory runs out.
        """
        batch = self._tokenizer(
            [self._text(prompt) for prompt in prompts], return_tensors="pt", padding=True, add_special_tokens=False
        )
        length = batch["input_ids"].shape[1]
        most = getattr(self._model.config, "max_position_embeddings", None) or math.inf
        if length >= most:
            raise AnnotatorError(
                f"language model {self._name!r} takes {most} tokens, a prompt has {length}; use a shorter prompt "
                "template (annotator.prompt) or lower annotator.caption_characters"
            )
        mask = batch["attention_mask"].to(self.device)
        try:
            with torch.inference_mode():
                logits = self._model(
                    input_ids=batch["input_ids"].to(self.device),
                    attention_mask=mask,
                    # Left padding: a prompt's first token is at position 0 whatever stands before it.
                    position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
                    logits_to_keep=1,
                ).logits[:, -1]
                probabilities = torch.softmax(logits.float(), dim=-1) @ self._mask(words, logits.shape[-1])
        except torch.cuda.OutOfMemoryError as error:
            raise AnnotatorError(
                f"language model {self._name!r}: {self.device} is out of memory with {len(prompts)} prompts of "
                f"{length} tokens; lower annotator.batch_captions"
            ) from error
        tokens = mask.sum(-1).tolist()
        return [
            (_word_scores(row, words, least_share), int(count))
            for row, count in zip(probabilities.tolist(), tokens, strict=True)
        ]

    def _text(self, prompt: Prompt) -> str:
        if self._tokenizer.chat_template is None:
            return prompt.text
        system = {"role": "system", "content": prompt.system}
        try:
            return self._chat([system, {"role": "user", "content": prompt.user}])
        except jinja2.TemplateError:  # this chat format has no system message
            return self._chat([{"role": "user", "content": f"{prompt.system}\n\n{prompt.user}"}])

    def _chat(self, messages: list[dict[str, str]]) -> str:
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def _mask(self, words: Mapping[str, str], size: int) -> torch.Tensor:
        """[vocabulary, verdicts] float32: 1 where a token begins a verdict's word and no other's."""
        key = tuple(words.items())
        if key not in self._masks:
            mask = torch.zeros(size, len(words))
            order = {verdict: column for column, verdict in enumerate(words)}
            names = self._tokenizer.convert_ids_to_tokens(range(min(size, len(self._tokenizer))))
            for token, name in enumerate(names):
                verdict = None if name is None else verdict_of_token(name, words)
                if verdict is not None:
                    mask[token, order[verdict]] = 1.0
            self._masks[key] = mask.to(self.device)
        return self._masks[key]


def _word_scores(probabilities: Sequence[float], words: Mapping[str, str], least_share: float) -> WordScores:
    tokens = [(words[verdict], math.log(p)) for verdict, p in zip(words, probabilities, strict=True) if p > 0.0]
    return word_scores(tokens, words, least_share)
