"""The examples of docs/annotators.md and docs/annotation.md, run as they stand there."""

from __future__ import annotations

import re
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from onibi.actors.annotators.custom import CustomAnnotator, CustomAnnotatorSettings
from onibi.actors.captioners.function import FunctionCaptioner, FunctionCaptionerSettings
from onibi.platform.annotation.annotator import AnnotationRequest
from onibi.platform.annotation.labels import Label, LabelValue

DOCS = Path(__file__).resolve().parents[2] / "docs"


def examples(page):
    return re.findall(r"^```python\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes an example where it can be imported, under the name that its first line gives."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(source):
        name = re.match(r"# (\w+)\.py", source)[1]
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
        monkeypatch.delitem(sys.modules, name, raising=False)
        return name

    return write


def test_the_annotator_of_the_page_judges(module, capsys):
    whole, trial = examples("annotators.md")
    name = module(whole)
    exec(compile(trial, "annotators.md", "exec"), {})
    assert capsys.readouterr().out.splitlines() == [
        "You see here a key. helpful 1.0 found ['key']",
        "It's a wall. unhelpful 0.0 found []",
    ]
    annotator = CustomAnnotator(CustomAnnotatorSettings(path=f"{name}:Words", arguments={"good": "wall"}))
    asked = [AnnotationRequest(key=0, key_text="It's a wall.", raw_text="It's a wall.")]
    (label,) = annotator.annotate(asked, annotator.goal)
    assert (label.value, annotator.is_free) == (LabelValue.HELPFUL, True)
    sys.modules.pop(name)


def test_the_page_names_every_field_of_a_label():
    page = (DOCS / "annotators.md").read_text(encoding="utf-8")
    table = page[page.index("| field of `Label` |") :].partition("\n\n")[0]
    named = {word for row in table.splitlines()[2:] for word in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == {field.name for field in fields(Label)}


def test_the_captioner_of_the_page_gives_its_keys(module):
    (example,) = examples("annotation.md")
    name = module(example)
    captioner = FunctionCaptioner(FunctionCaptionerSettings(path=f"{name}:tell", keys_per_caption=2))
    said, silent = captioner.captions({"has_key": np.array([True, False])}, {})
    assert [(key.text, key.askable) for key in said.keys] == [
        ("You grab # keys.", True),
        ("You bump your head.", False),
    ]
    assert silent.keys == ()
    sys.modules.pop(name)
