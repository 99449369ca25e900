"""The countable habits of the house style, read from the tree. ruff and mypy check the others."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("platform", "actors", "learners", "clusters", "infra")
OURS = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)
SOURCES = [*sorted(OURS), ROOT / "__main__.py"]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MOST_LINES = 400
LEAST_DOCUMENTED = 0.9
NO_NOUNS = {"util", "utils", "misc", "common", "helper", "helpers", "tools", "stuff"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def collect(find, paths=SOURCES) -> list[str]:
    """``file:line what`` for all that ``find`` yields in the files."""
    return [f"{name_of(path)}:{line} {what}" for path in paths for line, what in find(path.read_text(encoding="utf-8"))]


def done_names(source: str):
    """Names that hide whether an episode terminated or was truncated; asking a future ``.done()`` is no such name."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)):
                pass
            case ast.Attribute(attr=name, ctx=ast.Store()) | ast.FunctionDef(name=name):
                pass
            case ast.Constant(value=str(name)):
                pass
            case _:
                continue
        if re.fullmatch(r"(.*_)?dones?(_.*)?", name):
            yield node.lineno, name


def print_calls(source: str):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield node.lineno, "print"


def promises(source: str):
    """Comments that put something off without an issue's number."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and re.search(r"\b(TODO|FIXME|XXX|HACK)\b(?!\(#\d+\))", token.string):
            yield token.start[0], token.string


def public_definitions(source: str):
    """(line, name, documented) of the module and its public classes, functions and methods."""
    tree = ast.parse(source)
    yield 1, "module", bool(ast.get_docstring(tree))

    def inside(body, prefix):
        for node in body:
            if not isinstance(node, (*FUNCTIONS, ast.ClassDef)) or node.name.startswith("_"):
                continue
            if "overload" not in map(ast.unparse, node.decorator_list):
                yield node.lineno, prefix + node.name, bool(ast.get_docstring(node))
            if isinstance(node, ast.ClassDef):
                yield from inside(node.body, f"{node.name}.")

    yield from inside(tree.body, "")


def is_settings(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef) and "Settings" in map(ast.unparse, node.bases)


def unsealed_settings(source: str):
    """Settings classes that are not ``@dataclass(frozen=True, kw_only=True)``."""
    for node in ast.walk(ast.parse(source)):
        if not is_settings(node):
            continue
        calls = [item for item in node.decorator_list if isinstance(item, ast.Call)]
        given = {keyword.arg for call in calls for keyword in call.keywords if ast.unparse(keyword.value) == "True"}
        if not {"frozen", "kw_only"} <= given:
            yield node.lineno, node.name


def second_defaults(source: str):
    """Arguments with a default beside the settings that hold it.

    In a constructor that takes ``settings`` a figure, text or switch as default (a clock is none); in a module with a
    settings class any default of an argument called like one of its fields.
    """
    tree = ast.parse(source)
    fields = {
        item.target.id
        for node in ast.walk(tree)
        if is_settings(node)
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }
    for node in ast.walk(tree):
        if not isinstance(node, FUNCTIONS):
            continue
        positional = [*node.args.posonlyargs, *node.args.args]
        pairs = list(zip(reversed(positional), reversed(node.args.defaults), strict=False))
        pairs += zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
        names = {arg.arg for arg in [*positional, *node.args.kwonlyargs]}
        owner = node.name == "__init__" and "settings" in names
        for arg, default in pairs:
            value = getattr(default, "value", None)
            if default is not None and (arg.arg in fields or (owner and isinstance(value, int | float | str))):
                yield node.lineno, f"{node.name}({arg.arg}=…)"


def foreign_exceptions(source: str):
    """Exception classes of our own outside the tree of OnibiError; private ones never leave their module."""
    foreign = re.compile(r"(Base)?Exception|(Value|Type|Runtime|Key|Index|OS|Lookup|Arithmetic)Error")
    for node in ast.walk(ast.parse(source)):
        bases = [ast.unparse(base) for base in getattr(node, "bases", ())]
        if any(map(foreign.fullmatch, bases)) and not node.name.startswith("_"):
            yield node.lineno, f"{node.name}({', '.join(bases)})"


def late_annotations(source: str):
    """Files whose first statement after the docstring is not the import of annotations."""
    tree = ast.parse(source)
    body = tree.body[1:] if ast.get_docstring(tree) else tree.body
    if body and ast.unparse(body[0]) != "from __future__ import annotations":
        yield body[0].lineno, ast.unparse(body[0])[:40]


@pytest.mark.parametrize(
    ("find", "bad"),
    [
        (done_names, "done = terminated or truncated"),
        (done_names, "def step(dones): pass"),
        (done_names, "self.episode_done = True"),
        (done_names, "row['done'] = 1"),
        (print_calls, "def f():\n    print(1)"),
        (promises, "x = 1  # TODO: later"),
        (promises, "# FIXME"),
        (unsealed_settings, "@dataclass(frozen=True)\nclass A(Settings):\n    x: int = 1"),
        (unsealed_settings, "class A(Settings):\n    x: int = 1"),
        (second_defaults, "class A(Settings):\n    rate: float = 1.0\ndef f(rate=1.0): pass"),
        (second_defaults, "class A:\n    def __init__(self, settings, *, seed=1): pass"),
        (second_defaults, "class A:\n    def __init__(self, settings, seed=1): pass"),
        (foreign_exceptions, "class Broken(ValueError): pass"),
        (late_annotations, '"""Doc."""\nimport os'),
    ],
)
def test_each_search_finds_what_it_is_for(find, bad):
    assert len(list(find(bad))) == 1


@pytest.mark.parametrize(
    ("find", "good"),
    [
        (done_names, "if future.done(): abandoned = 1"),
        (promises, "# TODO(#12): when Ray answers"),
        (unsealed_settings, "@dataclass(frozen=True, kw_only=True)\nclass A(Settings):\n    x: int = 1"),
        (second_defaults, "class A(Settings):\n    rate: float = 1.0\ndef f(rate, other=2): pass"),
        (second_defaults, "class A:\n    def __init__(self, settings, clock=time.monotonic, names=None): pass"),
        (foreign_exceptions, "class LostError(OnibiError): pass"),
        (late_annotations, '"""Doc."""\nfrom __future__ import annotations\nimport os'),
    ],
)
def test_each_search_passes_what_is_allowed(find, good):
    assert list(find(good)) == []


def test_no_file_is_longer_than_400_lines():
    long = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES + TESTS}
    assert {path: lines for path, lines in long.items() if lines > MOST_LINES} == {}


def test_every_file_is_named_after_a_noun_of_the_domain():
    assert [name_of(path) for path in SOURCES + TESTS if path.stem.removeprefix("test_") in NO_NOUNS] == []


def test_no_name_says_done_where_an_episode_terminated_or_was_truncated():
    assert collect(done_names) == []


def test_only_the_command_line_prints():
    assert collect(print_calls, [path for path in SOURCES if not name_of(path).startswith("clusters/cli")]) == []


def test_nothing_is_put_off_without_an_issue_number():
    assert collect(promises, [path for path in SOURCES + TESTS if path != Path(__file__).resolve()]) == []


def test_nine_in_ten_public_definitions_are_documented():
    found = [
        (f"{name_of(path)}:{line} {name}", documented)
        for path in SOURCES
        for line, name, documented in public_definitions(path.read_text(encoding="utf-8"))
    ]
    missing = [where for where, documented in found if not documented]
    assert len(found) > 100
    assert 1 - len(missing) / len(found) >= LEAST_DOCUMENTED, missing


def test_settings_are_frozen_and_named():
    assert collect(unsealed_settings) == []
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES]
    assert sum(is_settings(node) for tree in trees for node in ast.walk(tree)) > 5


def test_every_default_stands_once():
    assert collect(second_defaults) == []


def test_all_exceptions_of_ours_derive_from_onibi_error():
    assert collect(foreign_exceptions, [path for path in SOURCES if name_of(path) != "platform/errors.py"]) == []


def test_annotations_are_postponed_in_every_file():
    assert collect(late_annotations, SOURCES + TESTS) == []
