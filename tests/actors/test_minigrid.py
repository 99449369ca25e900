"""MiniGrid and BabyAI in Onibi: what real environments do is told, what they show becomes columns."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from onibi.actors.captioners.minigrid import MiniGridCaptioner, MiniGridCaptionerSettings, caption_of_events
from onibi.actors.environments.factory import EnvironmentSettings, make_vector_env
from onibi.actors.environments.minigrid import make
from onibi.actors.views.minigrid import CELL_CLASSES, CELL_COLORS, MiniGridView, MiniGridViewSettings
from onibi.platform.annotation.captions import EMPTY_TEXT
from onibi.platform.errors import CaptionError, EnvironmentFault, SpecError

LEFT, RIGHT, FORWARD, PICKUP, DROP, TOGGLE, DONE = range(7)
TOWARD = {(1, 0): 0, (0, 1): 1, (-1, 0): 2, (0, -1): 3}


def find(env, kind):
    grid = env.unwrapped.grid
    return next((x, y) for x in range(grid.width) for y in range(grid.height) if is_kind(grid.get(x, y), kind))


def is_kind(cell, kind):
    return cell is not None and cell.type == kind


def stand_before(env, place, *, far_side=False):
    """Put the agent on a free cell next to a place, looking at it."""
    grid = env.unwrapped
    for (dx, dy), direction in sorted(TOWARD.items(), reverse=far_side):
        x, y = place[0] - dx, place[1] - dy
        if 0 < x < grid.width - 1 and 0 < y < grid.height - 1 and grid.grid.get(x, y) is None:
            grid.agent_pos, grid.agent_dir = (x, y), direction
            return
    raise AssertionError(f"no free cell beside {place}")


def said(env, action):
    return env.step(action)[4].get("caption", "")


def test_every_deed_of_doorkey_is_told_and_the_goal_is_a_success():
    env = make("MiniGrid-DoorKey-8x8-v0")
    env.reset(seed=3)
    door = find(env, "door")
    stand_before(env, door)
    assert said(env, TOGGLE) == "The yellow door is locked."
    assert said(env, FORWARD) == "You bump into the yellow door."
    stand_before(env, find(env, "key"))
    assert said(env, LEFT) == ""
    assert said(env, RIGHT) == ""
    assert said(env, PICKUP) == "You pick up the yellow key."
    assert said(env, PICKUP) == "", "nothing is left to pick up"
    assert said(env, DROP) == "You drop the yellow key."
    assert said(env, PICKUP) == "You pick up the yellow key."
    stand_before(env, door)
    assert said(env, TOGGLE) == "You unlock the yellow door."
    assert said(env, TOGGLE) == "You close the yellow door."
    assert said(env, TOGGLE) == "You open the yellow door."
    assert said(env, FORWARD) == "You walk through the yellow door."
    stand_before(env, find(env, "goal"))
    _, reward, terminated, truncated, info = env.step(FORWARD)
    assert info["caption"] == "You reach the green goal."
    assert (terminated, truncated, info["episode_figures"]) == (True, False, {"success": 1.0})
    assert reward > 0.9
    env.close()


def test_a_time_limit_is_no_success():
    env = make("MiniGrid-DoorKey-8x8-v0", max_steps=2)
    env.reset(seed=3)
    env.step(LEFT)
    _, _, terminated, truncated, info = env.step(LEFT)
    assert (terminated, truncated, info["episode_figures"]) == (False, True, {"success": 0.0})


def test_boxes_lava_obstacles_and_walls_are_told_apart():
    env = make("MiniGrid-ObstructedMaze-1Dlh-v0")
    env.reset(seed=1)
    stand_before(env, find(env, "box"))
    opened = said(env, TOGGLE)
    assert opened.startswith("You open the ")
    assert opened.endswith(" key.")
    assert "It held a " in opened
    lava = make("MiniGrid-LavaGapS5-v0")
    lava.reset(seed=1)
    stand_before(lava, find(lava, "lava"))
    _, _, terminated, _, info = lava.step(FORWARD)
    assert (terminated, info["caption"]) == (True, "You step into the lava.")
    assert info["episode_figures"] == {"success": 0.0}
    moving = make("MiniGrid-Dynamic-Obstacles-8x8-v0")
    moving.reset(seed=1)
    stand_before(moving, find(moving, "ball"))
    _, reward, terminated, _, info = moving.step(FORWARD)
    assert (reward, terminated, info["caption"]) == (-1.0, True, "You collide with the blue ball.")
    wall = make("MiniGrid-Empty-5x5-v0")
    wall.reset(seed=1)
    wall.unwrapped.agent_pos, wall.unwrapped.agent_dir = (1, 1), TOWARD[0, -1]
    assert said(wall, FORWARD) == "You bump into the wall."


def test_babyai_says_when_the_mission_is_fulfilled_though_no_goal_stands_there():
    env = make("BabyAI-PickupLoc-v0")
    for seed in range(20):
        observation, _ = env.reset(seed=seed)
        wanted = env.unwrapped.instrs.desc
        where = wanted.obj_poss[0]
        thing = env.unwrapped.grid.get(*where)
        try:
            stand_before(env, where)
        except AssertionError:
            continue
        _, reward, terminated, _, info = env.step(PICKUP)
        assert info["caption"] == f"You pick up the {thing.color} {thing.type}.  You complete the mission."
        assert (reward > 0, terminated) == (True, True)
        assert thing.type in observation["mission"]
        return
    raise AssertionError("no seed had a free cell")


def test_babyai_does_not_print_the_levels_that_it_throws_away(capsys):
    env = make("BabyAI-GoToLocal-v0")
    for seed in range(40):
        env.reset(seed=seed)
    assert capsys.readouterr().out == ""


def vector(env_id, envs=2, **kwargs):
    return make_vector_env(EnvironmentSettings(id=env_id, kwargs=kwargs), envs)


def test_a_vector_of_doorkeys_has_captions_columns_and_seeds_that_repeat():
    rng = np.random.default_rng(0)
    actions = rng.integers(0, 7, (300, 2))

    def play():
        env = vector("MiniGrid-DoorKey-5x5-v0")
        view = MiniGridView(MiniGridViewSettings(), env.single_observation_space)
        reader = MiniGridCaptioner(MiniGridCaptionerSettings())
        raw, infos = env.reset(seed=5)
        texts, sums = [], []
        for action in actions:
            columns = view(raw)
            for spec in view.specs:
                assert columns[spec.name].shape == (2, *spec.shape)
                assert columns[spec.name].dtype == np.dtype(spec.dtype)
            sums.append(int(columns["observation.cells"].sum()))
            texts.append([caption.text for caption in reader.captions(raw, infos)])
            raw, _, _, _, infos = env.step(action)
        env.close()
        return texts, sums

    texts, sums = play()
    assert (texts, sums) == play()
    heard = {text for row in texts for text in row}
    assert {"You pick up the yellow key.", "You bump into the wall.", ""} <= heard
    assert all(len(row) == 2 for row in texts)


def test_a_cell_is_its_class_and_its_color():
    env = make("MiniGrid-DoorKey-8x8-v0")
    env.reset(seed=3)
    stand_before(env, find(env, "door"))
    observation, *_ = env.step(DONE)
    view = MiniGridView(MiniGridViewSettings(mission_bits=0), env.observation_space)
    cells = view({"image": observation["image"][None], "direction": np.array([1])})["observation.cells"]
    cells = cells.reshape(7, 7, 22)
    ahead = cells[3, 5]  # the agent stands at the bottom in the middle and looks up
    assert ahead[CELL_CLASSES.index("door locked")] == 1
    assert ahead[16 + CELL_COLORS.index("yellow")] == 1
    assert ahead.sum() == 2
    assert cells[..., :16].sum() == 49, "one class for each cell"
    plain = MiniGridView(MiniGridViewSettings(colors=False, mission_bits=0), env.observation_space)
    assert plain.specs[0].shape == (7 * 7 * 16,)


def test_the_whole_grid_shows_the_agent_and_where_it_looks():
    env = make("MiniGrid-Empty-5x5-v0", whole_grid=True)
    observation, _ = env.reset(seed=0)
    view = MiniGridView(MiniGridViewSettings(), env.observation_space)
    batch = {"image": observation["image"][None], "direction": np.array([0]), "mission": (observation["mission"],)}
    columns = view(batch)
    cells = columns["observation.cells"].reshape(5, 5, 22)
    assert cells[1, 1, CELL_CLASSES.index("agent right")] == 1
    assert columns["observation.mission"].sum() == len(set(observation["mission"].split()))


REMEMBERED = [
    "MiniGrid-DoorKey-8x8-v0",
    "MiniGrid-KeyCorridorS3R2-v0",
    "MiniGrid-Dynamic-Obstacles-8x8-v0",
    "MiniGrid-ObstructedMaze-1Dlhb-v0",
    "MiniGrid-RedBlueDoors-6x6-v0",
    "BabyAI-GoToLocal-v0",
]


@pytest.mark.parametrize("env_id", REMEMBERED)
def test_remembered_views_are_those_that_minigrid_makes(env_id):
    ours, bare = make(env_id), gym.make(env_id, disable_env_checker=True)
    made = 0
    inner = ours.unwrapped.gen_obs.__self__._make

    def counted():
        nonlocal made
        made += 1
        return inner()

    ours.unwrapped.gen_obs.__self__._make = counted
    rng, steps = np.random.default_rng(0), 600
    (seen, _), (expected, _) = ours.reset(seed=4), bare.reset(seed=4)
    for step in range(steps):
        assert np.array_equal(seen["image"], expected["image"])
        assert (seen["direction"], seen["mission"]) == (expected["direction"], expected["mission"])
        seen["image"][:] = 99  # what a caller does to its observation is not remembered
        action = int(rng.integers(ours.action_space.n))
        seen, reward, *ends, _ = ours.step(action)
        expected, expected_reward, *expected_ends, _ = bare.step(action)
        assert (reward, ends) == (expected_reward, expected_ends)
        if any(ends):
            (seen, _), (expected, _) = ours.reset(seed=step), bare.reset(seed=step)
    if "Dynamic" not in env_id:
        assert made < 0.8 * steps, "most views are remembered"


def test_bumps_are_never_asked_and_missions_stand_with_events_where_wanted():
    bump = caption_of_events("You bump into the wall.", "get the key", 3)
    assert [(key.text, key.askable) for key in bump.keys] == [("You bump into the wall.", False)]
    both = caption_of_events("You drop the red key.  You pick up the blue ball.", "", 3)
    assert [key.text for key in both.keys] == ["You drop the red key.", "You pick up the blue ball."]
    told = caption_of_events("You pick up the blue ball.", "pick up the blue ball", 3)
    assert told.keys[0].text == "You pick up the blue ball. (Mission: pick up the blue ball)"
    assert told.text == told.keys[0].text
    assert caption_of_events("", "m", 3) == EMPTY_TEXT


def test_the_same_events_under_two_missions_are_two_captions():
    reader = MiniGridCaptioner(MiniGridCaptionerSettings(mission="with_events"))
    raw = {"image": np.zeros((2, 7, 7, 3), np.uint8), "mission": ("go to a", "go to b")}
    infos = {"caption": np.array(["You pick up x.", "You pick up x."], object)}
    first, second = reader.captions(raw, infos)
    assert first != second


def test_what_is_not_minigrid_is_told_what_to_do():
    with pytest.raises(CaptionError, match="captioner 'minigrid' reads the observation 'mission'"):
        MiniGridCaptioner(MiniGridCaptionerSettings()).captions(np.zeros((2, 4)), {})
    with pytest.raises(SpecError, match=r"view\.kind=minigrid reads"):
        MiniGridView(MiniGridViewSettings(), gym.spaces.Box(0, 1, (3,)))
    with pytest.raises(EnvironmentFault, match="allowed: ids of MiniGrid"):
        make("CartPole-v1")
    with pytest.raises(EnvironmentFault, match="Nearest: MiniGrid-DoorKey"):
        vector("MiniGrid-DoorKey-9x9-v0")
