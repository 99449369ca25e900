"""What messages tell people to type works when it is pasted, in the environment that is meant."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from onibi.platform.counted import counted
from onibi.platform.shell_words import path_as_typed, pip_install


def test_a_path_is_told_from_here_and_with_its_blanks_quoted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert path_as_typed(tmp_path / ".venv" / "bin" / "onibi") == ".venv/bin/onibi"
    assert shlex.split(path_as_typed(Path("/a b/onibi"))) == ["/a b/onibi"]


def test_pip_is_that_of_the_environment_that_lacks_something(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "my venv" / "bin" / "python"))
    command = shlex.split(pip_install("onibi[box2d]"))
    assert command == [str(tmp_path / "my venv" / "bin" / "python"), "-m", "pip", "install", "onibi[box2d]"]


@pytest.mark.parametrize(("number", "told"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (12_345, "12,345 rows")])
def test_one_thing_is_no_plural(number, told):
    assert counted(number, "row") == told
