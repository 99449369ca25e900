"""docs/configuration.md: its run file, its changes, its faults and the places that it names are those of the code."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from onibi.clusters.run_settings import RunSettings
from onibi.platform.config import read_settings
from onibi.platform.errors import ConfigError
from onibi.platform.presets import find_document

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| ([a-z_, ]+) \| (.*) \|$", TEXT, re.MULTILINE))


@pytest.fixture
def read(tmp_path):
    """The settings of a run file with this text."""

    def read(text, overrides=()):
        path = tmp_path / "faulty.yaml"
        path.write_text(text, encoding="utf-8")
        return read_settings(RunSettings, find_document(path, "onibi.clusters.presets"), overrides=overrides)

    return read


def test_the_run_file_of_the_page_is_one(read):
    settings = read(re.search(r"^```yaml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)[1])
    assert (settings.seed, settings.learner.kind, settings.environment.id) == (7, "dqn", "MiniHack-KeyRoom-S5-v0")


def test_the_changes_of_the_page_can_be_made_to_minihack_oni(read):
    changes = [each.split()[1::2] for each in re.findall(r"`((?:--set \S+ ?)+)`", TEXT) if "a.b=c" not in each]
    rate, loss = (read("extends: minihack-oni", each) for each in changes)
    assert (rate.learner.learning_rate, rate.rewards.intrinsic, rate.environment.kwargs) == (1e-3, None, {})
    assert loss.learner.value_loss == "mse"
    with pytest.raises(ConfigError, match="support is read by value_loss"):
        read("extends: minihack-oni", ["learner.value_loss=mse"])


def test_the_faults_are_told_as_on_the_page(read):
    file = """seed: 1
environment: {id: CartPole-v1,
  vectorisation: sync}
learner:
  kind: dqn
  discuont: 0.9
  n_steps: three
budget: {max_seconds: -1}
"""
    with pytest.raises(ConfigError) as caught:
        read(file)
    shown = re.search(r"^onibi: (4 faults in the settings:\n.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)[1]
    told = re.sub(r"\S+/faulty", "faulty", str(caught.value))
    for line, found in zip(shown.splitlines(), told.splitlines(), strict=True):
        assert found.startswith(line.rstrip("…"))


def test_the_table_names_every_section_and_files_that_are_there():
    named = {name for row in ROWS for name in row.split(", ")} - {"section"}
    assert named == {field.name for field in fields(RunSettings)}
    for cell in ROWS.values():
        folder = ROOT
        for path in re.findall(r"`([\w/]+(?:\.py|/))`", cell):
            place = ROOT / path if "/" in path else folder / path
            assert place.exists(), path
            folder = place.parent
