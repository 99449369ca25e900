"""MinAtar's games as environments; the package is an extra."""

from __future__ import annotations

import builtins

import numpy as np
import pytest

from onibi.actors.environments.factory import EnvironmentSettings, make_vector_env
from onibi.actors.environments.minatar import GAMES, make
from onibi.actors.views.leaves import LeavesSettings, LeavesView
from onibi.platform.errors import EnvironmentFault

PATH = "onibi.actors.environments.minatar:make"


def played(environment, seed, steps=300):
    """Observations, rewards and ends of random play from ``seed``."""
    rng, seen = np.random.default_rng(5), []
    seen.append((environment.reset(seed=seed)[0].tobytes(), 0.0, False))
    for _ in range(steps):
        observation, reward, terminated, truncated, _ = environment.step(rng.integers(environment.action_space.n))
        assert not truncated
        seen.append((observation.tobytes(), reward, terminated))
        if terminated:
            seen.append((environment.reset()[0].tobytes(), 0.0, False))
    return seen


@pytest.fixture(autouse=True)
def minatar():
    return pytest.importorskip("minatar")


@pytest.mark.parametrize("game", GAMES)
def test_a_game_shows_a_channel_of_0s_and_1s_for_each_kind_of_object(minatar, game):
    environment, original = make(game), minatar.Environment(game)
    assert environment.observation_space.shape == (10, 10, original.state_shape()[2])
    assert environment.action_space.n == 6
    observation, _ = environment.reset(seed=3)
    assert environment.observation_space.contains(observation)
    assert set(np.unique(observation).tolist()) == {0, 1}
    assert make(game, minimal_actions=True).action_space.n == len(original.minimal_action_set())


def test_what_is_played_is_the_original_game(minatar):
    environment, original = make("breakout", sticky_actions=0.25), minatar.Environment("breakout", 0.25)
    environment.reset(seed=11)
    original.seed(int(np.random.default_rng(np.random.SeedSequence(11)).integers(2**31)))
    original.reset()
    rng = np.random.default_rng(0)
    for _ in range(200):
        action = int(rng.integers(6))
        reward, terminated = original.act(action)
        observation, found, ended, _, _ = environment.step(np.int64(action))
        np.testing.assert_array_equal(observation, original.state())
        assert (found, ended) == (reward, terminated)
        if terminated:
            break


@pytest.mark.parametrize("game", ["breakout", "space_invaders"])
def test_a_seed_repeats_a_game_and_another_one_plays_another(game):
    first, again, other = (played(make(game), seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_two_environments_that_nobody_seeded_play_differently():
    games = [make("asterix") for _ in range(2)]
    for game in games:
        game.reset()
    rng = np.random.default_rng(0)
    actions = rng.integers(6, size=200)
    seen = [[game.step(action)[0].tobytes() for action in actions] for game in games]
    assert seen[0] != seen[1]


def test_minimal_actions_are_those_of_the_game_in_their_order(minatar):
    environment = make("breakout", sticky_actions=0.0, minimal_actions=True)
    environment.reset(seed=0)
    before = environment._game.env.pos
    moves = minatar.Environment("breakout").minimal_action_set()
    environment.step(np.int64(moves.index(1)))  # 1 is left
    assert environment._game.env.pos == before - 1


def test_a_vector_of_games_is_stored_as_bytes_bounded_by_1():
    settings = EnvironmentSettings(id=PATH, kwargs={"game": "space_invaders"}, max_episode_steps=5)
    vector = make_vector_env(settings, 3)
    (leaf,) = LeavesView(LeavesSettings(), vector.single_observation_space).specs
    assert (leaf.dtype, leaf.shape, leaf.low, leaf.high) == ("uint8", (10, 10, 6), 0.0, 1.0)
    vector.reset(seed=1)
    cut = sum(vector.step(np.zeros(3, np.int64))[3] for _ in range(6))
    assert cut.tolist() == [1, 1, 1]
    vector.close()


def test_an_unknown_game_and_a_missing_package_are_told(monkeypatch):
    with pytest.raises(EnvironmentFault, match=r"'pong'; allowed: asterix, breakout"):
        make("pong")
    inner = builtins.__import__

    def refuse(name, *others, **named):
        if name == "minatar":
            raise ImportError("no module")
        return inner(name, *others, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(EnvironmentFault, match=r"pip install 'onibi\[minatar\]'"):
        make("breakout")
