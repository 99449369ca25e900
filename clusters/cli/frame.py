"""What all commands share: options that several take, and how errors are told."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onibi.platform.errors import ConfigError, OnibiError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn

PRESETS = "onibi.clusters.presets"
"""The package whose YAML files are the presets."""

_CONFIG_EXIT, _ERROR_EXIT = 2, 1
_LOG_WIDTH = 240
_RUNS_FOLDER_VARIABLE = "ONIBI_RUNS_FOLDER"
INTERRUPTED_EXIT = 130  # as shells tell it: 128 + SIGINT

Debug = Annotated[bool, typer.Option("--debug", help="On an error show the traceback; log more.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting, as learner.discount=0.99; may be repeated."),
]
RunsFolder = Annotated[
    Path, typer.Option("--runs-folder", envvar=_RUNS_FOLDER_VARIABLE, file_okay=False, help="Where runs are kept.")
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's name or folder, or 'last'.")]
JOB_RUNS_FOLDER = Path("~/onibi-runs")
"""Of Ray jobs: their working folder is a copy that Ray removes, and runs must outlive it."""
DEFAULT_RUNS_FOLDER = JOB_RUNS_FOLDER if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else Path("runs")


def wide_console(*, stderr: bool = False) -> Console:
    """Of the terminal's width; wide where the output is a file or a pipe, which have room for whole rows."""
    from rich.console import Console

    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=_LOG_WIDTH)


def tell(console: Console, line: str) -> None:
    """Print plain text: broken between words on a terminal, in one line elsewhere, where programs may read it."""
    from rich.text import Text

    console.print(Text(line), soft_wrap=not console.is_terminal)


def show_names(summaries: Mapping[str, str]) -> None:
    """A name and what it stands for in each line; summaries are broken where a terminal ends, and nowhere else."""
    console = wide_console()
    if console.is_terminal:
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True, style="bold")
        for name, summary in summaries.items():
            table.add_row(Text(name), Text(summary))
        console.print(table)
        return
    width = max(map(len, summaries), default=0)
    for name, summary in summaries.items():
        print(f"{name:{width}}  {summary}")


def progress_bar(count: ProgressColumn, *more: ProgressColumn, transient: bool = False) -> Progress:
    """On stderr: what is done, a bar, how much of it by ``count``, the time left, and ``more``."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), count, TimeRemainingColumn(), *more)
    return Progress(*columns, console=Console(stderr=True), transient=transient)


def origin_of(runs_folder: Path) -> str:
    """The option or variable that named the folder of runs, as it was written; "" for the default folder."""
    if (given := os.environ.get(_RUNS_FOLDER_VARIABLE)) and Path(given) == runs_folder:
        return f"{_RUNS_FOLDER_VARIABLE}={given}"
    return "" if runs_folder == DEFAULT_RUNS_FOLDER else f"--runs-folder {runs_folder}"


@contextmanager
def told(*, debug: bool, runs_folder: Path | None = None) -> Iterator[None]:
    """Around a command's body: an OnibiError becomes one message on stderr and an exit code.

    Where it is about a ``runs_folder`` that is not there, it also says what named that. Exit code 2 for settings and
    names that are not allowed, 1 for all other errors that Onibi raises on purpose and for files that may not be read
    or written, 130 for Ctrl-C. Any other exception is a defect of ours and keeps its traceback.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("onibi").setLevel(logging.DEBUG if debug else logging.INFO)
    try:
        yield
    except OnibiError as error:
        if debug:
            traceback.print_exc()
        print(f"onibi: {error}{_named_by(runs_folder, str(error))}", file=sys.stderr)
        raise typer.Exit(_CONFIG_EXIT if isinstance(error, ConfigError) else _ERROR_EXIT) from error
    except PermissionError as error:
        if debug or error.filename is None:
            raise
        print(f"onibi: {error.filename}: {error.strerror}. Ask its owner, or name another place.", file=sys.stderr)
        raise typer.Exit(_ERROR_EXIT) from error
    except KeyboardInterrupt as interrupt:
        print("onibi: interrupted", file=sys.stderr)
        raise typer.Exit(INTERRUPTED_EXIT) from interrupt


def _named_by(runs_folder: Path | None, message: str) -> str:
    if runs_folder is None or not (origin := origin_of(runs_folder)):
        return ""
    root = runs_folder.expanduser()
    is_told = not root.exists() and (str(runs_folder) in message or str(root) in message)
    return f" That folder is what {origin} names." if is_told else ""
