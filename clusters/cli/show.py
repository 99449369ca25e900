"""Commands that only look: runs, presets, doctor."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from onibi.clusters.cli.frame import (
    DEFAULT_RUNS_FOLDER,
    PRESETS,
    Debug,
    RunsFolder,
    origin_of,
    show_names,
    told,
    wide_console,
)


def runs(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON list.")] = False,
    runs_folder: RunsFolder = DEFAULT_RUNS_FOLDER,
    debug: Debug = False,
) -> None:
    """List the runs kept in a folder and how each ended, the one used last at the bottom.

    Examples:
      onibi runs
      onibi runs --runs-folder /data/runs
    """
    with told(debug=debug, runs_folder=runs_folder):
        from onibi.clusters.reports.run_listing import listed_runs, runs_table
        from onibi.platform.errors import ConfigError
        from onibi.platform.run_folder import emptiness

        source = context.get_parameter_source("runs_folder")
        if source is not None and source.name == "COMMANDLINE" and not runs_folder.expanduser().is_dir():
            raise ConfigError(f"{runs_folder}: {emptiness(runs_folder)}. Allowed: a folder that holds runs.")
        found = listed_runs(runs_folder)
        if not found and not runs_folder.expanduser().is_dir() and (origin := origin_of(runs_folder)):
            print(f"{origin}: {emptiness(runs_folder)}", file=sys.stderr)
        if as_json:
            print(json.dumps([dataclasses.asdict(run) for run in found], indent=2))
        elif found:
            wide_console().print(runs_table(found))
        else:
            print(f"No runs in {runs_folder}. Start one: onibi train cartpole-dqn")


def presets(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Print this preset's YAML.")] = None,
    show: Annotated[str | None, typer.Option("--show", metavar="NAME", help="The same.")] = None,
    debug: Debug = False,
) -> None:
    """List the ready runs that ship with Onibi, or print one.

    Examples:
      onibi presets
      onibi presets minihack-oni > my-run.yaml
    """
    with told(debug=debug):
        from onibi.platform.presets import preset_names, preset_summary, preset_text

        chosen = show if name is None else name
        if chosen is not None:
            print(preset_text(PRESETS, chosen), end="")
            return
        show_names({preset: preset_summary(PRESETS, preset) for preset in preset_names(PRESETS)})


def doctor(
    config: Annotated[
        str | None,
        typer.Argument(
            metavar="PRESET|FILE|RUN",
            help="What it needs, its model servers, and what else is not good. A run by name or folder, or 'last'; "
            "where a preset and a run have one name, it means the preset, and runs/NAME the run.",
        ),
    ] = None,
    runs_folder: RunsFolder = DEFAULT_RUNS_FOLDER,
    shared_memory: Annotated[
        Path, typer.Option("--shared-memory", help="Where replay rings will lie (the setting replay.folder).")
    ] = Path("/dev/shm"),
    address: Annotated[
        str | None, typer.Option("--address", envvar="RAY_ADDRESS", help="A Ray cluster to look for as well.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Tell what is installed, reachable and missing. Exit code 1 where something needed is missing.

    Examples:
      onibi doctor
      onibi doctor minihack-oni
      onibi doctor last
      onibi doctor clusters/llm_serving/judge-ollama.yaml
    """
    with told(debug=debug, runs_folder=runs_folder):
        from rich.console import Console

        from onibi.clusters.doctor import examine
        from onibi.clusters.reports.doctor_findings import doctor_table, exit_code

        rows = examine(runs_folder, shared_memory=shared_memory, ray_address=address, config=config)
        Console().print(doctor_table(rows))
    raise typer.Exit(exit_code(rows))
