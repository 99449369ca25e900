"""Films: each step has its own picture, with the caption and the pay of that very step."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from onibi.actors.evaluation import FrozenRewards, play
from onibi.actors.filming import film as film_module
from onibi.actors.filming.camera import FilmedEnvironment
from onibi.actors.filming.caption_strip import FAINT, PAID
from onibi.actors.filming.film import Film
from onibi.platform.annotation.captions import CaptionTable
from onibi.platform.fragment import CaptionText, KeyText
from onibi.platform.rewards.table import LABELLED, RewardTable


def numbered(env):
    """A camera around the scripted environment whose pictures hold (episode, step) as colours."""

    def take():
        _, episode, step, _ = env.envs[0].unwrapped._array
        picture = np.zeros((8, 8, 3), np.uint8)
        picture[:] = (int(episode), int(step), 77)
        return picture

    return FilmedEnvironment(env, take, frames_per_second=2.0)


@pytest.fixture
def shown(monkeypatch):
    """(episode, step) of the picture and the lines under it, for each picture drawn."""
    drawn = []

    def strip(picture, lines, _rows):
        drawn.append(((int(picture[0, 0, 0]), int(picture[0, 0, 1])), lines))
        return picture

    monkeypatch.setattr(film_module, "with_strip", strip)
    return drawn


def told(scripted, episodes):
    """What each picture must be, from the environment played alone: its number, its caption, its return so far."""
    env_class, _, choose = scripted
    env = env_class(0)
    for episode in range(episodes):
        observation, _ = env.reset()
        yield (episode, 0), "", 0.0, False
        total, over = 0.0, False
        while not over:
            observation, reward, terminated, truncated, info = env.step(int(choose(observation)))
            total, over = total + reward, terminated or truncated
            yield (episode, int(observation[2])), info.get("caption", ""), total, over


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED], ids=lambda mode: mode.value)
@pytest.mark.parametrize("fragment_steps", [1, 3, 8])
def test_every_observation_has_its_picture_with_what_its_step_brought(
    mode, fragment_steps, scripted, make_scripted_env, make_rollout, shown
):
    camera = numbered(make_scripted_env(mode, 1))
    rollout = make_rollout(camera, fragment_steps=fragment_steps, fragment_steps_max=fragment_steps)
    film = Film(rollout, camera, episodes=5, steps_max=1_000)
    frames = list(film.frames())
    wanted = list(told(scripted, 5))
    assert [number for number, _ in shown] == [number for number, *_ in wanted]
    assert [lines[1].text if len(lines) > 1 else "" for _, lines in shown] == [caption for _, caption, *_ in wanted]
    returns = [float(lines[0].text.partition("return ")[2].split()[0]) for _, lines in shown]
    assert returns == pytest.approx([total for *_, total, _ in wanted], rel=1e-3)
    ends = [number for number, lines in shown if len(lines) == 3]
    assert ends == [number for number, *_, over in wanted if over]
    assert len(frames) == len(wanted) + 5 * (3 - 1), "an episode's last picture stands for a second and a half"
    other = make_rollout(make_scripted_env(mode, 1), fragment_steps=4)
    assert film.played == play(other, 1, 5, None), "what is filmed is played as what is not"


def test_where_the_last_picture_of_an_episode_is_never_drawn_the_one_before_stands(
    scripted, make_scripted_env, make_rollout, shown
):
    """SAME_STEP environments show the next episode's first observation in the step that ends one."""
    env = make_scripted_env(AutoresetMode.SAME_STEP, 1)
    seen = {}

    def take():
        return np.full((8, 8, 3), seen["number"], np.uint8)

    step, reset = env.step, env.reset

    def numbered_step(actions):
        given = step(actions)
        seen["number"] = tuple(int(value) for value in (*given[0][0][1:3], 0))
        return given

    def numbered_reset(**options):
        seen["number"] = (0, 0, 0)
        return reset(**options)

    env.step, env.reset = numbered_step, numbered_reset
    camera = FilmedEnvironment(env, take, frames_per_second=2.0)
    list(Film(make_rollout(camera, fragment_steps=3), camera, episodes=4, steps_max=1_000).frames())
    wanted = [number if not over else (number[0], number[1] - 1) for number, *_, over in told(scripted, 4)]
    assert [number for number, _ in shown] == wanted


def test_captions_are_shown_with_what_they_pay(make_scripted_env, make_rollout, shown):
    captions = CaptionTable(1, "info-1-numbers-normalise")
    captions.intern([CaptionText("It rains.", (KeyText("It rains."),))])
    table = RewardTable(3, captions.caption_keys, np.array([0.5], np.float32), np.array([LABELLED], np.uint8))
    camera = numbered(make_scripted_env(AutoresetMode.NEXT_STEP, 1))
    film = Film(make_rollout(camera), camera, 3, 1_000, FrozenRewards(captions, table, count_power=1.0))
    list(film.frames())
    rain = [line for _, lines in shown for line in lines if "It rains." in line.text]
    assert {(line.text.split()[0], line.color) for line in rain} <= {("+0.50", PAID), ("+0.25", PAID), ("+0.17", PAID)}
    assert ("+0.50", PAID) in {(line.text.split()[0], line.color) for line in rain}
    others = [line for _, lines in shown for line in lines[1:] if "coins" in line.text or "fall" in line.text]
    assert others
    assert {line.color for line in others} == {FAINT}
    assert [float(lines[0].text.rpartition(" ")[2]) for _, lines in shown if len(lines) == 3] == pytest.approx(
        [each.intrinsic_return for each in film.played], abs=0.006
    )
    rewards = FrozenRewards(captions, table, count_power=1.0)
    unfilmed = play(make_rollout(make_scripted_env(AutoresetMode.NEXT_STEP, 1)), 1, 3, rewards)
    assert film.played == unfilmed


def test_a_film_breaks_off_where_it_is_told_to(make_scripted_env, make_rollout):
    def film(steps_max, should_stop):
        camera = numbered(make_scripted_env(AutoresetMode.NEXT_STEP, 1))
        made = Film(
            make_rollout(camera, fragment_steps=4, fragment_steps_max=4), camera, 50, steps_max, None, should_stop
        )
        return made, list(made.frames())

    made, frames = film(20, lambda: False)
    assert 0 < len(made.played) < 50
    assert len(frames) > 20
    made, frames = film(1_000, lambda: True)
    assert (made.played, frames) == ([], [])
