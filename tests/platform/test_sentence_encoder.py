"""Sentence embeddings: our reader of BERT against sentence-transformers, and what is said where a model is missing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from onibi.platform import sentence_encoder
from onibi.platform.bert_encoder import BertEncoder
from onibi.platform.errors import ConfigError
from onibi.platform.sentence_encoder import (
    PACKAGED_MODEL,
    is_installed,
    is_plain_bert,
    model_folder,
    model_identity,
    open_encoder,
)

TEXTS = [
    "The door opens.",
    "You see here a key named The Master Key of Thievery.",
    "",
    "word " * 400,
    "Ünïcödé (#) — 5 × 3",
]


@pytest.fixture(scope="module")
def encoder():
    return open_encoder(PACKAGED_MODEL)


RECORDED = [  # dimensions 0, 100, 200, 300 and 383 by sentence-transformers 6.2.0
    [0.035296, 0.008795, -0.018506, 0.018636, -0.002208],
    [-0.033327, -0.064121, -0.056534, -0.058955, 0.018847],
    [-0.118838, 0.035949, 0.037718, -0.018427, -0.015717],
    [-0.008124, -0.075985, -0.039012, 0.012854, 0.015241],
]


def test_vectors_are_those_that_sentence_transformers_gave(encoder):
    assert encoder.encode(TEXTS[:4])[:, [0, 100, 200, 300, 383]] == pytest.approx(np.array(RECORDED), abs=1e-5)


@pytest.mark.slow
def test_vectors_are_those_that_sentence_transformers_gives(encoder):
    library = pytest.importorskip("sentence_transformers")
    reference = library.SentenceTransformer(str(model_folder(PACKAGED_MODEL)), device="cpu")
    ours, theirs = encoder.encode(TEXTS), reference.encode(TEXTS, show_progress_bar=False)
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert ours.dtype == np.float32
    assert np.linalg.norm(ours, axis=1) == pytest.approx(np.ones(len(TEXTS)), abs=1e-5)


@pytest.mark.slow
def test_a_model_of_another_kind_is_read_by_the_library(tmp_path, encoder):
    pytest.importorskip("sentence_transformers")
    shutil.copytree(model_folder(PACKAGED_MODEL), tmp_path / "maximum")
    pooling = tmp_path / "maximum" / "1_Pooling" / "config.json"
    modes = json.loads(pooling.read_text()) | {"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}
    pooling.write_text(json.dumps(modes))
    assert not is_plain_bert(tmp_path / "maximum")
    other = open_encoder(str(tmp_path / "maximum"))
    assert other.dimensions == encoder.dimensions == 384
    assert abs(other.encode(TEXTS[:1]) - encoder.encode(TEXTS[:1])).max() > 0.01


def test_texts_that_mean_alike_are_near(encoder):
    door, opened, newt = encoder.encode(["The door opens.", "Somebody opened the gate.", "The newt bites!"])
    assert door @ opened > door @ newt + 0.2


def test_the_same_text_gets_the_same_vector_in_any_company_and_again(encoder):
    alone = open_encoder(PACKAGED_MODEL).encode([TEXTS[1]])[0]
    assert encoder.encode([*TEXTS, TEXTS[1]])[[1, -1]] == pytest.approx(np.stack([alone, alone]), abs=1e-6)
    assert np.array_equal(encoder.encode([TEXTS[1]])[0], encoder.encode(TEXTS)[1]), "remembered, so bit for bit"
    assert encoder.encode([]).shape == (0, 384)


def test_threads_stay_as_the_caller_set_them(encoder):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        encoder.encode(["something new for this test"])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_identity_follows_the_weights_not_the_place(tmp_path):
    folders = [tmp_path / place / "model" for place in ("here", "there")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"weights")
    assert model_identity(str(folders[0])) == model_identity(str(folders[1]))
    (folders[1] / "model.safetensors").write_bytes(b"others!")
    assert model_identity(str(folders[0])) != model_identity(str(folders[1]))
    assert model_identity(PACKAGED_MODEL).startswith(f"{PACKAGED_MODEL}:")


def test_a_model_that_is_missing_is_told_with_the_way_to_it(monkeypatch):
    monkeypatch.setattr(sentence_encoder, "_PACKAGE", "no_such_package_here")
    assert not is_installed(PACKAGED_MODEL)
    with pytest.raises(ConfigError, match=r"not installed.*onibi\[embedding\]"):
        open_encoder(PACKAGED_MODEL)


def test_a_name_needs_the_library_and_says_so(monkeypatch):
    monkeypatch.setattr(sentence_encoder, "_has", lambda package: False)
    assert not is_installed("some/model")
    with pytest.raises(ConfigError, match="needs the Python package sentence-transformers"):
        open_encoder("some/model")


def test_damaged_weights_and_lost_tensors_are_told_by_file(tmp_path):
    import safetensors.numpy

    source = model_folder(PACKAGED_MODEL)
    for path in source.rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            target = tmp_path / path.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            shutil.copy(path, target)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"no tensors")
    with pytest.raises(ConfigError, match=r"model\.safetensors: cannot be read as weights"):
        BertEncoder(tmp_path)
    safetensors.numpy.save_file({"embeddings.LayerNorm.bias": np.zeros(384, np.float32)}, weights)
    with pytest.raises(ConfigError, match=r"tensors are missing, 'embeddings[.]word"):
        BertEncoder(tmp_path)


def test_a_judge_is_made_and_named_without_loading_torch():
    code = (
        "import sys; from onibi.actors.annotators.embedding import EmbeddingAnnotator, EmbeddingSettings; "
        "print(EmbeddingAnnotator(EmbeddingSettings()).prompt_version, 'torch' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True, timeout=120)
    assert told.stdout.split()[1] == "False"
