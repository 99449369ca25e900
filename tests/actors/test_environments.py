"""Environments by id and import path, and what is refused."""

from __future__ import annotations

import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from onibi.actors.captioners.none import NoCaptioner, NoCaptionerSettings
from onibi.actors.environments.factory import EnvironmentSettings, make_vector_env
from onibi.actors.rollout import Rollout, RolloutIdentity, RolloutSettings
from onibi.actors.views.leaves import LeavesSettings, LeavesView
from onibi.platform.errors import EnvironmentFault, SpecError
from onibi.platform.policy import NO_WEIGHTS, PolicyStep
from onibi.platform.spec import ROLE_STEP, ReplaySpec

CORRIDOR = "onibi.actors.environments.corridor:make"


class RandomPolicy:
    version = NO_WEIGHTS

    def __init__(self, actions):
        self.actions = actions

    def initial_state(self, envs):
        return None

    def act(self, observation, state, rng):
        return PolicyStep(action=rng.integers(0, self.actions, len(next(iter(observation.values())))))

    def load(self, weights):
        raise AssertionError("nothing was published")


def random_rollout(env, seed=1, steps=50):
    view = LeavesView(LeavesSettings(), env.single_observation_space)
    actions = int(env.single_action_space.n)
    return Rollout(
        env,
        view,
        NoCaptioner(NoCaptionerSettings()),
        RandomPolicy(actions),
        ReplaySpec(observation=view.specs, actions=actions, keys_per_caption=1),
        RolloutSettings(
            envs_per_actor=env.num_envs,
            fragment_steps=steps,
            fragment_steps_max=steps,
            fragment_seconds=0.0,
            caption_counts=False,
        ),
        RolloutIdentity(actor=0, incarnation=0, next_sequence=0, seed=seed),
        "test",
    )


