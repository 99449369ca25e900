"""The contract of every captioner in the registry, and the two small ones."""

from __future__ import annotations

import sys
import types

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from onibi.actors.captioners.captioner import envs_of
from onibi.actors.captioners.info import InfoCaptioner, InfoCaptionerSettings
from onibi.actors.captioners.registry import CAPTIONERS
from onibi.platform.annotation.captions import EMPTY_TEXT, CaptionTable
from onibi.platform.config import load_class, read_settings
from onibi.platform.errors import CaptionError, ConfigError, SpecError


class Speaker(gym.Env):
    """Says the step's number at every second step."""

    observation_space = gym.spaces.Dict(
        {
            "message": gym.spaces.Box(0, 255, (256,), np.uint8),
            "mission": gym.spaces.Text(99),
            "glyphs": gym.spaces.Box(0, 5976, (21, 79), np.int16),
            "blstats": gym.spaces.Box(-9, 99, (27,), np.int64),
            "inv_letters": gym.spaces.Box(0, 255, (55,), np.uint8),
            "inv_strs": gym.spaces.Box(0, 255, (55, 80), np.uint8),
            "place": gym.spaces.Box(0, 1, (1,), np.float32),
        }
    )
    action_space = gym.spaces.Discrete(2)

    def __init__(self, said="Step {} of the stairs."):
        self.said, self.steps = said, 0

    def look(self):
        text = "" if self.steps % 2 else self.said.format(self.steps)
        message = np.zeros(256, np.uint8)
        message[: len(text)] = np.frombuffer(text.encode(), np.uint8)
        seen = {
            name: np.zeros(space.shape, space.dtype) for name, space in self.observation_space.items() if space.shape
        }
        seen |= {"message": message, "mission": "climb the stairs"}
        return seen, {"caption": text} if text else {}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.look()

    def step(self, action):
        self.steps += 1
        observation, info = self.look()
        return observation, 0.0, False, False, info


def vector(*envs):
    return SyncVectorEnv([lambda env=env: env for env in envs], autoreset_mode=AutoresetMode.NEXT_STEP)


NEEDED = {"function": {"path": f"{__name__}:tell"}}


def tell(raw, infos):
    """A user's function."""
    return [bytes(line).partition(b"\0")[0].decode() for line in raw["message"]]


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or types.SimpleNamespace(tell=tell))


@pytest.mark.parametrize("kind", CAPTIONERS)
def test_every_captioner_gives_each_environment_a_caption_that_a_table_takes(kind):
    owner = load_class(CAPTIONERS, kind)
    captioner = owner(read_settings(owner.Settings, {"kind": kind, **NEEDED.get(kind, {})}))
    assert captioner.key_version
    envs = vector(Speaker(), Speaker(), Speaker())
    table = CaptionTable(max(1, captioner.keys_per_caption), captioner.key_version)
    observation, infos = envs.reset(seed=0)
    for _ in range(5):
        captions = captioner.captions(observation, infos)
        assert len(captions) == 3
        table.intern(captions)
        assert captions == captioner.captions(observation, infos), "the same observation, the same captions"
        assert all(len(caption.keys) <= captioner.keys_per_caption for caption in captions)
        observation, *_, infos = envs.step(np.zeros(3, np.int64))
    envs.close()
    # 3 different texts were said; their one key is "Step # of the stairs.", and MiniGrid never counts.
    assert (len(table), table.key_count) == {"none": (1, 0), "minigrid": (4, 3), "text": (2, 1)}.get(kind, (4, 1))


def test_info_captions_follow_the_mask_of_the_vector_environment():
    late = Speaker()
    envs = vector(Speaker(), late)
    envs.reset(seed=0)
    late.steps = 1
    observation, *_, infos = envs.step(np.zeros(2, np.int64))  # steps 1 and 2: only the second one speaks
    captions = InfoCaptioner(InfoCaptionerSettings()).captions(observation, infos)
    assert [caption.text for caption in captions] == ["", "Step 2 of the stairs."]
    envs.close()


