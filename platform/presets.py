"""Ready runs that ship in a package, and run files that build on them.

A preset is a YAML file in a package's folder; its name is the file's without ``.yaml``, its summary the file's first
comment. A run file, preset or not, may start with ``extends: NAME``: it then holds only what differs from preset NAME.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from onibi.platform.config_merge import merge
from onibi.platform.config_words import nearest
from onibi.platform.errors import ConfigError
from onibi.platform.yaml_document import Document, parse_document, read_document

_SUFFIX, _EXTENDS = ".yaml", "extends"


def preset_names(package: str) -> list[str]:
    """Names of the presets in ``package`` (for example ``onibi.clusters.presets``), sorted."""
    return sorted(path.stem for path in _folder(package).glob(f"*{_SUFFIX}"))


def preset_text(package: str, name: str) -> str:
    """The preset's YAML as it stands. Raises: ConfigError where there is none of this name."""
    known = preset_names(package)
    if name not in known:
        raise ConfigError(f"preset {name!r} is unknown.{nearest(name, known)} Allowed: {', '.join(known)}.")
    return (_folder(package) / f"{name}{_SUFFIX}").read_text(encoding="utf-8")


def preset_summary(package: str, name: str) -> str:
    """The preset's first comment, in one line; empty where it starts with something else."""
    words: list[str] = []
    for line in preset_text(package, name).splitlines():
        if not line.startswith("#") or (words and not line.strip("# ")):
            break
        words.append(line.strip("# "))
    return " ".join(words)


def find_document(name_or_path: str | Path, package: str) -> Document:
    """The run file that a user names, with what it extends already under it.

    Args:
        name_or_path: a preset's name, or a path: with a folder, ending in .yaml or .yml, or of a file that exists.
        package: where the presets are.

    Raises:
        ConfigError: no such preset or file, not YAML, or presets that extend each other in a ring.
    """
    name = str(name_or_path)
    path = Path(name).expanduser()
    if isinstance(name_or_path, Path) or path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        return _extended(read_document(path), package, ())
    known = preset_names(package)
    if name not in known and path.is_file():
        return _extended(read_document(path), package, ())
    if name not in known:
        raise ConfigError(
            f"{name!r} is neither a preset nor a file.{nearest(name, known)} Presets: {', '.join(known)}. "
            "`onibi presets` describes them; a file of your own is named by its path."
        )
    return _preset(name, package, ())


def _folder(package: str) -> Path:
    # Not importlib.resources: in an editable install a package without __init__.py has a second, made-up entry in its
    # path (setuptools' finder), at which importlib.resources raises NotADirectoryError.
    folders = [Path(entry) for entry in importlib.import_module(package).__path__]
    for folder in folders:
        if folder.is_dir():
            return folder
    raise ConfigError(
        f"the presets of {package} are not on disk; looked in {', '.join(map(str, folders))}. Install again."
    )


def _preset(name: str, package: str, around: tuple[str, ...]) -> Document:
    if name in around:
        raise ConfigError(
            f"presets extend each other in a ring: {' → '.join((*around, name))}. Leave one 'extends' out."
        )
    return _extended(parse_document(preset_text(package, name), f"preset {name}"), package, (*around, name))


def _extended(document: Document, package: str, around: tuple[str, ...]) -> Document:
    if _EXTENDS not in document.mapping:
        return document
    base = document.mapping[_EXTENDS]
    place = document.place((_EXTENDS,))
    if not isinstance(base, str):
        raise ConfigError(f"{place}: extends is {base!r}; allowed: the name of one preset.")
    rest = {key: value for key, value in document.mapping.items() if key != _EXTENDS}
    top = Document(source=document.source, mapping=rest, places=document.places)
    try:
        return merge(_preset(base, package, around), top)
    except ConfigError as error:
        raise ConfigError(f"{place}: extends: {error}") from error
