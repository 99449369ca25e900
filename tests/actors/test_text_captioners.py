"""Captions out of the observation and out of a user's function, and what is said where they cannot be."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from onibi.actors.captioners.function import FunctionCaptioner, FunctionCaptionerSettings
from onibi.actors.captioners.plain_text import PlainTextReader
from onibi.actors.captioners.text import TextCaptioner, TextCaptionerSettings
from onibi.actors.environments.factory import EnvironmentSettings, make_vector_env
from onibi.clusters.run_plan import plan_run
from onibi.clusters.run_settings import RunSettings
from onibi.platform.annotation.captions import EMPTY_TEXT, CaptionTable
from onibi.platform.config import read_settings
from onibi.platform.errors import CaptionError, ConfigError
from onibi.platform.fragment import CaptionText, KeyText


def texts(raw, **settings):
    return [caption.text for caption in TextCaptioner(TextCaptionerSettings(**settings)).captions(raw, {})]


def test_the_only_text_leaf_is_found_wherever_it_stands():
    assert texts(("go north", "")) == ["go north", ""]
    assert texts({"image": np.zeros((2, 3)), "inner": {"words": ("a  b", "c")}}) == ["a b", "c"]
    assert texts({"words": np.array(["x", "y"])}) == ["x", "y"]


def test_a_real_minigrid_mission_is_a_caption():
    envs = make_vector_env(EnvironmentSettings(id="MiniGrid-DoorKey-5x5-v0"), 2)
    raw, _ = envs.reset(seed=1)
    envs.close()
    assert texts(raw, leaf="mission") == ["use the key to open the door and then get to the goal"] * 2
    assert texts(raw) == texts(raw, leaf="mission")


def test_two_text_leaves_must_be_told_apart_and_a_wrong_one_names_the_right_ones():
    raw = {"a": ("x",), "b": {"c": ("y",)}, "n": np.zeros((1, 2))}
    with pytest.raises(CaptionError, match=r"this one has a, b\.c\. Name one in captioner\.leaf"):
        texts(raw)
    assert texts(raw, leaf="b.c") == ["y"]
    for wrong in ("n", "b", "d", "a.x"):
        with pytest.raises(CaptionError, match=r"its Text leaves: a, b\.c"):
            texts(raw, leaf=wrong)
    with pytest.raises(CaptionError, match=r"this one has none\. Set captioner"):
        texts({"n": np.zeros((1, 2))})
    with pytest.raises(ValueError, match=r"leaf is 'a\.\.b'"):
        TextCaptionerSettings(leaf="a..b")


def test_texts_of_tuple_spaces_are_named_by_their_place_as_columns_are():
    raw = (np.zeros((2, 3)), {"said": ("x", "y")}, (("a", "b"), np.zeros(2)))
    assert texts(raw[:2]) == ["x", "y"]
    assert texts(raw, leaf="2.0") == ["a", "b"]
    for wrong in ("0", "2", "2.1", "3", "said"):
        with pytest.raises(CaptionError, match=r"its Text leaves: 1\.said, 2\.0"):
            texts(raw, leaf=wrong)


def tell(raw, infos):
    return [f"{count} lamps burn." if count else None for count in raw["lamps"].tolist()]


def short(raw, infos):
    return ["one"]


def numbers(raw, infos):
    return [7, 7]


def one_text(raw, infos):
    return "ab"


def broken(raw, infos):
    return raw["nothing"]


def torn(raw, infos):
    return [
        CaptionText("A lamp\ud800", (KeyText("A lamp\ud800", askable=False),)),
        CaptionText("Grün", (KeyText("Grün"),)),
    ]


class Remembering:
    """Tells what is new, and is told when episodes begin."""

    def __init__(self):
        self.begun = 0

    def begin(self, lanes):
        self.begun += int(lanes.sum())

    def __call__(self, raw, infos):
        return [f"Episode {chr(96 + self.begun)}."] * len(raw)


a_number = 3


@pytest.fixture(autouse=True)
def module(monkeypatch, request):
    monkeypatch.setitem(sys.modules, "my_words", sys.modules.get(__name__, request.module))


def captioner(name, **more):
    return FunctionCaptioner(FunctionCaptionerSettings(path=f"my_words:{name}", **more))


def test_a_function_of_ones_own_gives_captions():
    raw = {"lamps": np.array([3, 0])}
    first, second = captioner("tell").captions(raw, {})
    assert (first.text, first.keys[0].text) == ("3 lamps burn.", "# lamps burn.")
    assert second is EMPTY_TEXT


def test_long_texts_are_cut_before_they_are_kept():
    reader = PlainTextReader("keep", max_characters=10)
    first = reader.read("0123456789" + "a" * 100_000, 0, "somewhere")
    assert first.text == "0123456789"
    assert reader.read("0123456789" + "b" * 100_000, 0, "somewhere") is first
    assert max(map(len, reader._cache)) == 10


def test_text_that_has_no_utf8_form_is_cleaned_for_it_could_not_be_stored():
    table = CaptionTable(keys_per_caption=1, key_version="1")
    table.intern(captioner("torn").captions(np.zeros((2, 1)), {}))
    stored = CaptionTable.from_arrow(table.to_arrow())
    assert stored.caption(1) == CaptionText("A lamp?", (KeyText("A lamp?", askable=False),))
    assert stored.caption(2).text == "Grün"


def test_a_maker_makes_a_captioner_that_is_told_where_episodes_begin():
    reader = captioner("Remembering", is_maker=True)
    reader.begin(np.array([True, True]))
    assert reader.captions(np.zeros((2, 1)), {})[0].text == "Episode b."
    assert not hasattr(captioner("tell"), "begin")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("short", "returned 1 entries for 2 environments"),
        ("one_text", "returned 'ab' for 2 environments"),
        ("numbers", r"environment 0: what my_words:numbers returned is 7 \(int\)"),
        ("broken", r"my_words:broken raised KeyError: 'nothing'"),
    ],
)
def test_what_a_function_does_wrong_is_said_with_its_path(name, message):
    with pytest.raises(CaptionError, match=message):
        captioner(name).captions({"lamps": np.array([3, 0])}, {})


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("You win. You win.", (KeyText("You win."), KeyText("You win."))),  # N would be 2 when it is heard first
        ("You win.", (KeyText("You win."), KeyText("You win.", askable=False))),
        ("You win.", (KeyText(""),)),
        ("You win.", ("You win.",)),
        ("You win.", (KeyText(7),)),
        (7, (KeyText("You win."),)),
    ],
)
def test_keys_of_a_functions_own_are_texts_and_all_different(text, keys, monkeypatch):
    monkeypatch.setattr(sys.modules["my_words"], "tell", lambda raw, infos: [CaptionText(text, keys)])
    with pytest.raises(CaptionError, match=r"environment 0: my_words:tell returned .*each with a text of its own"):
        captioner("tell", keys_per_caption=3).captions(np.zeros((1, 2)), {})


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("my_words:nobody", "cannot be imported: AttributeError"),
        ("no_such_module:tell", "cannot be imported: ModuleNotFoundError"),
        ("my_words:a_number", "is a int; it must be a function"),
    ],
)
def test_a_path_that_is_no_function_stops_the_start(path, message):
    with pytest.raises(ConfigError, match=message):
        FunctionCaptioner(FunctionCaptionerSettings(path=path))
    with pytest.raises(ConfigError, match="must name a function as module:function"):
        read_settings(FunctionCaptionerSettings, {"path": "my_words"})


def test_a_run_can_be_planned_with_each_of_them():
    document = {
        "environment": {"id": "MiniGrid-DoorKey-5x5-v0"},
        "view": {"kind": "minigrid"},
        "captioner": {"kind": "text", "leaf": "mission"},
    }
    assert plan_run(read_settings(RunSettings, document)).spec.keys_per_caption == 1
    document["captioner"] = {"kind": "function", "path": "my_words:tell"}
    assert "my_words:tell" in plan_run(read_settings(RunSettings, document)).key_version
    document["captioner"] = {"kind": "text", "leaf": "misson"}
    with pytest.raises(ConfigError, match=r"captioner.kind=text reads \['misson'\]"):
        plan_run(read_settings(RunSettings, document))
