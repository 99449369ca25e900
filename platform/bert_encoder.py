"""Sentence embeddings of a BERT with mean pooling, by torch alone: the MiniLM models, without loading transformers.

    x = LN(word + position + type);  per layer  x ← LN(x + attention(x));  x ← LN(x + W₂ gelu(W₁ x))
    embedding = mean of x over the text's pieces, divided by its length

Reimers & Gurevych, "Sentence-BERT", arXiv 1908.10084. sentence-transformers gives the same to float32's rounding
(tests compare them), and costs 4 s and 260 MB more to load.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from onibi.platform.errors import ConfigError
from onibi.platform.sentence_encoder import read_json
from onibi.platform.word_pieces import WordPieces

_BATCH_TEXTS = 64
_LAYER_PARTS = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)


class BertEncoder:
    """Embeds texts with the model in a folder.

    Args:
        folder: as sentence-transformers writes it: config.json, vocab.txt, model.safetensors.
    Raises: ConfigError where a file is missing, damaged, or of another kind of model.
    """

    def __init__(self, folder: Path) -> None:
        config = read_json(folder / "config.json")
        self._tokens = WordPieces.read(folder / "vocab.txt")
        path = folder / "model.safetensors"
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"{path}: cannot be read as weights ({error}); install the model anew") from error
        self._tensors = {name.removeprefix("bert."): tensor.float() for name, tensor in tensors.items()}
        self._heads, self._layers = int(config["num_attention_heads"]), int(config["num_hidden_layers"])
        self._epsilon = float(config["layer_norm_eps"])
        length = read_json(folder / "sentence_bert_config.json").get("max_seq_length", 256)
        self._most = min(int(length), int(config["max_position_embeddings"]))
        self.dimensions = int(config["hidden_size"])
        missing = [name for name in self._names() if name not in self._tensors]
        if missing:
            raise ConfigError(f"{path}: {len(missing)} tensors are missing, {missing[0]!r} first; is it a whole BERT?")

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[texts, dimensions] float32, each of length 1."""
        ids = [self._tokens.encode(text, self._most) for text in texts]
        vectors = np.zeros((len(texts), self.dimensions), np.float32)
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))  # alike lengths together: less padding
        with _one_thread(), torch.inference_mode():
            for first in range(0, len(order), _BATCH_TEXTS):
                batch = order[first : first + _BATCH_TEXTS]
                vectors[batch] = self._embed([ids[index] for index in batch]).numpy()
        return vectors

    def _embed(self, ids: list[list[int]]) -> Tensor:
        longest = max(map(len, ids))
        padded = torch.tensor([row + [self._tokens.padding] * (longest - len(row)) for row in ids])
        present = torch.arange(longest) < torch.tensor([[len(row)] for row in ids])  # [B, T]
        tensors = self._tensors
        hidden = tensors["embeddings.word_embeddings.weight"][padded]
        hidden = hidden + tensors["embeddings.position_embeddings.weight"][:longest]
        hidden = self._norm(hidden + tensors["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        mask = present[:, None, None, :]
        for layer in range(self._layers):
            hidden = self._layer(hidden, mask, f"encoder.layer.{layer}")
        weights = present[..., None].float()
        return functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=1)

    def _layer(self, hidden: Tensor, mask: Tensor, name: str) -> Tensor:
        batch, length, _ = hidden.shape
        query, key, value = (
            self._linear(hidden, f"{name}.attention.self.{part}").view(batch, length, self._heads, -1).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        heard = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        heard = heard.transpose(1, 2).reshape(batch, length, -1)
        hidden = self._norm(
            hidden + self._linear(heard, f"{name}.attention.output.dense"), f"{name}.attention.output.LayerNorm"
        )
        inner = functional.gelu(self._linear(hidden, f"{name}.intermediate.dense"))
        return self._norm(hidden + self._linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def _linear(self, hidden: Tensor, name: str) -> Tensor:
        return functional.linear(hidden, self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"])

    def _norm(self, hidden: Tensor, name: str) -> Tensor:
        weight, bias = self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"]
        return functional.layer_norm(hidden, (self.dimensions,), weight, bias, self._epsilon)

    def _names(self) -> Iterator[str]:
        for table in ("word", "position", "token_type"):
            yield f"embeddings.{table}_embeddings.weight"
        parts = ["embeddings.LayerNorm"]
        for layer in range(self._layers):
            parts += [f"encoder.layer.{layer}.{part}" for part in _LAYER_PARTS]
        for part in parts:
            yield f"{part}.weight"
            yield f"{part}.bias"


@contextmanager
def _one_thread() -> Iterator[None]:
    """Beside rollouts and a learner more threads slow all of them down; the caller's setting comes back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
