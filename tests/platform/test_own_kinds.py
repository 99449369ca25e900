"""Kinds of one's own, chosen by where they lie instead of by a registered name."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from types import ModuleType
from typing import Literal

import pytest

from onibi.platform.config import Settings, chosen_values, load_class, read_chosen, read_settings, selected, to_mapping
from onibi.platform.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class WalkSettings(Settings):
    kind: Literal["walk"] = "walk"
    pace: float = 1.0


class Walk:
    Settings = WalkSettings


@dataclass(frozen=True, kw_only=True)
class HopSettings(WalkSettings):
    height: int = 2

    def __post_init__(self) -> None:
        if self.height < 0:
            raise ValueError(f"height is {self.height}; it must be 0 or more")


class Hop(Walk):
    Settings = HopSettings


class Bare:
    pass


class Nameless:
    @dataclass(frozen=True, kw_only=True)
    class Settings(Settings):
        pace: float = 1.0


MOVERS = {"walk": "onibi_test_movers:Walk"}


@dataclass(frozen=True, kw_only=True)
class RunSettings(Settings):
    mover: Settings = selected(MOVERS, "walk")


@pytest.fixture(autouse=True)
def modules(monkeypatch):
    for name in ("onibi_test_movers", "my_movers"):
        module = ModuleType(name)
        for owner in (Walk, Hop, Bare, Nameless):
            setattr(module, owner.__name__, owner)
        monkeypatch.setitem(sys.modules, name, module)


def test_a_class_of_ones_own_has_its_own_settings_and_need_not_name_itself():
    read = read_settings(RunSettings, {"mover": {"kind": "my_movers:Hop", "pace": 2.0, "height": 5}})
    assert read.mover == HopSettings(kind="my_movers:Hop", pace=2.0, height=5)
    assert load_class(MOVERS, read.mover.kind) is Hop
    assert read_settings(RunSettings, to_mapping(read)) == read
    assert chosen_values(read.mover) == {"kind": "my_movers:Hop", "pace": 2.0, "height": 5}


def test_it_can_be_chosen_on_the_command_line_and_the_former_kinds_keys_go():
    written = {"mover": {"kind": "walk", "pace": 3.0}}
    read = read_settings(RunSettings, written, overrides=["mover.kind=my_movers:Hop", "mover.height=1"])
    assert read.mover == HopSettings(kind="my_movers:Hop", height=1)


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"kind": "my_movers:Hop", "hight": 1}, r"mover\.hight: unknown key\. Did you mean 'height'\?"),
        ({"kind": "my_movers:Hop", "height": -1}, "mover: height is -1; it must be 0 or more"),
        ({"kind": "my_movers:Run"}, "kind 'my_movers:Run' cannot be imported: AttributeError"),
        ({"kind": "no_movers:Run"}, "kind 'no_movers:Run' cannot be imported: ModuleNotFoundError.*PYTHONPATH"),
        ({"kind": "my_movers:Bare"}, "kind 'my_movers:Bare' has no class Settings"),
        ({"kind": "my_movers:Nameless"}, "and has the field kind"),
        ({"kind": "wolk"}, r"Did you mean 'walk'\? Allowed: walk, or module:Class for one of your own"),
    ],
)
def test_what_is_wrong_with_it_is_told(section, told):
    with pytest.raises(ConfigError, match=told):
        read_settings(RunSettings, {"mover": section})


def test_a_registered_kind_keeps_its_name():
    assert read_settings(RunSettings, {"mover": {"kind": "walk"}}).mover == WalkSettings()
    assert [field.name for field in fields(WalkSettings)] == ["kind", "pace"]


def test_a_section_read_alone_keeps_its_own_kind_too():
    read = read_chosen(MOVERS, {"kind": "my_movers:Hop", "pace": 2.0}, source="here", overrides=["height=3"])
    assert read == HopSettings(kind="my_movers:Hop", pace=2.0, height=3)
    assert read_chosen(MOVERS, {"kind": "walk"}, source="here") == WalkSettings()


def test_a_module_that_ends_the_process_when_it_is_imported_does_not(tmp_path, monkeypatch):
    (tmp_path / "ending.py").write_text("import sys; sys.exit(0)", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="kind 'ending:Hop' cannot be imported: SystemExit"):
        read_settings(RunSettings, {"mover": {"kind": "ending:Hop"}})
