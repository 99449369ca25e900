"""The winding corridor: what can be walked, what is heard, and that neither luck nor one action leads to its end."""

from __future__ import annotations

import numpy as np
import pytest

from onibi.actors.annotators.lexicon import LEXICON_FOLDER, read_lexicon
from onibi.actors.environments.factory import EnvironmentSettings, make_vector_env
from onibi.actors.environments.listening_corridor import LISTEN, NOISES, make
from onibi.platform.annotation.labels import LabelValue
from onibi.platform.errors import EnvironmentFault

PATH = "onibi.actors.environments.listening_corridor:make"
ROOMS, LENGTH = 4, 3
CELLS = ROOMS * LENGTH


def found_way(limit=1_000):
    """The actions that lead on from each cell, found by trying each of them in the lanes of a corridor."""
    ways: list[int] = []
    while len(ways) < CELLS - 1:
        corridor = make(LISTEN, ROOMS, LENGTH, limit)
        corridor.reset(seed=0)
        for way in ways:
            corridor.step(np.full(LISTEN, way))
        seen, *_ = corridor.step(np.arange(LISTEN))
        (ahead,) = np.flatnonzero(seen.argmax(axis=1) == len(ways) + 1)
        ways.append(int(ahead))
    return ways


def test_each_cell_has_one_way_on_and_the_opposite_of_it_leads_back():
    ways = found_way()
    corridor = make(1, ROOMS, LENGTH, 1_000)
    corridor.reset(seed=0)
    for cell, way in enumerate(ways[:-1]):
        for action, place in ((way, cell + 1), ((way + 2) % 4, cell), (way, cell + 1)):
            seen, reward, terminated, truncated, _ = corridor.step(np.array([action]))
            assert (seen.argmax(), seen.sum()) == (place, 1.0)
            assert not (reward[0] or terminated[0] or truncated[0])
    assert len(set(ways)) > 2


def test_rooms_walls_and_the_end_are_heard_and_the_end_alone_pays():
    corridor = make(1, ROOMS, LENGTH, 1_000)
    infos = corridor.reset(seed=0)[1]
    heard, paid = [infos["caption"][0]], []
    for way in found_way():
        wall = next(each for each in range(4) if each not in (way, (way + 2) % 4))
        # A wall on the side, unless the way back is there: then two steps make one.
        seen, _, _, _, infos = corridor.step(np.array([wall]))
        if infos["caption"][0] != "You bump into the wall.":
            corridor.step(np.array([(wall + 2) % 4]))
        seen, reward, terminated, _, infos = corridor.step(np.array([way]))
        assert bool(infos["_caption"][0]) is (infos["caption"][0] != "")
        heard.append(infos["caption"][0])
        paid.append(float(reward[0]))
    spoken = [text for text in heard if text]
    assert spoken == [
        "You wake up in the cellar.",
        "You enter the kitchen.",
        "You enter the pantry.",
        "You enter the hall.",
        "You reach the end of the corridor.",
    ]
    assert paid == [0.0] * (CELLS - 2) + [1.0]
    assert terminated[0]
    assert seen.argmax() == CELLS - 1
    assert infos["episode_figures"]["success"].tolist() == [1.0]


def test_listening_yields_500_texts_that_the_judge_finds_useless_and_moves_nobody():
    corridor = make(64, ROOMS, LENGTH, 10_000)
    corridor.reset(seed=1)
    heard = set()
    for _ in range(200):
        seen, reward, *_, infos = corridor.step(np.full(64, LISTEN))
        heard.update(infos["caption"].tolist())
        assert not reward.any()
    assert seen.argmax(axis=1).tolist() == [0] * 64
    assert heard == set(NOISES)
    assert len(heard) == 500
    judge = read_lexicon(LEXICON_FOLDER / "corridor.yaml")
    assert {judge.judge(text)[0] for text in heard} == {LabelValue.UNHELPFUL}
    verdicts = {text: judge.judge(text)[0] for text in ("You enter the vault.", "You reach the end of the corridor.")}
    assert set(verdicts.values()) == {LabelValue.HELPFUL}
    assert judge.judge("You bump into the wall.")[0] == LabelValue.UNHELPFUL


def test_an_episode_is_cut_at_its_limit_and_the_next_begins_at_the_near_end():
    corridor = make(2, ROOMS, LENGTH, 3)
    corridor.reset(seed=0)
    way = found_way()[0]
    ends = []
    for _ in range(3):
        seen, _, terminated, truncated, infos = corridor.step(np.array([way, LISTEN]))
        ends.append((terminated.tolist(), truncated.tolist()))
    assert ends == [([False] * 2, [False] * 2)] * 2 + [([False] * 2, [True] * 2)]
    assert infos["episode_figures"]["success"].tolist() == [0.0, 0.0]
    assert seen.argmax(axis=1)[1] == 0
    seen, reward, terminated, truncated, infos = corridor.step(np.array([way, way]))
    assert seen.argmax(axis=1).tolist() == [0, 0]
    assert infos["caption"].tolist() == ["You wake up in the cellar."] * 2
    assert not (reward.any() or terminated.any() or truncated.any())


def test_a_seed_decides_what_is_heard():
    def heard(seed):
        corridor = make(8, ROOMS, LENGTH, 100)
        corridor.reset(seed=seed)
        return [corridor.step(np.full(8, LISTEN))[-1]["caption"].tolist() for _ in range(5)]

    assert heard(4) == heard(4)
    assert heard(4) != heard(5)


def test_random_play_never_gets_to_the_end_of_the_corridor_that_the_preset_plays():
    corridor = make_vector_env(EnvironmentSettings(id=PATH, vectorization="native", max_episode_steps=120), 512)
    corridor.reset(seed=3)
    rng, ended, reached, farthest = np.random.default_rng(0), 0, 0.0, 0
    for _ in range(1_000):
        seen, reward, terminated, truncated, _ = corridor.step(rng.integers(LISTEN + 1, size=512))
        ended += int((terminated | truncated).sum())
        reached += float(reward.sum())
        farthest = max(farthest, int(seen.argmax(axis=1).max()))
    assert ended > 4_000
    assert reached <= 2
    assert farthest > 10


@pytest.mark.parametrize("kwargs", [{"rooms": 1}, {"rooms": 17}, {"room_length": 0}, {"max_episode_steps": 0}])
def test_a_corridor_that_cannot_be_is_refused_by_name(kwargs):
    with pytest.raises(EnvironmentFault, match=f"{next(iter(kwargs))} is"):
        make_vector_env(EnvironmentSettings(id=PATH, vectorization="native", kwargs=kwargs), 2)
