from __future__ import annotations

import sys
import types
from dataclasses import dataclass
from typing import Literal

import pytest

from onibi.platform.config import Settings, read_settings, selected, selected_each, to_mapping
from onibi.platform.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class BellSettings(Settings):
    kind: Literal["bell"] = "bell"
    loudness: float = 1.0


@dataclass(frozen=True, kw_only=True)
class DrumSettings(Settings):
    kind: Literal["drum"] = "drum"
    skins: int = 2


_HERE = types.ModuleType("onibi_test_instruments")
_HERE.Bell, _HERE.Drum = (
    type(name, (), {"Settings": each}) for name, each in (("b", BellSettings), ("d", DrumSettings))
)
sys.modules[_HERE.__name__] = _HERE
INSTRUMENTS = {"bell": "onibi_test_instruments:Bell", "drum": "onibi_test_instruments:Drum"}


@dataclass(frozen=True, kw_only=True)
class BandSettings(Settings):
    solo: Settings | None = selected(INSTRUMENTS, "bell", optional=True)
    players: dict[str, Settings] = selected_each(INSTRUMENTS)


def test_a_section_that_may_be_absent_is_none_unless_it_is_given():
    assert BandSettings().solo is None
    assert read_settings(BandSettings, {}).solo is None
    assert read_settings(BandSettings, {"solo": None}).solo is None
    assert read_settings(BandSettings, {"solo": {"loudness": 2.0}}).solo == BellSettings(loudness=2.0)
    assert read_settings(BandSettings, {}, overrides=["solo.kind=drum"]).solo == DrumSettings()


def test_sections_by_name_have_a_kind_each_and_come_back_from_their_mapping():
    band = read_settings(BandSettings, {"players": {"a": {"kind": "bell"}, "b": {"kind": "drum", "skins": 3}}})
    assert band.players == {"a": BellSettings(), "b": DrumSettings(skins=3)}
    assert read_settings(BandSettings, to_mapping(band)) == band
    assert read_settings(BandSettings, to_mapping(band), overrides=["players.b.skins=4"]).players["b"].skins == 4
    assert BandSettings().players == read_settings(BandSettings, {"players": None}).players == {}


def test_all_faults_of_named_sections_are_told_at_once_with_their_places():
    found = {"players": {"a": {}, "b": {"kind": "dru"}, "c": {"kind": "bell", "skins": 1}, "d": 5}}
    with pytest.raises(ConfigError) as caught:
        read_settings(BandSettings, found)
    text = str(caught.value)
    assert "players.a.kind is missing; allowed: bell, drum." in text
    assert "players.b: kind 'dru' is unknown" in text
    assert "players.c.skins: unknown key" in text
    assert "players.d is" in text
    with pytest.raises(ConfigError, match=r"players is .*allowed: names"):
        read_settings(BandSettings, {"players": [1]})
