from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Generator, nn

from onibi.learners.reward_models.bag_of_words import BagOfWords
from onibi.learners.reward_models.characters import Characters
from onibi.learners.reward_models.ensemble import Ensemble
from onibi.learners.reward_models.member_layers import MemberGru, MemberLinear
from onibi.learners.reward_models.objectives import bradley_terry, label_cross_entropy
from onibi.learners.reward_models.settings import RewardModelSettings

TEXTS = ["You kill the newt!", "", "It's a wall.", "You see here a long sword, which glows in the dark. " * 3, "x"]
ENCODERS = {
    "bag_of_words": BagOfWords(BagOfWords.Settings(buckets=64, width=8)),
    "cnn": Characters(Characters.Settings(embedding=4, width=6)),
    "gru": Characters(Characters.Settings(network="gru", embedding=4, width=6, length=32)),
}


def generators(count, seed=0):
    return [Generator().manual_seed(seed + member) for member in range(count)]


def settings(members, **others):
    return RewardModelSettings(members=members, hidden=(8,), batch_size=4, **others)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_text_s_score_does_not_depend_on_the_texts_beside_it(name):
    encoder = ENCODERS[name]
    ensemble = Ensemble(settings(3), encoder, seed=1)
    tokens = encoder.tokens(TEXTS)
    together = ensemble.scores(tokens)
    for place in range(len(TEXTS)):
        np.testing.assert_allclose(ensemble.scores(tokens[place : place + 1])[:, 0], together[:, place], atol=1e-6)


@pytest.mark.parametrize("name", ENCODERS)
def test_members_start_apart_and_the_first_one_is_that_of_a_smaller_ensemble(name):
    encoder = ENCODERS[name]
    tokens = encoder.tokens(TEXTS)
    three, one = (Ensemble(settings(members), encoder, seed=1).scores(tokens) for members in (3, 1))
    np.testing.assert_allclose(three[:1], one, atol=1e-6)
    assert np.abs(three[0] - three[1]).max() > 1e-3
    assert np.abs(Ensemble(settings(1), encoder, seed=2).scores(tokens) - one).max() > 1e-3


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("objective", ["labels", "pairs"])
def test_members_learn_side_by_side_what_each_would_learn_alone(name, objective):
    encoder, rng = ENCODERS[name], np.random.default_rng(0)
    tokens = encoder.tokens(TEXTS)
    together = Ensemble(settings(3, gradient_norm=0.05), encoder, seed=1)
    alone = Ensemble(settings(1, gradient_norm=0.05), encoder, seed=1)
    for _ in range(5):
        drawn, others = rng.integers(0, len(TEXTS), (2, 3, 4))
        target = rng.random((3, 4)).astype(np.float32)
        for ensemble, members in ((together, slice(None)), (alone, slice(1))):
            if objective == "pairs":
                ensemble.learn_pairs(tokens[drawn[members]], tokens[others[members]], target[members])
            else:
                ensemble.learn_labels(tokens[drawn[members]], target[members], np.ones_like(target[members]))
    np.testing.assert_allclose(together.scores(tokens)[:1], alone.scores(tokens), atol=1e-5)
    start = Ensemble(settings(1), encoder, seed=1).scores(tokens)
    assert np.abs(alone.scores(tokens) - start).max() > 1e-4


def test_the_gru_is_torch_s():
    ours = MemberGru(generators(2), inputs=5, width=7)
    x, lengths = torch.randn(2, 3, 6, 5, generator=Generator().manual_seed(0)), torch.tensor([[6, 2, 0], [1, 5, 3]])
    with torch.no_grad():
        found = ours(x, lengths)
        for member in range(2):
            theirs = nn.GRU(5, 7, batch_first=True)
            theirs.weight_ih_l0.copy_(ours.of_input.weight[member].T)
            theirs.weight_hh_l0.copy_(ours.of_state.weight[member].T)
            theirs.bias_ih_l0.copy_(ours.of_input.bias[member, 0])
            theirs.bias_hh_l0.copy_(ours.of_state.bias[member, 0])
            for row in range(3):
                length = int(lengths[member, row])
                expected = theirs(x[member, row : row + 1, :length])[1][0, 0] if length else torch.zeros(7)
                torch.testing.assert_close(found[member, row], expected, atol=1e-6, rtol=0)


def test_linear_layers_are_each_member_s_own():
    layer = MemberLinear(generators(2), 3, 2)
    x = torch.ones(2, 4, 3)
    expected = torch.stack([x[m] @ layer.weight[m] + layer.bias[m] for m in range(2)])
    torch.testing.assert_close(layer(x), expected)


def test_bradley_terry_is_the_cross_entropy_of_a_softmax_over_two_scores():
    first, second = torch.tensor([[2.0, 0.0, -3.0]]), torch.tensor([[1.0, 0.0, 1.0]])
    preference = torch.tensor([[1.0, 0.5, 0.0]])
    shares = torch.log_softmax(torch.stack([first, second], -1).double(), dim=-1)
    expected = -(preference * shares[..., 0] + (1 - preference) * shares[..., 1])
    found = bradley_terry(first, second, preference)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)
    assert found[0, 1].item() == pytest.approx(np.log(2), abs=1e-6)  # a tie of equals: ln 2
    # The same shift of both scores changes nothing.
    torch.testing.assert_close(bradley_terry(first + 5, second + 5, preference), found)


def test_label_cross_entropy_by_hand():
    # p = ½: ln 2 whatever the label; weight 3 counts three times.
    found = label_cross_entropy(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 3.0]]))
    assert found.tolist() == [pytest.approx([np.log(2), 3 * np.log(2)])]
    with pytest.raises(ValueError, match="B"):
        label_cross_entropy(torch.zeros(1, 2), torch.zeros(1, 1), torch.ones(1, 2))


def test_a_bag_of_words_knows_words_and_neighbours_and_no_case():
    bag = ENCODERS["bag_of_words"]
    first, second, third = bag.tokens(["Kill the newt", "kill the newt", "newt the kill"])
    assert (first == second).all()
    assert sorted(first[:3]) == sorted(third[:3])  # the same words
    assert sorted(first[3:5]) != sorted(third[3:5])  # other neighbours
    assert bag.tokens([""]).max() == 0
