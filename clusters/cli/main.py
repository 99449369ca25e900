"""The command ``onibi``. Nothing heavy is imported before a command runs, so that --help answers at once."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from onibi.clusters.cli import annotate, dashboard, evaluate, experiment, replay, rewards, run, show
from onibi.clusters.cli.command_help import HelpfulCommand

app = typer.Typer(
    name="onibi",
    help="Distributed actor-learner reinforcement learning in which a language model lights the way.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (
    run.train,
    run.resume,
    evaluate.evaluate,
    annotate.annotate,
    experiment.experiment,
    run.submit,
    show.runs,
    show.presets,
    dashboard.dashboard,
    show.doctor,
):
    app.command(cls=HelpfulCommand)(_command)
app.add_typer(replay.app)
app.add_typer(rewards.app)


def _version(asked: bool) -> None:
    if not asked:
        return
    try:
        print(f"onibi {metadata.version('onibi')}")
    except metadata.PackageNotFoundError:  # a plain copy of the folders, as `onibi submit` stages it
        print("onibi, version not known: it runs from a copy that was not installed")
    raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it and end.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the console script and of ``python -m onibi``."""
    # The installed script, unlike python -m, does not look for modules of the user's here; last, as a folder here may
    # have the name of a package.
    try:
        here = str(Path.cwd())
    except FileNotFoundError:
        sys.exit("onibi: the working folder was removed. Go to one that is there (cd), and try again.")
    if here not in sys.path:
        sys.path.append(here)
    app(prog_name="onibi")
