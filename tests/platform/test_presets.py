from __future__ import annotations

import sys

import pytest

from onibi.platform.errors import ConfigError
from onibi.platform.presets import find_document, preset_names, preset_summary, preset_text

PACKAGE = "onibi_test_presets"
FILES = {
    "base.yaml": "# The base of\n# the others.\n#\n# More.\nseed: 1\npart: {size: 2, label: b}\n",
    "child.yaml": "extends: base\npart: {size: 3}\n",
    "ring-a.yaml": "extends: ring-b\n",
    "ring-b.yaml": "extends: ring-a\n",
    "odd.yaml": "extends: [base]\n",
    "lost.yaml": "seed: 1\nextends: bose\n",
    "notes.txt": "no preset",
}


@pytest.fixture(autouse=True)
def presets(tmp_path, monkeypatch):
    folder = tmp_path / PACKAGE
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop(PACKAGE, None)


def test_presets_are_the_yaml_files_of_a_package_without_init_file():
    assert preset_names(PACKAGE) == ["base", "child", "lost", "odd", "ring-a", "ring-b"]
    assert preset_text(PACKAGE, "child") == FILES["child.yaml"]
    assert preset_summary(PACKAGE, "base") == "The base of the others."
    assert preset_summary(PACKAGE, "child") == ""


def test_a_preset_that_extends_another_holds_only_what_differs():
    document = find_document("child", PACKAGE)
    assert document.mapping == {"seed": 1, "part": {"size": 3, "label": "b"}}
    assert document.place(("part", "size")) == "preset child:2"
    assert document.place(("part", "label")) == "preset base:6"


def test_a_file_of_ones_own_may_extend_a_preset(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: child\nseed: 9\n", encoding="utf-8")
    for name in (path, str(path), "mine.yaml"):
        assert find_document(name, PACKAGE).mapping == {"seed": 9, "part": {"size": 3, "label": "b"}}


def test_a_file_without_suffix_is_found_where_no_preset_has_its_name(tmp_path):
    for name in ("mine", "base"):
        (tmp_path / name).write_text("seed: 9", encoding="utf-8")
    assert find_document("mine", PACKAGE).mapping == {"seed": 9}
    assert find_document("base", PACKAGE).mapping["seed"] == 1
    assert find_document(tmp_path / "base", PACKAGE).mapping == {"seed": 9}
    assert find_document(str(tmp_path / "base"), PACKAGE).mapping == {"seed": 9}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "bose",
            "'bose' is neither a preset nor a file. Did you mean 'base'? Presets: base, child, lost, odd, ring-a,",
        ),
        ("ring", "'ring' is neither a preset nor a file. Did you mean 'ring-a' or 'ring-b'? Presets: "),
        ("no/such.yaml", "no/such.yaml: cannot be read (No such file or directory)."),
        (
            "ring-a",
            "preset ring-a:1: extends: preset ring-b:1: extends: presets extend each other in a ring: ring-a → ring-b",
        ),
        ("odd", "preset odd:1: extends is ['base']; allowed: the name of one preset."),
        ("lost", "preset lost:2: extends: preset 'bose' is unknown. Did you mean 'base'? Allowed: base, child"),
    ],
)
def test_a_wrong_name_is_told_with_the_nearest_and_all_presets(name, expected):
    with pytest.raises(ConfigError) as caught:
        find_document(name, PACKAGE)
    assert str(caught.value).startswith(expected)
