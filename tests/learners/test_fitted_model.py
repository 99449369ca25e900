from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from onibi.learners.reward_models.fitted_model import fit_offline, open_reward_learner, read_fitted
from onibi.learners.reward_models.settings import RewardModelSettings
from onibi.platform.errors import CheckpointError, ConfigError
from onibi.platform.rewards.table import LABELLED
from onibi.platform.rewards.table_chain import KeyFacts, RankingChain, build_values
from onibi.platform.rewards.training import LabelledKeys

TEXTS = [f"You {deed} the {thing}." for deed in ("kill", "open", "drop", "hear") for thing in ("newt", "door", "box")]
WORTH = np.array([float("kill" in text) + 0.5 * ("door" in text) for text in TEXTS])
SETTINGS = RewardModelSettings(hidden=(8,), members=2, held_out_share=0.0, batch_size=32, learning_rate=0.01)


def judged(pairs=300, labels=True, texts=TEXTS, worth=WORTH):
    count = len(texts)
    first, second = np.random.default_rng(0).integers(0, count, (2, pairs)).astype(np.int32)
    preference = np.where(worth[first] == worth[second], 0.5, worth[first] > worth[second]).astype(np.float32)
    keys = np.arange(count if labels else 0, dtype=np.int32)
    return LabelledKeys(
        version=1,
        key_texts=list(texts),
        askable=np.ones(count, bool),
        sightings=np.arange(count, dtype=np.int64),
        label_key=keys,
        label_score=(worth[keys] > 0.4).astype(np.float32),
        pair_first=first,
        pair_second=second,
        pair_preference=preference,
    )


def scores_of(learner, texts):
    """[N, texts] raw scores."""
    return learner.ensemble.scores(learner.encoder.tokens(texts))


@pytest.fixture(scope="module")
def model():
    return fit_offline(judged(), SETTINGS, "ranking", seed=1, about={"goal": "win"})


def test_a_model_that_was_saved_is_the_model_that_was_fitted(model, tmp_path):
    model.save(tmp_path / "deep" / "model")
    read = read_fitted(tmp_path / "deep" / "model")
    assert read.settings == SETTINGS
    assert (read.kind, dict(read.about)) == ("ranking", {"goal": "win"})
    assert dict(read.metrics) == dict(model.metrics)
    texts = ["You kill the door.", "something else"]
    assert (scores_of(read.learner(0), texts) == scores_of(model.learner(0), texts)).all()
    assert (read.reference.members == model.reference.members).all()
    assert read.reference.rows.tolist() == list(range(1, len(TEXTS)))  # the key that was never seen is left out


def test_a_fitted_model_orders_what_it_was_fitted_on(model):
    scores = scores_of(model.learner(0), TEXTS).mean(axis=0)
    assert scores[WORTH == 1.5].min() > scores[WORTH == 0.5].max() > scores[WORTH == 0.0].max()


def test_equal_data_and_seed_give_equal_models(model):
    again = fit_offline(judged(), SETTINGS, "ranking", seed=1)
    assert all((again.parameters[name] == each).all() for name, each in model.parameters.items())


def test_a_model_of_a_handful_of_labels_is_told_of(caplog):
    fit_offline(judged(), SETTINGS, "ranking", seed=1, passes=1)
    assert not caplog.records
    fit_offline(judged(), SETTINGS, "classification", seed=1, passes=1)
    assert "fitted to 12 labels, which is few" in caplog.text


def test_a_frozen_model_pays_at_once_over_its_own_rows_and_never_learns(model, tmp_path):
    model.save(tmp_path)
    settings = dataclasses.replace(RewardModelSettings(), fitted=str(tmp_path), frozen=True)
    learner = open_reward_learner(settings, "ranking", seed=2)
    told = learner.learn(judged(pairs=100))
    assert learner.ensemble.steps == learner.owed_steps == 0
    assert told.is_fitted
    facts = KeyFacts(
        askable=np.ones(len(TEXTS), bool),
        rows=np.eye(1, len(TEXTS), 5, dtype=np.int64)[0],  # one row in this run: it must not matter
        label=np.full(len(TEXTS), np.nan, np.float32),
        compared=told.compared,
        pairs=told.pairs,
        members=told.members,
        reference=told.reference,
        is_fitted=told.is_fitted,
    )
    table = build_values(RankingChain(cap=9.0), facts)
    raw, rows = model.reference.members.astype(float), model.reference.rows
    mean = (raw * rows).sum(1, keepdims=True) / rows.sum()
    z = ((told.members - mean) / np.sqrt(((raw - mean) ** 2 * rows).sum(1, keepdims=True) / rows.sum())).mean(axis=0)
    middle = np.quantile(np.repeat(z[1:], rows), 0.5, method="inverted_cdf")
    np.testing.assert_allclose(table.value, np.where(z > middle, np.maximum(z, 0), 0), atol=1e-5)
    assert table.value.any()
    assert table.labelled.tolist() == [LABELLED] * len(TEXTS)


def test_a_fitted_model_that_is_not_frozen_goes_on_learning(model, tmp_path):
    model.save(tmp_path)
    settings = dataclasses.replace(RewardModelSettings(), fitted=str(tmp_path), held_out_share=0.0)
    learner = open_reward_learner(settings, "ranking", seed=2)
    before = scores_of(learner, TEXTS)
    told = learner.learn(judged(worth=-WORTH))
    assert learner.ensemble.steps > 0
    assert told.reference is None
    assert np.corrcoef(before.mean(0), WORTH)[0, 1] > np.corrcoef(told.members.mean(0), WORTH)[0, 1]


def test_models_that_are_missing_damaged_or_of_another_kind_are_refused(model, tmp_path):
    with pytest.raises(ConfigError, match="holds no reward model"):
        read_fitted(tmp_path / "nowhere")
    model.save(tmp_path)
    settings = dataclasses.replace(RewardModelSettings(), fitted=str(tmp_path))
    with pytest.raises(ConfigError, match="is one of ranking"):
        open_reward_learner(settings, "classification", seed=1)
    description = json.loads((tmp_path / "model.json").read_bytes())
    (tmp_path / "model.json").write_text(json.dumps(description | {"format": 9}))
    with pytest.raises(ConfigError, match="format 9"):
        read_fitted(tmp_path)
    changed = description["settings"] | {"hidden": [9]}
    (tmp_path / "model.json").write_text(json.dumps(description | {"settings": changed}))
    with pytest.raises(CheckpointError, match="does not fit"):
        read_fitted(tmp_path).learner(0)
    for damaged, told in (([], "holds list"), ({"format": 1, "kind": "ranking"}, r"lacks \['about', 'metrics'")):
        (tmp_path / "model.json").write_text(json.dumps(damaged))
        with pytest.raises(ConfigError, match=told):
            read_fitted(tmp_path)
    for rows in (model.reference.rows[1:], 0 * model.reference.rows):
        reference = dataclasses.replace(model.reference, rows=rows)
        dataclasses.replace(model, reference=reference).save(tmp_path / "odd")
        with pytest.raises(ConfigError, match="are not of the same rows"):
            read_fitted(tmp_path / "odd")
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigError, match="cannot be read"):
        read_fitted(tmp_path)


def test_nothing_to_learn_from_is_told():
    with pytest.raises(ConfigError, match="no pairs to learn from"):
        fit_offline(judged(pairs=0), SETTINGS, "ranking", seed=1)
    with pytest.raises(ValueError, match="there is no fitted model"):
        RewardModelSettings(frozen=True)
