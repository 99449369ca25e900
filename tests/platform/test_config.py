from __future__ import annotations

import enum
import math
import sys
import types
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AllowInfNan, Field

from onibi.platform.config import Settings, chosen_values, load_class, read_settings, selected, to_mapping
from onibi.platform.config_merge import merge
from onibi.platform.errors import ConfigError
from onibi.platform.yaml_document import parse_document, to_yaml


class Shape(enum.Enum):
    ROUND = "round"
    SQUARE = "square"


@dataclass(frozen=True, kw_only=True)
class WalkSettings(Settings):
    kind: Literal["walk"] = "walk"
    pace: Annotated[float, Field(gt=0, le=5)] = 1.5


@dataclass(frozen=True, kw_only=True)
class FlySettings(Settings):
    kind: Literal["fly"] = "fly"
    height: int = 100
    wings: int

    def __post_init__(self) -> None:
        if self.wings % 2:
            raise ValueError(f"wings is {self.wings}; allowed: an even number")


class Walk:
    Settings = WalkSettings


class Fly:
    Settings = FlySettings


# The registries name modules; pytest imports this file under a name of its own making.
_HERE = types.ModuleType("onibi_test_movers")
_HERE.Walk, _HERE.Fly = Walk, Fly
sys.modules[_HERE.__name__] = _HERE
MOVERS = {
    "walk": "onibi_test_movers:Walk",
    "fly": "onibi_test_movers:Fly",
    "swim": "onibi_test_no_such_package.swim:Swim",
}


@dataclass(frozen=True, kw_only=True)
class PartSettings(Settings):
    size: int = 3
    label: str = "part"


@dataclass(frozen=True, kw_only=True)
class RunSettings(Settings):
    seed: Annotated[int, Field(ge=0)] = 1
    rate: float = 1e-3
    limit: Annotated[float, AllowInfNan(True)] = 1.0
    active: bool = True
    log: Literal["off", "short", "long"] = "short"
    shape: Shape = Shape.ROUND
    folder: Path = Path("runs")
    capacity: int | Literal["auto"] = "auto"
    sizes: tuple[int, ...] = (64, 64)
    corner: tuple[float, float] = (0.0, 1.0)
    shares: dict[str, float] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    part: PartSettings = field(default_factory=PartSettings)
    spare: PartSettings | None = None
    parts: tuple[PartSettings, ...] = ()
    named: dict[str, PartSettings] = field(default_factory=dict)
    mover: Settings = selected(MOVERS, "walk")


def fault(text: str, *overrides: str) -> str:
    """The one fault that ``text`` has."""
    with pytest.raises(ConfigError) as caught:
        read_settings(RunSettings, parse_document(text, "run.yaml"), overrides=overrides)
    first, *lines = str(caught.value).splitlines()
    assert first == "1 fault in the settings:"
    assert len(lines) == 1
    return lines[0].strip()


@pytest.mark.parametrize("written", ["1e5", "100000.0", "100_000"])
def test_a_whole_number_may_be_written_with_an_exponent(written):
    settings = read_settings(RunSettings, {}, overrides=[f"seed={written}", f"capacity={written}", "limit=2e0"])
    assert (settings.seed, type(settings.seed)) == (100_000, int)
    assert (settings.capacity, type(settings.capacity)) == (100_000, int)
    assert (settings.limit, type(settings.limit)) == (2.0, float)
    with pytest.raises(ConfigError, match="seed is 1e-05; allowed: a whole number"):
        read_settings(RunSettings, {}, overrides=["seed=1e-5"])


def test_an_empty_file_gives_every_default():
    assert read_settings(RunSettings, parse_document("", "run.yaml")) == RunSettings()


