"""From the engine's message to the reward of a row, with nothing in between but the parts themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from minihack import LevelGenerator
from nle import nethack

from onibi.actors.annotators.lexicon import LexiconAnnotator, LexiconSettings
from onibi.actors.caption_counter import CaptionCounter
from onibi.actors.captioners.nethack import NetHackCaptioner, NetHackCaptionerSettings
from onibi.platform.annotation.annotator import judge_of
from onibi.platform.annotation.desk import AnnotationDesk
from onibi.platform.annotation.settings import AnnotationSettings
from onibi.platform.rewards.mixer import RewardMixer
from onibi.platform.rewards.settings import INTRINSIC, ExtrinsicSettings, RewardSettings
from onibi.platform.rewards.table_component import RetrievalSettings

TWO_CELLS = """
-------
|..|..|
|..+..|
|..|..|
-------"""

# Pick up the key; walk against the door; unlock it; open it; go through, down the hall, to the stairs.
DEEDS = [",", "l", "a", "f", "l", "y", "l", "l", "l", "l"]


@dataclass
class Rows:
    reward: Any
    caption_id: Any
    caption_count: Any
    used: Any


@pytest.fixture(scope="module")
def game():
    """Messages and rewards of a game that solves a small key room."""
    level = LevelGenerator(map=TWO_CELLS.strip(), lit=True)
    level.set_start_pos((2, 2))
    level.add_door("locked", (3, 2))
    level.add_object("skeleton key", "(", place=(2, 2))
    level.add_stair_down((5, 2))
    actions = tuple(nethack.ACTIONS)
    env = gym.make(
        "MiniHack-Skill-Custom-v0",
        des_file=level.get_des(),
        actions=actions,
        observation_keys=("message",),
        autopickup=False,
        penalty_step=0.0,
    )
    env.unwrapped.seed(1, 1, reseed=False)
    observation, _ = env.reset()
    messages, rewards, solved = [observation["message"].copy()], [], False
    index = {int(action): place for place, action in reversed(list(enumerate(actions)))}
    for deed in DEEDS:
        observation, reward, solved, _, _ = env.step(index[ord(deed)])
        messages.append(observation["message"].copy())
        rewards.append(reward)
    env.close()
    assert solved, [bytes(message).rstrip(b"\0") for message in messages]
    return messages, rewards


def test_a_solved_key_room_is_paid_for_its_deeds_once_the_labels_are_there(game):
    messages, rewards = game
    captioner = NetHackCaptioner(NetHackCaptionerSettings())
    counter = CaptionCounter(1, captioner.keys_per_caption)
    annotator = LexiconAnnotator(LexiconSettings())
    desk = AnnotationDesk(
        AnnotationSettings(),
        keys_per_caption=captioner.keys_per_caption,
        key_version=captioner.key_version,
        judges=[judge_of(annotator)],
        clock=lambda: 0.0,
    )
    captions = [captioner.captions({"message": message[None]}, {})[0] for message in messages]
    counts = np.concatenate([counter.count([caption]) for caption in captions])
    ids = desk.intern(captions)
    # Row k holds the caption of the observation after its action, and the first observation's pays nobody.
    rows = Rows(np.array([rewards], np.float32), ids[None, 1:], counts[None, 1:], np.ones((1, len(rewards)), np.bool_))
    mixer = RewardMixer(
        RewardSettings(extrinsic=ExtrinsicSettings(clip=1.0), intrinsic=RetrievalSettings(coefficient=0.1))
    )

    before = mixer.mix(rows, desk.table(newer_than=-1))
    assert before.components[INTRINSIC].tolist() == [[0.0] * len(DEEDS)]
    assert before.labelled_share == 0.0
    assert before.total.sum() == 1.0, "the stairs"

    while requests := desk.take(3):
        desk.put(annotator.annotate(requests, annotator.goal))

    after = mixer.mix(rows, desk.table(newer_than=before.table_version))
    paid = {captions[row + 1].text for row in np.flatnonzero(after.components[INTRINSIC][0])}
    assert paid == {"f - a key.", "This door is locked.", "You succeed in unlocking the door.", "The door opens."}
    assert after.labelled_share == 1.0
    assert after.total.sum() == pytest.approx(1.4)  # the stairs, and 0.1 · (key + door found + unlocked + opened)
    assert "You see here a key." in captions[0].text