def refused(**settings):
    with pytest.raises(EnvironmentFault) as caught:
        make_vector_env(EnvironmentSettings(**settings), 2).close()
    message = str(caught.value)
    assert "\n" not in message.strip()
    return message


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A module of a user's on the path."""
    (tmp_path / "ember_envs.py").write_text(
        "import gymnasium as gym\n"
        "from gymnasium.vector import SyncVectorEnv\n"
        "def single(render_mode=None): return gym.make('CartPole-v1')\n"
        "def vector(num_envs): return SyncVectorEnv([single] * num_envs)\n"
        "def raising(): raise RuntimeError('no display')\n"
        "def wired(): import no_such_wire\n"
        "def nothing(): return 3\n"
        "gym.register('ember/Pole-v3', 'gymnasium.envs.classic_control:CartPoleEnv', max_episode_steps=7,\n"
        "             vector_entry_point='gymnasium.envs.classic_control.cartpole:CartPoleVectorEnv')\n"
        "made = []\n"
        "class Unlike(gym.Env):\n"
        "    action_space = gym.spaces.Discrete(2)\n"
        "    def __init__(self):\n"
        "        made.append(self)\n"
        "        self.observation_space = gym.spaces.Box(0, 1, (len(made),))\n"
        "number = 7\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "ember_envs"
    sys.modules.pop("ember_envs", None)
    gym.registry.pop("ember/Pole-v3", None)


@pytest.mark.parametrize("seeds_differ", [False, True])
@pytest.mark.parametrize("vectorization", ["sync", "native"])
def test_cartpole_repeats_under_its_seed_and_only_under_it(vectorization, seeds_differ):
    settings = EnvironmentSettings(id="CartPole-v1", vectorization=vectorization)
    fragments = []
    for seed in (1, 2 if seeds_differ else 1):
        rollout = random_rollout(make_vector_env(settings, 3), seed=seed)
        fragments.append(rollout.collect(lambda version: None))
        rollout.close()
    first, second = (fragment.columns["observation"] for fragment in fragments)
    assert np.array_equal(first, second) == (not seeds_differ)
    assert fragments[0].episodes, "50 random steps end episodes"


@pytest.mark.parametrize("vectorization", ["sync", "native"])
def test_lanes_of_one_actor_do_not_play_the_same_game(vectorization):
    settings = EnvironmentSettings(id="CartPole-v1", vectorization=vectorization)
    rollout = random_rollout(make_vector_env(settings, 4))
    starts = rollout.collect(lambda version: None).columns["observation"][:, 0]
    rollout.close()
    assert len({start.tobytes() for start in starts}) == 4


@pytest.mark.parametrize(
    "settings",
    [
        {"id": "CartPole-v1"},
        {"id": "CartPole-v1", "vectorization": "native"},
        {"id": CORRIDOR, "kwargs": {"rooms": 5, "room_length": 9}},
    ],
    ids=["by id", "native", "by import path"],
)
def test_a_time_limit_arrives_as_truncated_and_not_as_terminated(settings):
    limit = 5
    rollout = random_rollout(make_vector_env(EnvironmentSettings(max_episode_steps=limit, **settings), 2), steps=30)
    fragment = rollout.collect(lambda version: None)
    rollout.close()
    columns = fragment.columns
    steps = columns["role"][:, :30] == ROLE_STEP
    assert columns["truncated"][:, :30][steps].sum() >= 6
    assert columns["terminated"].sum() == 0
    assert set(columns["step"][:, :30][columns["truncated"][:, :30] == 1]) == {limit - 1}
    assert {episode.length for episode in fragment.episodes} == {limit}
    assert not any(episode.terminated for episode in fragment.episodes)


@pytest.mark.parametrize(
    ("maker", "vectorization"), [("single", "sync"), ("vector", "native")], ids=["single", "vector"]
)
def test_a_users_environment_is_found_by_its_import_path(maker, vectorization, plugin):
    settings = EnvironmentSettings(id=f"{plugin}:{maker}", vectorization=vectorization)
    rollout = random_rollout(make_vector_env(settings, 2))
    assert rollout.collect(lambda version: None).env_steps > 80
    rollout.close()


@pytest.mark.parametrize("vectorization", ["sync", "native"])
def test_an_id_is_found_that_a_users_module_registers(vectorization, plugin):
    made = make_vector_env(EnvironmentSettings(id=f"{plugin}:ember/Pole-v3", vectorization=vectorization), 2)
    rollout = random_rollout(made, steps=30)
    lengths = {episode.length for episode in rollout.collect(lambda version: None).episodes}
    rollout.close()
    assert max(lengths) == 7, "with the limit of its registration"


def test_an_id_that_no_module_registers_is_told_how_to_be_found(plugin):
    assert "give both, as my_pkg:Mine-v0" in refused(id="ember/Pole-v3")
    assert "'ember/Pole-v4' is not a registered" in refused(id=f"{plugin}:ember/Pole-v4")


def test_an_id_without_its_version_is_told_with_it(plugin):
    assert f"Give it with its version: {plugin}:ember/Pole-v3." in refused(id=f"{plugin}:Pole")


def test_a_task_of_ones_own_for_minihack_is_a_nethack_task_with_the_keys_that_minihack_needs(tmp_path, monkeypatch):
    (tmp_path / "ember_levels.py").write_text(
        "import gymnasium as gym, minihack\ngym.register('MiniHack-Ember-v0', 'minihack.envs.room:MiniHackRoom5x5')\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = EnvironmentSettings(id="ember_levels:MiniHack-Ember-v0", max_episode_steps=3)
    env = make_vector_env(settings, 1, ("chars", "blstats", "message"))
    try:
        assert set(env.single_observation_space) == {"chars", "blstats", "message", "inv_strs", "inv_letters"}
        env.reset(seed=1)
        ends = [env.step(np.array([0])) for _ in range(3)][-1]
    finally:
        env.close()
        sys.modules.pop("ember_levels")
        gym.registry.pop("MiniHack-Ember-v0")
    assert ends[3].tolist() == [True]
    assert ends[4]["episode_figures"]["success"].tolist() == [0.0]


def test_environments_that_differ_are_refused_with_the_reason(plugin):
    assert "ember_envs:Unlike: its environments cannot step together, 2 of them: " in refused(id=f"{plugin}:Unlike")
    assert "cannot step together, 2 of them: 'Env' object has no attribute" in refused(id="gymnasium:Env")


@pytest.mark.parametrize("place", ["place", "last"])
def test_a_class_that_its_space_lacks_is_told_and_not_taken_for_one_of_the_next_leaf(place):
    class Off(gym.Env):
        observation_space = gym.spaces.Dict(
            {"place": gym.spaces.Discrete(3), "zone_last": gym.spaces.Discrete(4, start=-1)}
        )
        action_space = gym.spaces.Discrete(2)
        wrong = {"place": {"place": 3, "zone_last": 2}, "last": {"place": 2, "zone_last": -2}}[place]

        def reset(self, *, seed=None, options=None):
            self.steps = 0
            return {"place": 0, "zone_last": -1}, {}

        def step(self, action):
            self.steps += 1
            return self.wrong if self.steps == 4 else {"place": 2, "zone_last": 2}, 0.0, False, False, {}

    rollout = random_rollout(SyncVectorEnv([Off, Off]), steps=10)
    said = "place is [3, 3] in 2 environments; its space allows 0 to 2" if place == "place" else "is [-2, -2] in 2"
    with pytest.raises(EnvironmentFault) as caught:
        rollout.collect(lambda version: None)
    rollout.close()
    assert said in str(caught.value)


def test_a_mask_that_is_not_one_number_for_each_action_is_refused():
    class Masked(gym.Env):
        observation_space = gym.spaces.Dict({"action_mask": gym.spaces.Box(0, 1, (3,), np.uint8)})
        action_space = gym.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return {"action_mask": np.ones(3, np.uint8)}, {}

    with pytest.raises(SpecError, match=r"action_mask has the shape \(3,\); allowed: \(2,\)"):
        random_rollout(SyncVectorEnv([Masked]))


def test_arguments_reach_the_environment():
    env = make_vector_env(EnvironmentSettings(id=CORRIDOR, kwargs={"rooms": 2, "room_length": 3}), 2)
    assert env.single_observation_space.shape == (6,)
    env.close()


def test_an_unknown_id_names_the_nearest():
    message = refused(id="CartPol-v1")
    assert "'CartPol-v1' is not a registered Gymnasium id" in message
    assert "Nearest: CartPole-v1" in message
    nethack = refused(id="MiniHack-KeyRoom-S6-v0")
    assert "MiniHack-KeyRoom-S5-v0" in nethack.split("Nearest:")[1]


@pytest.mark.parametrize(
    ("env_id", "said"),
    [
        ("{plugin}:nope", "cannot be imported: AttributeError"),
        ("{plugin}:number", "is a int, not a callable"),
        ("{plugin}:raising", "cannot be made with no arguments: RuntimeError: no display"),
        ("{plugin}:raising", "ember_envs.py:5). Check environment.kwargs"),
        ("{plugin}:wired", "ember_envs.py:6)"),
        ("{plugin}:nothing", "returned int, not a gymnasium.Env"),
        ("no_such_package.envs:make", "the module no_such_package cannot be found (looked in "),
        ("{plugin}.deeper:make", "the module {plugin}.deeper cannot be found"),
        (":make", ":make"),
        ("{plugin}:", "cannot be imported"),
        ("", "''"),
        (".:make", "make"),
    ],
)
def test_a_wrong_import_path_is_told_in_one_message(env_id, said, plugin):
    env_id = env_id.format(plugin=plugin)
    message = refused(id=env_id)
    assert said.format(plugin=plugin) in message
    assert env_id in message


def test_a_module_that_is_not_found_is_told_with_the_places_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/srv/games")
    monkeypatch.chdir(tmp_path)
    message = refused(id="mywarehouse:make")
    assert f"the module mywarehouse cannot be found (looked in {tmp_path}, /srv/games and among" in message
    assert "set PYTHONPATH" in message
    assert "onibi submit … --module mywarehouse, or ray job submit --working-dir" in message
    assert "registered Gymnasium id" not in message


def test_a_module_that_is_found_and_misses_another_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "half_envs.py").write_text("import gymnasium\nimport no_such_sensor\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    message = refused(id="half_envs:make")
    assert "cannot be imported: ModuleNotFoundError: No module named 'no_such_sensor'" in message
    assert f"({tmp_path / 'half_envs.py'}:2)" in message


def test_a_wrong_argument_names_the_arguments_given():
    message = refused(id=CORRIDOR, kwargs={"rooms": 99})
    assert (
        "cannot be made with rooms=99: ValueError: rooms is 99; allowed: 1 to 10. Check environment.kwargs" in message
    )
    assert "length=3" in refused(id=CORRIDOR, kwargs={"length": 3})


def test_a_key_among_the_arguments_is_not_told():
    message = refused(id="builtins:int", kwargs={"x": "swordfish", "api_key": "swordfish"})
    assert "cannot be made with x='***', api_key='***'" in message
    assert "swordfish" not in message


def test_native_needs_a_vector_environment(plugin):
    assert "has no vector_entry_point of its own; set environment.vectorization=sync" in refused(
        id="Acrobot-v1", vectorization="native"
    )
    made = refused(id=f"{plugin}:single", vectorization="native")
    assert "environment.vectorization=native" in made or "num_envs" in made


@pytest.mark.parametrize("declared", [None, "at_noon"])
def test_an_environment_that_does_not_declare_its_autoreset_is_refused(declared, tmp_path, monkeypatch):
    (tmp_path / "mute_envs.py").write_text(
        "import gymnasium as gym\n"
        "from gymnasium.vector import SyncVectorEnv\n"
        "def make(num_envs):\n"
        "    env = SyncVectorEnv([lambda: gym.make('CartPole-v1')] * num_envs)\n"
        f"    env.metadata = { ({} if declared is None else {'autoreset_mode': declared})!r}\n"
        "    return env\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    message = refused(id="mute_envs:make", vectorization="native")
    sys.modules.pop("mute_envs", None)
    assert f"is {declared!r}; allowed: " in message
    assert all(mode.value in message for mode in AutoresetMode)


@pytest.mark.parametrize("max_episode_steps", [0, -3])
def test_a_time_limit_below_one_is_refused(max_episode_steps):
    with pytest.raises(ValueError, match="allowed: 1 or more"):
        EnvironmentSettings(id="CartPole-v1", max_episode_steps=max_episode_steps)


def test_an_observation_of_no_fixed_width_is_refused_by_name():
    class Talker(gym.Env):
        words = gym.spaces.Sequence(gym.spaces.Discrete(20))
        observation_space = gym.spaces.Dict({"words": words, "place": gym.spaces.Discrete(3)})
        action_space = gym.spaces.Discrete(2)

    env = SyncVectorEnv([Talker])
    with pytest.raises(SpecError, match=r"words.*no fixed width"):
        LeavesView(LeavesSettings(), env.single_observation_space)
    view = LeavesView(LeavesSettings(keys=("place",)), env.single_observation_space)
    assert [spec.name for spec in view.specs] == ["observation.place"]
    assert view.texts is None
    with pytest.raises(SpecError, match=r"view.keys names \['plaice'\]; .*'place', 'words'"):
        LeavesView(LeavesSettings(keys=("plaice",)), env.single_observation_space)
    env.close()


def test_a_missing_box2d_is_told_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "Box2D", None)
    monkeypatch.delitem(sys.modules, "gymnasium.envs.box2d.lunar_lander", raising=False)
    with pytest.raises(EnvironmentFault, match=r"needs the package Box2D\. Install it with: .*'onibi\[box2d\]'"):
        make_vector_env(EnvironmentSettings(id="LunarLander-v3"), 1)
