"""Commands that only look: runs, presets, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onibi.clusters.cli_frame import DEFAULT_RUNS_FOLDER, PRESETS, Debug, RunsFolder, told


def runs(runs_folder: RunsFolder = DEFAULT_RUNS_FOLDER, debug: Debug = False) -> None:
    """List the runs kept in a folder, the one used last at the bottom.

    Example:

      onibi runs --runs-folder /data/runs
    """
    with told(debug=debug):
        from rich.console import Console
        from rich.table import Table

        from onibi.platform.run_folder import list_runs

        found = list_runs(runs_folder)
        if not found:
            print(f"No runs in {runs_folder}. Start one: onibi train cartpole-dqn")
            return
        table = Table("run", "status", "last used", "results")
        for run in found:
            record = run.record()
            results = ", ".join(f"{name} {value:g}" for name, value in record.results.items())
            killed = record.status == "running" and not run.is_held
            status = "killed: resume it" if killed else record.status
            table.add_row(run.name, status, record.used_at[:19].replace("T", " "), results)
        Console().print(table)


def presets(
    show: Annotated[str | None, typer.Option("--show", metavar="NAME", help="Print this preset's YAML.")] = None,
    debug: Debug = False,
) -> None:
    """List the ready runs that ship with Onibi, or print one.

    Examples:

      onibi presets

      onibi presets --show minihack-oni > my-run.yaml
    """
    with told(debug=debug):
        from onibi.platform.presets import preset_names, preset_summary, preset_text

        if show is not None:
            print(preset_text(PRESETS, show), end="")
            return
        names = preset_names(PRESETS)
        width = max(map(len, names), default=0)
        for name in names:
            print(f"{name:{width}}  {preset_summary(PRESETS, name)}")


def doctor(
    config: Annotated[
        str | None,
        typer.Argument(metavar="CONFIG", help="A preset or run file whose language model servers to look for."),
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

    Example:

      onibi doctor
      onibi doctor clusters/llm_serving/judge-ollama.yaml
    """
    with told(debug=debug):
        from rich.console import Console

        from onibi.clusters.doctor import doctor_table, examine, exit_code

        rows = examine(runs_folder, shared_memory=shared_memory, ray_address=address, config=config)
        Console().print(doctor_table(rows))
    raise typer.Exit(exit_code(rows))