def test_each_kind_of_value_is_read():
    text = """
        seed: 7
        rate: 1e-4
        limit: .inf
        active: false
        log: off
        shape: square
        folder: /data
        capacity: 1_000
        sizes: [1, 2]
        corner: [0.5, 2]
        shares: {a: 1}
        arguments: {level: {deep: [1, null, x]}}
        part: {size: 9}
        spare: {label: s}
        parts: [{size: 1}, {}]
        named: {x: {size: 2}}
        mover: {kind: fly, wings: 2}
    """
    assert read_settings(RunSettings, parse_document(text, "run.yaml")) == RunSettings(
        seed=7,
        rate=0.0001,
        limit=math.inf,
        active=False,
        log="off",
        shape=Shape.SQUARE,
        folder=Path("/data"),
        capacity=1000,
        sizes=(1, 2),
        corner=(0.5, 2.0),
        shares={"a": 1.0},
        arguments={"level": {"deep": [1, None, "x"]}},
        part=PartSettings(size=9),
        spare=PartSettings(label="s"),
        parts=(PartSettings(size=1), PartSettings()),
        named={"x": PartSettings(size=2)},
        mover=FlySettings(wings=2),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sede: 3", "run.yaml:1: sede: unknown key. Did you mean 'seed'? Allowed here: active, arguments,"),
        ("part:\n  sice: 3", "run.yaml:2: part.sice: unknown key. Did you mean 'size'? Allowed here: label, size."),
        ("seed: '3'", "run.yaml:1: seed is '3'; allowed: a whole number, at least 0."),
        ("seed: -1", "run.yaml:1: seed is -1; allowed: a whole number, at least 0."),
        ("seed: 2.5", "run.yaml:1: seed is 2.5; allowed: a whole number, at least 0."),
        ("seed: true", "run.yaml:1: seed is true; allowed: a whole number, at least 0."),
        ("seed:", "run.yaml:1: seed is null; allowed: a whole number, at least 0."),
        ("rate: .nan", "run.yaml:1: rate is nan; allowed: a finite number."),
        ("rate: -.inf", "run.yaml:1: rate is -inf; allowed: a finite number."),
        ("active: yes", "run.yaml:1: active is 'yes'; allowed: true or false."),
        ("active: 1", "run.yaml:1: active is 1; allowed: true or false."),
        ("part:\n  la: 3", "run.yaml:2: part.la: unknown key. Did you mean 'label'? Allowed here: label, size."),
        ("log: shorr", "run.yaml:1: log is 'shorr'; allowed: one of 'off', 'short', 'long'. Did you mean 'short'?"),
        ("shape: oval", "run.yaml:1: shape is 'oval'; allowed: one of 'round', 'square'."),
        ("capacity: many", "run.yaml:1: capacity is 'many'; allowed: a whole number or 'auto'."),
        ("sizes:\n- 1\n- x", "run.yaml:3: sizes.1 is 'x'; allowed: for sizes: a list, each a whole number."),
        ("sizes: 3", "run.yaml:1: sizes is 3; allowed: a list, each a whole number."),
        ("corner: [1]", "run.yaml:1: corner is [1]; allowed: a list of 2: a finite number; a finite number."),
        ("shares: {a: x}", "run.yaml:1: shares.a is 'x'; allowed: for shares: a mapping of names, each to a finite"),
        ("part: 3", "run.yaml:1: part is 3; allowed: a section with label, size."),
        ("parts: {}", "run.yaml:1: parts is a mapping with no keys; allowed: a list, each a section (PartSettings)."),
        ("parts:\n- {}\n- {size: x}", "run.yaml:3: parts.1.size is 'x'; allowed: a whole number."),
        ("named: [1]", "run.yaml:1: named is [1]; allowed: a mapping of names, each to a section (PartSettings)."),
        ("mover: {pace: 9}", "run.yaml:1: mover.pace is 9; allowed: a finite number, above 0, at most 5."),
        ("mover: {kind: fly}", "run.yaml:1: mover.wings is missing; expected: a whole number."),
        ("mover: {kind: fly, wings: 3}", "run.yaml:1: mover: wings is 3; allowed: an even number"),
        ("mover: {kind: fly, wings: 2, pace: 1}", "run.yaml:1: mover.pace: unknown key. Allowed here: height, kind"),
        (
            "mover: {kind: wolk}",
            "run.yaml:1: mover: kind 'wolk' is unknown. Did you mean 'walk'? Allowed: fly, swim, wal",
        ),
        ("mover: {kind: 3}", "run.yaml:1: mover.kind is 3; allowed: fly, swim, walk."),
        ("mover: walk", "run.yaml:1: mover is 'walk'; allowed: a section whose kind is one of fly, swim, walk."),
        ("mover: {kind: swim}", "run.yaml:1: mover: kind 'swim' needs the Python package 'onibi_test_no_such_package'"),
    ],
)
def test_a_wrong_key_or_value_is_told_with_place_and_what_is_allowed(text, expected):
    assert fault(text).startswith(expected)


