"""Rollouts in the real engine: seeds, time limits, figures."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from onibi.actors.captioners.nethack import NetHackCaptioner, NetHackCaptionerSettings
from onibi.actors.environments.factory import EnvironmentSettings, make_vector_env
from onibi.actors.environments.nethack import NetHackEpisodes
from onibi.actors.rollout import Rollout, RolloutIdentity, RolloutSettings
from onibi.actors.views.nethack import NetHackView, NetHackViewSettings
from onibi.platform.policy import NO_WEIGHTS, PolicyStep
from onibi.platform.spec import ROLE_FINAL, ArraySpec, ReplaySpec

KEYS = ("chars", "colors", "blstats", "inv_oclasses", "message", "inv_strs", "inv_letters")
ENVS, STEPS = 2, 120
ROOM = EnvironmentSettings(id="MiniHack-Room-Random-5x5-v0", kwargs={"max_episode_steps": 30})
GAME = EnvironmentSettings(id="NetHackScore-v0", kwargs={"max_episode_steps": 40})


class RandomPolicy:
    version = NO_WEIGHTS

    def __init__(self, actions):
        self.actions = actions

    def initial_state(self, envs):
        return None

    def act(self, observation, state, rng):
        return PolicyStep(action=rng.integers(0, self.actions, ENVS))

    def load(self, weights):
        raise AssertionError("nothing was published")


def play(settings: EnvironmentSettings, seed: int, fragments: int = 1):
    env = make_vector_env(settings, ENVS, KEYS)
    view = NetHackView(NetHackViewSettings(whole_map=True), env.single_observation_space)
    captioner = NetHackCaptioner(NetHackCaptionerSettings())
    counts = ArraySpec(name="observation.caption_counts", dtype="float32", shape=(captioner.keys_per_caption + 64,))
    spec = ReplaySpec(
        observation=(*view.specs, counts),
        actions=int(env.single_action_space.n),
        keys_per_caption=captioner.keys_per_caption,
    )
    rollout = Rollout(
        env,
        view,
        captioner,
        RandomPolicy(spec.actions),
        spec,
        RolloutSettings(envs_per_actor=ENVS, fragment_steps=STEPS, fragment_steps_max=STEPS, fragment_seconds=0.0),
        RolloutIdentity(actor=0, incarnation=0, next_sequence=0, seed=seed),
        settings.id,
    )
    try:
        return [rollout.collect(lambda version: None) for _ in range(fragments)]
    finally:
        rollout.close()


@pytest.fixture(scope="module")
def games():
    """Fragments by (environment, seed), played twice for seed 5."""
    return {
        (settings.id, name): play(settings, seed)
        for settings in (ROOM, GAME)
        for name, seed in (("5", 5), ("5 again", 5), ("6", 6))
    }


@pytest.mark.parametrize("settings", [ROOM, GAME], ids=lambda settings: settings.id)
def test_seeded_games_repeat_bit_for_bit_over_many_episodes(settings, games):
    (first,), (second,) = games[settings.id, "5"], games[settings.id, "5 again"]
    assert len(first.episodes) >= 4, "resets within the fragment repeat, too"
    assert first.columns.keys() == second.columns.keys()
    for name, column in first.columns.items():
        assert np.array_equal(column, second.columns[name]), name
    assert first.new_captions == second.new_captions
    assert first.episodes == second.episodes


@pytest.mark.parametrize("settings", [ROOM, GAME], ids=lambda settings: settings.id)
def test_another_seed_plays_other_games(settings, games):
    (first,), (second,) = games[settings.id, "5"], games[settings.id, "6"]
    assert not np.array_equal(first.columns["observation.map"], second.columns["observation.map"])


@pytest.mark.parametrize("settings", [ROOM, GAME], ids=lambda settings: settings.id)
def test_the_games_of_one_lane_and_of_two_lanes_differ(settings, games):
    (fragment,) = games[settings.id, "5"]
    starts = fragment.columns["observation.map"][:, :STEPS][fragment.columns["step"][:, :STEPS] == 0]
    assert len(starts) >= 6
    assert len({start.tobytes() for start in starts}) >= len(starts) - 1, "two lucky twins in a small room at most"


@pytest.mark.parametrize("settings", [ROOM, GAME], ids=lambda settings: settings.id)
def test_a_time_limit_among_the_arguments_arrives_as_truncated(settings, games):
    (fragment,) = games[settings.id, "5"]
    limit = settings.kwargs["max_episode_steps"]
    columns = fragment.columns
    last = (columns["step"] == limit - 1) & (columns["role"] != ROLE_FINAL)
    last[:, STEPS:] = False
    assert last.sum() >= 2, "random play meets the limit"
    assert columns["truncated"][last].all()
    assert not columns["terminated"][last].any()
    for episode in fragment.episodes:
        assert episode.terminated == (episode.length < limit), episode
        assert episode.extra.get("success") == (float(episode.terminated) if settings is ROOM else None), episode


def test_episodes_tell_score_and_depth_and_no_success_where_there_is_no_goal(games):
    (fragment,) = games[GAME.id, "5"]
    assert all({"score", "depth"} == set(episode.extra) for episode in fragment.episodes)
    assert all(episode.extra["depth"] >= 1 for episode in fragment.episodes)


def test_captions_come_with_their_texts_and_first_ones_are_not_paid(games):
    (fragment,) = games[GAME.id, "5"]
    texts = [caption.text for caption in fragment.new_captions]
    assert any(
        text.startswith(("Hello", "Welcome", "Velkommen", "Salutations", "Aloha", "Konnichi")) for text in texts
    ), "the greeting of the first observation is sent: its keys are counted"
    finals = fragment.columns["role"] == ROLE_FINAL
    assert finals.any()
    assert not fragment.columns["caption_hash"][finals].any()
    assert not fragment.columns["caption_count"][finals].any()


@pytest.mark.parametrize("name", [ROOM.id, GAME.id])
def test_the_moon_of_a_game_comes_from_its_seed_not_from_the_day(name):
    first = first_messages(EnvironmentSettings(id=name))
    special = [text for text in first if "moon" in text or "Friday" in text]
    assert 3 <= len(special) <= len(first) / 2, "by the clock it would be none, or nearly all"
    assert first == first_messages(EnvironmentSettings(id=name))


def test_the_clock_of_the_machine_counts_where_the_user_wants_it():
    first = first_messages(EnvironmentSettings(id=ROOM.id, kwargs={"fix_moon_phase": False}))
    assert len({text for text in first if "moon" in text or "Friday" in text}) <= 1


def test_a_task_of_ones_own_that_takes_no_moon_is_made():
    class Plain(gym.Env):
        observation_space = action_space = gym.spaces.Discrete(2)

        def __init__(self, size):
            self.size = size

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return 0, {}

    gym.register("NetHackPlain-v0", entry_point=Plain)
    try:
        made = make_vector_env(EnvironmentSettings(id="NetHackPlain-v0", kwargs={"size": 3}), 1)
        made.reset(seed=1)
        made.close()
    finally:
        del gym.registry["NetHackPlain-v0"]


def first_messages(settings: EnvironmentSettings) -> list[str]:
    env = make_vector_env(settings, 1, ("message",))
    try:
        return [bytes(env.reset(seed=seed)[0]["message"][0]).decode().rstrip("\0") for seed in range(40)]
    finally:
        env.close()


def test_a_limit_of_ours_arrives_as_truncated():
    settings = EnvironmentSettings(id="MiniHack-KeyRoom-S5-v0", max_episode_steps=7)  # too short for luck
    (fragment,) = play(settings, 1)
    long = [episode for episode in fragment.episodes if episode.length == 7]
    assert long
    assert not any(episode.terminated for episode in long)
    assert max(episode.length for episode in fragment.episodes) == 7


def last_steps(settings: EnvironmentSettings, action: int, steps: int):
    """Observation, terminated and truncated after each step of one environment, over and over the same action."""
    env = make_vector_env(settings, 1, KEYS)
    try:
        env.reset(seed=3)
        told = []
        for _ in range(steps):
            observation, _, terminated, truncated, infos = env.step(np.array([action]))
            copied = {key: value[0].copy() for key, value in observation.items()}
            told.append((copied, bool(terminated[0]), bool(truncated[0]), infos))
        return told
    finally:
        env.close()


def test_at_the_engines_own_time_limit_the_agent_still_sees_where_it_is():
    told = last_steps(EnvironmentSettings(id="MiniHack-KeyRoom-S5-v0"), action=9, steps=200)  # 9: apply, of nothing
    assert [(terminated, truncated) for _, terminated, truncated, _ in told] == [(False, False)] * 199 + [(False, True)]
    (before, *_), (last, _, _, infos) = told[-2:]
    assert (last["chars"] == before["chars"]).mean() > 0.99, "NLE would have quit the game and shown a blank map"
    assert last["blstats"][10] == before["blstats"][10] > 0
    assert infos["episode_figures"]["success"].tolist() == [0.0]


def test_where_a_goal_is_met_or_nle_gives_up_the_agent_still_sees_where_it_is():
    env = make_vector_env(EnvironmentSettings(id="MiniHack-Room-5x5-v0"), 1, KEYS)
    rng = np.random.default_rng(0)
    env.reset(seed=3)
    for _ in range(2_000):
        observation, _, (terminated,), _, infos = env.step(rng.integers(8, size=1))
        if terminated:
            break
    assert infos["episode_figures"]["success"].tolist() == [1.0]
    assert observation["blstats"][0, 10] > 0, "hit points, which the screen behind a game that was quit lacks"
    env.close()

    stuck = EnvironmentSettings(id="NetHackChallenge-v0", kwargs={"no_progress_timeout": 5})
    told = last_steps(stuck, action=-1, steps=20)  # the last action, "/": no game time passes
    (hit_points, terminated), *_ = [(last["blstats"][10], ended) for last, ended, truncated, _ in told if truncated]
    assert not terminated
    assert hit_points > 0


def test_a_goal_that_is_met_in_the_last_step_counts():
    from minihack.envs.room import MiniHackRoom5x5

    def end(**options):
        env, rng = NetHackEpisodes(MiniHackRoom5x5(**options)), np.random.default_rng(0)
        env.reset(seed=3)
        for step in range(1, 100):
            _, _, terminated, truncated, info = env.step(int(rng.integers(8)))
            if terminated or truncated:
                env.close()
                return step, terminated, info["episode_figures"]["success"]
        raise AssertionError("random play finds the stairs of a small room")

    found = end()
    assert found[1:] == (True, 1.0)
    assert end(max_episode_steps=found[0]) == found


@pytest.mark.parametrize("limit", [None, 30])
def test_an_episode_that_is_aborted_is_paid_as_nle_pays_it(limit):
    settings = EnvironmentSettings(
        id="MiniHack-KeyRoom-S5-v0", kwargs={"reward_lose": -1.0, "penalty_step": 0.0}, max_episode_steps=limit
    )
    env, rewards = make_vector_env(settings, 1, KEYS), []
    env.reset(seed=3)
    for _ in range(limit or 200):
        _, reward, terminated, truncated, _ = env.step(np.array([9]))
        rewards.append(float(reward[0]))
    env.close()
    assert rewards == [0.0] * (len(rewards) - 1) + [-1.0]
    assert (bool(terminated[0]), bool(truncated[0])) == (False, True)


def test_no_game_is_left_to_the_engine_unfinished():
    """It would never free one: 2.4 kB each."""
    import minihack  # noqa: F401 (registers)

    env = NetHackEpisodes(gym.make("MiniHack-Room-5x5-v0", max_episode_steps=60), limit=60)
    engine, finished = env.unwrapped.nethack, []
    begin = engine.reset

    def reset(*arguments, **options):
        finished.append(engine._pynethack.done())
        return begin(*arguments, **options)

    engine.reset = reset
    rng, goals = np.random.default_rng(0), 0.0
    env.reset(seed=3)
    for _ in range(20):
        ended = False
        while not ended:
            _, _, terminated, truncated, info = env.step(int(rng.integers(8)))
            ended = terminated or truncated
        goals += info["episode_figures"]["success"]
        env.reset()
    env.step(0)
    env.reset()  # in the middle of an episode
    env.close()
    assert finished[1:] == [True] * 21
    assert 0 < goals < 20, "some episodes end at the goal, others at the limit"


def test_no_limit_among_the_arguments_leaves_the_engines_own():
    told = last_steps(
        EnvironmentSettings(id="MiniHack-KeyRoom-S5-v0", kwargs={"max_episode_steps": None}), action=9, steps=200
    )
    assert told[-1][1:3] == (False, True)


def test_a_limit_of_ours_may_be_longer_than_the_engines_own():
    settings = EnvironmentSettings(id="MiniHack-KeyRoom-S5-v0", max_episode_steps=230)  # its own: 200
    told = last_steps(settings, action=9, steps=230)
    assert [number for number, (_, *ends, _) in enumerate(told, start=1) if any(ends)] == [230]
    assert told[-1][1:3] == (False, True)


@pytest.mark.parametrize("name", ["Score", "Gold", "Eat", "Scout", "Challenge", "Staircase", "Oracle"])
def test_only_games_with_a_goal_tell_of_success(name):
    figures = last_steps(EnvironmentSettings(id=f"NetHack{name}-v0", max_episode_steps=2), action=0, steps=2)[-1][3]
    found = {key for key in figures["episode_figures"] if not key.startswith("_")}
    assert found == {"score", "depth"} | ({"success"} if name in ("Staircase", "Oracle") else set())


def test_a_game_that_refuses_seeds_is_played_and_says_so_once(caplog):
    last_steps(EnvironmentSettings(id="NetHackChallenge-v0", max_episode_steps=2), action=0, steps=8)
    assert caplog.messages == [
        "games will not repeat under the run's seed: NetHackChallenge doesn't allow seed changes"
    ]


def test_items_and_colors_of_the_real_game_fill_their_columns():
    settings = EnvironmentSettings(id="NetHackScore-v0")
    env = make_vector_env(settings, 2, (*KEYS, "inv_glyphs"))
    try:
        view = NetHackView(
            NetHackViewSettings(whole_map=True, map_colors=True, inventory_items=20), env.single_observation_space
        )
        columns = view(env.reset(seed=1)[0])
    finally:
        env.close()
    items = columns["observation.inventory_items"]
    assert items.dtype == np.int16
    assert (items > 0).sum(axis=1).min() >= 3, "every role begins with a few things"
    assert items.max() <= 5976
    assert items[0, -1] == 0, "and with fewer than twenty"
    drawn = columns["observation.map"] != ord(" ")
    assert (columns["observation.map_colors"][drawn] > 0).all()
