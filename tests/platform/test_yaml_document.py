from __future__ import annotations

import math

import pytest
import yaml

from onibi.platform.errors import ConfigError
from onibi.platform.yaml_document import Document, parse_document, parse_value, read_document, to_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 0.0001),
        ("1E5", 100000.0),
        ("-2.5e+3", -2500.0),
        (".5", 0.5),
        ("3.", 3.0),
        ("1_000_000", 1000000),
        ("1_0.5", 10.5),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("-7", -7),
        ("off", "off"),
        ("no", "no"),
        ("Yes", "Yes"),
        ("12:30", "12:30"),
        ("2024-01-31", "2024-01-31"),
        ("1.2.3", "1.2.3"),
        ("1__0", "1__0"),
        ("e5", "e5"),
        ("true", True),
        ("False", False),
        ("", None),
        ("~", None),
        ("null", None),
        ("'1e-4'", "1e-4"),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("[1, [a, 2.0]]", [1, ["a", 2.0]]),
        ("{a: {b: off}}", {"a": {"b": "off"}}),
    ],
)
def test_values_are_read_after_the_core_schema(text, value):
    found = parse_value(text, "--set x")
    assert (found, type(found)) == (value, type(value))


def test_not_a_number_is_read():
    assert math.isnan(parse_value(".nan", "x"))


@pytest.mark.parametrize(
    "text", ["1e-4", "off", "12:30", "null", "", "010", "1_000", "0x1", "=", "<<", "~", "a: b", "# c", "é"]
)
def test_text_that_looks_like_something_else_stays_text_for_us_and_for_others(text):
    written = to_yaml({"key": text, text or "empty": 1})
    assert parse_document(written, "x").mapping["key"] == text
    assert yaml.safe_load(written)["key"] == text


def test_every_key_and_item_has_its_line():
    document = parse_document("a: 1\nb:\n  c:\n    - x\n    - y\n", "run.yaml")
    assert document.mapping == {"a": 1, "b": {"c": ["x", "y"]}}
    assert document.place(("a",)) == "run.yaml:1"
    assert document.place(("b", "c", 1)) == "run.yaml:5"
    assert document.place(("b", "c", 7)) == "run.yaml:3"  # the closest around it
    assert document.place(("z",)) == "run.yaml"


def test_anchors_and_merge_keys_work_and_own_keys_win():
    text = "base: &base {x: 1, y: 2}\nother:\n  <<: *base\n  y: 3\n"
    assert parse_document(text, "x").mapping["other"] == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3", "run.yaml:3: 'a' stands here and on line 1; leave one of them out."),
        ("s:\n  a: 1\n  a: 1", "run.yaml:3: 'a' stands here and on line 2; leave one of them out."),
        ("1: x", "run.yaml:1: a key is 1, expected text; write it in quotes."),
        ("true: x", "run.yaml:1: a key is True, expected text; write it in quotes."),
        ("[a]: x", "run.yaml:1: a key is a list or mapping, expected text; write it in quotes."),
        ("- a", "run.yaml: holds list at the top, expected a mapping of settings (key: value)."),
        ("just text", "run.yaml: holds str at the top, expected a mapping"),
        ("a: [1, 2", "run.yaml:1: not YAML: "),
        ("a: b: c", "run.yaml:1: not YAML: "),
        ("a:\n\t- b", "run.yaml:2: not YAML: "),
        ("a: !!python/object:os.system x", "run.yaml:1: not YAML: "),
        ("a: *nowhere", "run.yaml:1: not YAML: "),
        ("a: &loop\n  b: *loop", "run.yaml:1: a.b contains itself through an alias."),
        ("a: 1\n---\nb: 2", "run.yaml:2: not YAML: "),
        ("a: \x00", "run.yaml: not YAML: "),
        ("a: " + "[" * 5000, "run.yaml: not YAML: "),
    ],
)
def test_what_is_no_settings_text_is_refused_with_its_line(text, expected):
    with pytest.raises(ConfigError) as caught:
        parse_document(text, "run.yaml")
    assert str(caught.value).startswith(expected)


def test_files_that_cannot_be_read_are_told_by_name(tmp_path):
    missing, binary = tmp_path / "missing.yaml", tmp_path / "binary.yaml"
    binary.write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match=r"missing\.yaml: cannot be read \(No such file or directory\)"):
        read_document(missing)
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\)"):
        read_document(tmp_path)
    with pytest.raises(ConfigError, match=r"binary\.yaml: byte 3 is not UTF-8"):
        read_document(binary)


def test_a_section_is_placed_at_its_line_and_at_every_override_inside_it():
    document = Document(
        source="run.yaml",
        mapping={},
        places={
            ("part",): "run.yaml:3",
            ("part", "size"): "--set part.size=9",
            ("part", "label"): "run.yaml:5",
            ("other",): "--set other.x=1",
            ("other", "x"): "--set other.x=1",
        },
    )
    assert document.place(("part",)) == "run.yaml:3 with --set part.size=9"
    assert document.place(("part", "size")) == "--set part.size=9"
    assert document.place(("part", "label")) == "run.yaml:5"
    assert document.place(("other",)) == "--set other.x=1"
    assert document.place(()) == "run.yaml with --set part.size=9, --set other.x=1"
    assert document.place(("absent",)) == "run.yaml"