def test_all_faults_of_file_and_overrides_are_told_at_once():
    document = parse_document("seed: x\npart: {sice: 1, label: 2}\nmover: {kind: wolk}", "run.yaml")
    with pytest.raises(ConfigError) as caught:
        read_settings(RunSettings, document, overrides=["rate=fast", "nonsense", "sizes=[1", "log=long", "log.level=3"])
    assert [line.strip().split(": ")[0] for line in str(caught.value).splitlines()] == [
        "8 faults in the settings:",
        "--set nonsense",
        "--set sizes=[1:1",
        "--set log.level=3",
        "--set rate=fast",
        "run.yaml:1",
        "run.yaml:2",
        "run.yaml:2",
        "run.yaml:3",
    ]


def test_faults_are_told_in_the_order_of_their_lines():
    lines = [f"key_{number}: 1" for number in range(11)]
    with pytest.raises(ConfigError) as caught:
        read_settings(RunSettings, parse_document("\n".join([*lines, "seed: x"]), "run.yaml"))
    places = [line.strip().split(": ")[0] for line in str(caught.value).splitlines()[1:]]
    assert places == [f"run.yaml:{number}" for number in range(1, 13)]


def test_a_section_is_not_built_while_one_of_its_values_is_wrong():
    # wings: 3 alone would be refused by __post_init__; it must not run with height missing its type.
    assert "wings" not in fault("mover: {kind: fly, wings: 3, height: tall}")
    assert fault("mover: {kind: fly, wings: 3, hight: 9}").startswith("run.yaml:1: mover.hight: unknown key.")


def test_a_key_with_nothing_below_it_is_a_section_of_defaults():
    assert read_settings(RunSettings, parse_document("part:\nmover:\n", "run.yaml")) == RunSettings()


def test_null_stands_for_none_where_none_is_allowed():
    settings = read_settings(
        RunSettings, parse_document("spare: null", "run.yaml"), overrides=["spare.size=1", "spare=~"]
    )
    assert settings.spare is None


@pytest.mark.parametrize(
    ("overrides", "changed"),
    [
        (["seed=5"], {"seed": 5}),
        (["seed=5", "seed=6"], {"seed": 6}),
        (["part.size=5"], {"part": PartSettings(size=5, label="file")}),
        (["part={size: 5}"], {"part": PartSettings(size=5, label="file")}),
        (["shares.a=1e-3"], {"shares": {"a": 0.001}}),
        (["log=off"], {"log": "off"}),
        (["arguments.text='a=b'"], {"arguments": {"text": "a=b"}}),
        (["mover.kind=fly", "mover.wings=4"], {"mover": FlySettings(wings=4)}),
        (["mover.wings=4", "mover.kind=fly"], {"mover": FlySettings(wings=4)}),
    ],
)
def test_overrides_are_yaml_and_win_over_the_file(overrides, changed):
    document = parse_document("part: {label: file}\nmover: {kind: walk, pace: 2}", "run.yaml")
    settings = read_settings(RunSettings, document, overrides=overrides)
    expected = {"part": PartSettings(label="file"), "mover": WalkSettings(pace=2.0), **changed}
    assert settings == RunSettings(**expected)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("part.sice=3", "--set part.sice=3: part.sice: unknown key. Did you mean 'size'?"),
        ("seed=-3", "--set seed=-3: seed is -3; allowed: a whole number, at least 0."),
        ("folder=", "--set folder=: folder is null; allowed: a path."),
        ("seed", "--set seed: expected a key and a value, as in --set learner.discount=0.99."),
        ("a..b=1", "--set a..b=1: expected a key and a value"),
        ("=1", "--set =1: expected a key and a value"),
        ("log.x=1", "--set log.x=1: log is 'off', which has no keys; set log whole."),
        ("sizes=[1", "--set sizes=[1:1: not YAML:"),
    ],
)
def test_a_fault_of_an_override_names_it(override, expected):
    assert fault("log: off", override).startswith(expected)


def test_plain_mappings_of_python_are_checked_as_strictly():
    assert read_settings(RunSettings, {"sizes": (1, 2), "part": {"size": 4}}).part.size == 4
    with pytest.raises(ConfigError, match=r"settings: arguments has the key 1; allowed: text as keys\."):
        read_settings(RunSettings, {"arguments": {1: 2}})
    with pytest.raises(ConfigError, match=r"from python: rate is a Python complex; allowed:"):
        read_settings(RunSettings, {"rate": 1j}, source="from python")


def test_the_mapping_given_is_left_as_it_was():
    mapping = {"part": {"size": 4}}
    read_settings(RunSettings, mapping, overrides=["part.size=5", "part.label=x"])
    assert mapping == {"part": {"size": 4}}