def test_what_the_mask_leaves_out_is_not_read():
    infos = {"caption": np.array(["new", "left over"], object), "_caption": np.array([True, False])}
    captions = InfoCaptioner(InfoCaptionerSettings()).captions(np.zeros((2, 2)), infos)
    assert [caption.text for caption in captions] == ["new", ""]


def info_captions(*texts, **settings):
    infos = {"caption": np.array(texts, object)}
    return InfoCaptioner(InfoCaptionerSettings(**settings)).captions(np.zeros((len(texts), 2)), infos)


def test_numbers_are_normalised_unless_they_tell_things_apart():
    (caption,) = info_captions("Room 12")
    assert (caption.text, caption.keys[0].text) == ("Room 12", "Room #")
    (kept,) = info_captions("Room 12", numbers="keep")
    assert kept.keys[0].text == "Room 12"


def test_long_captions_are_cut_and_blanks_joined():
    (caption,) = info_captions(" a  b\n c" + "x" * 999, max_characters=8)
    assert caption.text == "a b c"


def test_a_caption_that_is_no_text_is_refused():
    with pytest.raises(CaptionError, match="environment 1: info\\['caption'\\] is 3"):
        info_captions("fine", 3)


@pytest.mark.parametrize("given", [["a", "b"], {"a": 1}, b"bytes"])
def test_a_caption_that_cannot_even_be_looked_up_is_refused_alike(given):
    with pytest.raises(CaptionError, match="environment 1: info\\['caption'\\] is"):
        info_captions("fine", given)


@pytest.mark.parametrize("given", ["open", "op", b"op", ["a"], np.array("op"), 3])
def test_captions_must_be_one_for_each_environment_a_single_text_has_letters(given):
    with pytest.raises(CaptionError, match=r"info\['caption'\] is .* for 2 environments; .* one text \(or None\) for"):
        InfoCaptioner(InfoCaptionerSettings()).captions(np.zeros((2, 2)), {"caption": given})


def test_a_mapping_where_captions_were_to_stand_is_refused():
    infos = {"caption": {"text": np.array(["a"], object), "_text": np.ones(1, bool)}, "_caption": np.ones(1, bool)}
    with pytest.raises(CaptionError, match=r"info\['caption'\] is a mapping with \['text'\]; it must be text"):
        InfoCaptioner(InfoCaptionerSettings()).captions(np.zeros((1, 2)), infos)


def test_a_lone_surrogate_becomes_text_that_can_be_hashed_and_stored():
    captions = info_captions("bad \udce4 sign")
    table = CaptionTable(1, "a test")
    table.intern(captions)
    assert CaptionTable.from_arrow(table.to_arrow()).caption(1).text == "bad ? sign"


def test_an_environment_that_never_speaks_is_told_apart_from_one_that_is_silent_for_long():
    silent = InfoCaptioner(InfoCaptionerSettings(give_up_calls=3))
    observation = np.zeros((2, 4))
    for _ in range(2):
        assert silent.captions(observation, {"other": 1}) == [EMPTY_TEXT, EMPTY_TEXT]
    with pytest.raises(
        CaptionError, match=r"no info\['caption'\] in the first 3 vector steps; the infos have \['other'\]"
    ):
        silent.captions(observation, {"other": 1})
    spoken = InfoCaptioner(InfoCaptionerSettings(give_up_calls=3))
    spoken.captions(observation, {"caption": np.array(["hello", ""], object)})
    for _ in range(9):
        spoken.captions(observation, {})


def test_the_number_of_environments_is_read_from_any_nesting():
    assert envs_of({"a": (np.zeros((5, 2)), np.zeros(5))}) == 5


def test_texts_and_empty_spaces_do_not_confuse_the_number_of_environments():
    assert envs_of({"text": ("one", "two", "three"), "box": np.zeros((3, 9))}) == 3
    assert envs_of({"text": ("one", "two", "three")}) == 3
    with pytest.raises(SpecError, match="no leaf"):
        envs_of({})


def test_wrong_settings_are_refused():
    owner = load_class(CAPTIONERS, "nethack")
    with pytest.raises(ConfigError, match="keys_per_caption is 0"):
        read_settings(owner.Settings, {"keys_per_caption": 0})
    with pytest.raises(ConfigError, match="nethack"):
        load_class(CAPTIONERS, "netheck")
