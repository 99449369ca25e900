"""What a submitted job takes along."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from onibi.clusters.staging import OwnModule, stage_package
from onibi.platform.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("platform", "actors", "learners", "clusters", "infra")


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_staged_are_the_imported_folders_without_hidden_files_and_bytecode(tmp_path):
    stage_package(tmp_path / "first")
    staged = {str(path.relative_to(tmp_path / "first" / "onibi")) for path in files(tmp_path / "first")}
    tracked = subprocess.run(["git", "ls-files", *FOLDERS], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode == 0:  # a source archive carries no history
        assert {name for name in tracked.stdout.split() if (ROOT / name).is_file()} <= staged
    assert {name.split("/")[0] for name in staged} == {*FOLDERS, "__main__.py"}
    package = tmp_path / "first" / "onibi"
    (package / "platform" / ".env").write_text("TOKEN=secret")
    (package / "platform" / "__pycache__").mkdir(exist_ok=True)
    (package / "platform" / "__pycache__" / "errors.pyc").write_text("")
    with (package / "platform" / "errors.py").open("a") as errors:
        errors.write("\nCHANGED = 1\n")
    code = "import pathlib, onibi.clusters.staging as s; s.stage_package(pathlib.Path('../second'))"
    again = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "first", capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    second = {str(path.relative_to(tmp_path / "second" / "onibi")) for path in files(tmp_path / "second")}
    assert second == staged
    assert "CHANGED = 1" in (tmp_path / "second" / "onibi" / "platform" / "errors.py").read_text()


@pytest.fixture
def own_modules(tmp_path, monkeypatch):
    """A folder, the current one, with a module and a package that nobody may import here."""
    folder = tmp_path / "own"
    package = folder / "my_games"
    (package / "levels").mkdir(parents=True)
    for path in (folder / "my_game.py", package / "__init__.py", package / "levels" / "one.py"):
        path.write_text("raise AssertionError('imported')\n")
    (package / "maze.txt").write_text("###")
    (package / ".env").write_text("TOKEN=secret")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "staged"),
    [
        ("my_game", {"my_game.py"}),
        ("my_games", {"my_games/__init__.py", "my_games/levels/one.py", "my_games/maze.txt"}),
        ("my_games.levels.one", {"my_games/__init__.py", "my_games/levels/one.py", "my_games/maze.txt"}),
    ],
)
def test_a_module_of_ones_own_is_staged_whole_without_hidden_files(own_modules, tmp_path, name, staged):
    target = tmp_path / "target"
    target.mkdir()
    OwnModule(name).stage(target)
    assert {str(path.relative_to(target)) for path in files(target)} == staged


def test_a_package_without_init_file_is_staged_from_all_its_folders(own_modules, tmp_path, monkeypatch):
    other = tmp_path / "other"
    for folder, text in ((own_modules, "first"), (other, "second")):
        (folder / "spread").mkdir(parents=True)
        (folder / "spread" / "both.py").write_text(text)
    (other / "spread" / "more.py").write_text("")
    monkeypatch.syspath_prepend(str(other))
    target = tmp_path / "target"
    target.mkdir()
    OwnModule("spread").stage(target)
    assert {path.name for path in files(target)} == {"both.py", "more.py"}
    assert (target / "spread" / "both.py").read_text() == "first", "the current folder comes before all others"


def test_what_is_not_sent_counts_not_and_a_link_into_nothing_is_left_out(own_modules, tmp_path):
    package = own_modules / "my_games"
    for folder in (".git", "__pycache__"):
        (package / folder).mkdir()
        with (package / folder / "large").open("wb") as file:
            file.truncate(200 * 2**20)
    (package / "gone").symlink_to(package / "nowhere")
    target = tmp_path / "target"
    target.mkdir()
    OwnModule("my_games").stage(target)
    assert "gone" not in {path.name for path in files(target)}
    with (package / "levels.bin").open("wb") as file:
        file.truncate(200 * 2**20)
    with pytest.raises(ConfigError, match="takes 200 MiB"):
        OwnModule("my_games")


def test_a_module_that_a_finder_of_its_own_finds_is_staged(own_modules, tmp_path, monkeypatch):
    """As setuptools installs an editable package whose folder is on no path."""
    elsewhere = tmp_path / "elsewhere" / "ed_games.py"
    elsewhere.parent.mkdir()
    elsewhere.write_text("raise AssertionError('imported')\n")

    class Finder:
        @staticmethod
        def find_spec(name, _path=None, _target=None):
            return importlib.util.spec_from_file_location(name, elsewhere) if name == "ed_games" else None

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    target = tmp_path / "target"
    target.mkdir()
    OwnModule("ed_games").stage(target)
    assert [path.name for path in files(target)] == ["ed_games.py"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my_gams", "'my_gams' is not found .*PYTHONPATH"),
        ("./my_games.py", "no name of a module"),
        ("_struct", "install it on the cluster"),
        ("torch", "MiB .*install it on the cluster"),
    ],
)
def test_a_module_that_cannot_be_sent_is_refused(own_modules, name, said):
    with pytest.raises(ConfigError, match=said):
        OwnModule(name)