def test_merging_replaces_lists_and_sections_of_another_kind_whole():
    base = parse_document("sizes: [1, 2]\npart: {size: 1}\nmover: {kind: walk, pace: 2}", "base.yaml")
    top = parse_document("sizes: [3]\npart: {label: x}\nmover: {kind: fly, wings: x}", "top.yaml")
    merged = merge(base, top)
    assert merged.mapping == {
        "sizes": [3],
        "part": {"size": 1, "label": "x"},
        "mover": {"kind": "fly", "wings": "x"},
    }
    assert merged.place(("part", "size")) == "base.yaml:2"
    assert merged.place(("mover", "wings")) == "top.yaml:3"


def test_an_empty_mapping_empties_what_it_is_written_over():
    base = {"arguments": {"a": 1}, "shares": {"x": 0.5}, "part": {"size": 4}}
    assert read_settings(RunSettings, base, overrides=["arguments={}"]).arguments == {}
    assert read_settings(RunSettings, base, overrides=["arguments={b: 2}"]).arguments == {"a": 1, "b": 2}
    found = read_settings(RunSettings, base, overrides=["arguments={}", "arguments={b: 2}", "part={}"])
    assert (found.arguments, found.shares, found.part) == ({"b": 2}, {"x": 0.5}, PartSettings())


def test_what_is_given_after_an_emptying_is_kept_and_what_came_before_is_not():
    fly = read_settings(RunSettings, {}, overrides=["mover={}", "mover.wings=4", "mover.kind=fly"])
    assert to_mapping(fly.mover)["kind"] == "fly"
    assert to_mapping(fly.mover)["wings"] == 4
    walk = read_settings(RunSettings, {}, overrides=["mover.kind=fly", "mover.wings=4", "mover={}"])
    assert walk.mover == WalkSettings()


def test_load_class_imports_the_registered_class():
    assert load_class(MOVERS, "walk") is Walk


def test_a_broken_module_of_ours_is_not_told_as_a_missing_package():
    with pytest.raises(ModuleNotFoundError):
        load_class({"lost": "onibi.platform.no_such_module:Lost"}, "lost")


def test_selected_gives_the_default_kind_in_python_too():
    assert RunSettings().mover == WalkSettings()


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=8)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | FINITE | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
PARTS = st.builds(PartSettings, size=st.integers(), label=TEXT)
RUNS = st.builds(
    RunSettings,
    seed=st.integers(min_value=0),
    rate=FINITE,
    limit=st.floats(allow_nan=False),
    active=st.booleans(),
    log=st.sampled_from(["off", "short", "long"]),
    shape=st.sampled_from(Shape),
    folder=st.sampled_from([Path("runs"), Path("/data/1e5"), Path("null")]),
    capacity=st.integers() | st.just("auto"),
    sizes=st.lists(st.integers(), max_size=3).map(tuple),
    corner=st.tuples(FINITE, FINITE),
    shares=st.dictionaries(TEXT, FINITE, max_size=3),
    arguments=st.dictionaries(TEXT, PLAIN, max_size=3),
    part=PARTS,
    spare=st.none() | PARTS,
    parts=st.lists(PARTS, max_size=2).map(tuple),
    named=st.dictionaries(TEXT, PARTS, max_size=2),
    mover=st.builds(WalkSettings, pace=st.floats(0, 5, exclude_min=True))
    | st.builds(FlySettings, wings=st.integers().map(lambda half: 2 * half), height=st.integers()),
)


@given(RUNS)
def test_settings_come_back_equal_from_their_mapping_and_from_its_yaml(settings):
    mapping = to_mapping(settings)
    assert list(mapping) == [item.name for item in fields(RunSettings)]
    assert read_settings(RunSettings, mapping) == settings
    assert read_settings(RunSettings, parse_document(to_yaml(mapping), "run.yaml")) == settings


@given(RUNS)
def test_chosen_values_read_back_equal_and_name_no_default(settings):
    chosen = chosen_values(settings)
    assert read_settings(RunSettings, chosen) == settings
    assert all(getattr(RunSettings(), name) != getattr(settings, name) for name in chosen)


def test_defaults_are_no_choice_but_a_kind_is():
    assert chosen_values(RunSettings(seed=1, mover=WalkSettings(pace=1.5))) == {}
    assert chosen_values(RunSettings(seed=2, mover=WalkSettings(pace=2.0))) == {
        "seed": 2,
        "mover": {"kind": "walk", "pace": 2.0},
    }
