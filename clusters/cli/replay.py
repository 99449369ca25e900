"""``onibi replay``: look into a run's replay log, move it, ask it, check it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from onibi.clusters.cli.command_help import HelpfulCommand
from onibi.clusters.cli.frame import DEFAULT_RUNS_FOLDER, Debug, RunsFolder, progress_bar, told, wide_console
from onibi.platform.counted import counted

if TYPE_CHECKING:
    from onibi.platform.replay.datasets.log_summary import LogSummary
    from onibi.platform.replay.datasets.parquet_files import Transfer

app = typer.Typer(
    name="replay",
    help="Look into a run's replay log, export and import it, ask it by SQL, check it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

LogName = Annotated[
    str,
    typer.Argument(metavar="RUN", help="A run's name or folder, 'last', or a log's own folder or address (s3://…)."),
]
_CELL_WIDTH = 60


@app.command(cls=HelpfulCommand)
def info(
    run: LogName,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
    runs_folder: RunsFolder = DEFAULT_RUNS_FOLDER,
    debug: Debug = False,
) -> None:
    """Tell what a log holds: rows, steps, episodes, returns, columns, bytes.

    Examples:
      onibi replay info last
      onibi replay info s3://bucket/onibi/5f3c… --json
    """
    with told(debug=debug, runs_folder=runs_folder):
        from onibi.platform.replay.datasets.log_location import find_log
        from onibi.platform.replay.datasets.log_summary import summarize

        summary = summarize(find_log(runs_folder, run).open())
        if as_json:
            print(json.dumps(summary.to_json(), indent=2))
        else:
            _print_summary(summary)


@app.command(name="export", cls=HelpfulCommand)
def export_log(
    run: LogName,
    path: Annotated[str, typer.Argument(metavar="PATH", help="A new folder; Parquet also goes to an address.")],
    to: Annotated[Literal["parquet", "minari"], typer.Option("--to", help="The format.")] = "parquet",
    pieces: Annotated[
        Literal["ended", "begun", "all"],
        typer.Option(
            help="Minari: whole episodes alone; also those cut off, marked truncated; also those without a beginning."
        ),
    ] = "begun",
    runs_folder: RunsFolder = DEFAULT_RUNS_FOLDER,
    debug: Debug = False,
) -> None:
    """Write a log as Parquet files or as a Minari dataset. Every checksum is compared on the way.

    Examples:
      onibi replay export last out/corridor
      onibi replay export nethack-oni-1 datasets/nethack-v0 --to minari
    """
    with told(debug=debug, runs_folder=runs_folder):
        from onibi.platform.replay.datasets.log_location import find_log
        from onibi.platform.replay.datasets.minari_export import export_minari
        from onibi.platform.replay.datasets.parquet_files import export_parquet

        log = find_log(runs_folder, run).open()
        _refuse_empty(log)
        with _disks_told(path), _reading(log, "exporting"):
            moved = export_parquet(log, path) if to == "parquet" else export_minari(log, path, pieces=pieces)
        _print_transfer(moved)


@app.command(name="import", cls=HelpfulCommand)
def import_log(
    path: Annotated[
        str,
        typer.Argument(metavar="PATH", help="What `export --to parquet` wrote, or a Minari dataset by folder or name."),
    ],
    to: Annotated[str, typer.Option("--to", metavar="LOG", help="A new folder or address for the log.")],
    lanes: Annotated[
        int, typer.Option(min=1, max=4096, metavar="N", help="Minari: episodes go to so many lanes in turn.")
    ] = 1,
    debug: Debug = False,
) -> None:
    """Make a log of Parquet files or of a Minari dataset, to query it or to learn from it.

    Examples:
      onibi replay import out/corridor --to logs/corridor
      onibi replay import D4RL/minigrid/fourrooms-v0 --to logs/fourrooms --lanes 8
    """
    with told(debug=debug):
        from onibi.platform.errors import ConfigError, SpecError
        from onibi.platform.replay.datasets.minari_import import find_minari, import_minari
        from onibi.platform.replay.datasets.parquet_files import import_parquet

        data = find_minari(path)
        try:
            with _disks_told(to):
                transfer = import_parquet(path, to) if data is None else import_minari(data, to, lanes=lanes)
        except SpecError as error:  # what was named is of the wrong kind, as a wrong name is
            raise ConfigError(str(error)) from error
        _print_transfer(transfer)


@app.command(name="query", cls=HelpfulCommand)
def query_log(
    run: LogName,
    sql: Annotated[
        str, typer.Argument(metavar="SQL", help="One SELECT over rows, captions, episodes, texts and labels.")
    ],
    output_format: Annotated[
        Literal["table", "csv", "json", "arrow"],
        typer.Option("--format", help="A table for reading, CSV, JSON lines, or an Arrow file in --output."),
    ] = "table",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", dir_okay=False, help="Write to this file, not to the screen.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=0, metavar="N", help="So many rows at most; 40 where a table is shown.")
    ] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Ask the ring of a run that trains on this machine, not its log.")
    ] = False,
    runs_folder: RunsFolder = DEFAULT_RUNS_FOLDER,
    debug: Debug = False,
) -> None:
    r"""Ask a log by SQL (DuckDB). Only reads, and reads nothing but the views.

    Views: rows (lane, generation and the run's columns), captions, episodes, texts (of Text columns, which hold
    hashes), and where the run has any, labels. Names with a dot need quotes, as those of a Dict observation have;
    columns of a fixed size are arrays, counted from 1.

    Examples:
      onibi replay query last "select count(*) from rows where role = 0"
      onibi replay query last "select text, count(*) from rows \
          join captions using (caption_id) group by text"
      onibi replay query last "select observation[1], reward from rows" \
          --format arrow --output rewards.arrow
      onibi replay query last "select max(step) from rows" --live
    """
    with told(debug=debug, runs_folder=runs_folder):
        from onibi.platform.errors import ConfigError
        from onibi.platform.replay.datasets import query_output
        from onibi.platform.replay.datasets.sql_query import query

        if output_format == "arrow" and output is None:
            raise ConfigError("replay query: --format arrow needs --output FILE.")
        if output_format == "table" and output is not None:
            raise ConfigError("replay query: a table goes to the screen; --output needs --format csv, json or arrow.")
        schema, batches = query(_views(runs_folder, run, live=live), sql)
        if output_format == "table":
            _print_rows(schema, batches, 40 if limit is None else limit)
            return
        chosen = query_output.limited(batches, limit)
        if output is None:
            write = query_output.write_csv if output_format == "csv" else query_output.write_json
            write(schema, chosen, sys.stdout)
            return
        try:
            rows = query_output.write_file(schema, chosen, output_format, output)
        except OSError as error:
            raise ConfigError(f"{output}: not written ({error}). Choose another file.") from error
        print(f"{counted(rows, 'row')} in {output}", file=sys.stderr)


@app.command(cls=HelpfulCommand)
def verify(
    run: LogName,
    runs_folder: RunsFolder = DEFAULT_RUNS_FOLDER,
    debug: Debug = False,
) -> None:
    """Check every checksum, row count, generation and episode border. Exit code 1 where anything is damaged.

    Examples:
      onibi replay verify last
    """
    with told(debug=debug, runs_folder=runs_folder):
        from onibi.platform.replay.datasets.log_location import find_log
        from onibi.platform.replay.datasets.row_check import verify_log

        log = find_log(runs_folder, run).open()
        with _reading(log, "verifying", times=2):
            damage, notes = verify_log(log)
        for note in notes:
            print(f"note    {note}")
        for found in damage:
            print(f"damage  {found.name}: {found.fault}")
        what = f"{log.location}: {counted(len(log.segments), 'segment')}, {counted(log.rows, 'row')}"
        whole = "whole" if log.segments else "nothing is sealed yet"
        print(f"{what}: {counted(len(damage), 'fault')}" if damage else f"{what}: {whole}")
    if damage:
        raise typer.Exit(1)


def _views(runs_folder: Path, name: str, *, live: bool) -> dict[str, Any]:
    from onibi.platform.errors import ConfigError, ReplayError
    from onibi.platform.replay.datasets import sql_query
    from onibi.platform.replay.datasets.live_ring import live_rows
    from onibi.platform.replay.datasets.log_location import find_log
    from onibi.platform.replay.text_table import TextTable
    from onibi.platform.run_folder import find_run

    if live:
        run = find_run(runs_folder, name)
        views = {"rows": live_rows(run), **sql_query.checkpoint_views(run.checkpoints)}
        try:
            return {**views, "texts": find_log(runs_folder, name).open().texts()}
        except (ConfigError, ReplayError):  # the log is off, or nothing of it is sealed yet
            return {**views, "texts": TextTable().to_arrow()}
    named = find_log(runs_folder, name)
    log = named.open()
    _refuse_empty(log)
    labels = sql_query.checkpoint_views(named.run.checkpoints) if named.run else {}
    return {**labels, **sql_query.log_views(log)}


@contextmanager
def _reading(log: Any, what: str, times: int = 1) -> Iterator[None]:
    """A bar over the log's rows on a terminal, nothing elsewhere. ``times``: how often each row is read."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.progress import TaskProgressColumn

    with progress_bar(TaskProgressColumn(), transient=True) as bar:
        task = bar.add_task(f"{what} {log.rows:,} rows", total=times * log.rows)
        log.on_rows = lambda rows: bar.advance(task, rows)
        yield


@contextmanager
def _disks_told(place: str) -> Iterator[None]:
    """A disk or store that refuses in the middle is no defect of ours: told in one message."""
    from pyarrow import ArrowException

    from onibi.platform.errors import ReplayError

    try:
        yield
    except (OSError, ArrowException) as error:
        raise ReplayError(
            f"{place}: not written ({error}). Nothing of it is kept; free some space, or take another place."
        ) from error


def _refuse_empty(log: Any) -> None:
    from onibi.platform.errors import ConfigError

    if log.unreadable and not log.segments:
        raise ConfigError(f"{log.location}: no segment of this log can be read; `onibi replay verify` tells why.")
    if not log.segments:
        raise ConfigError(f"{log.location}: no segment of this log is sealed yet. Wait some seconds, or use --live.")


def _print_transfer(transfer: Transfer) -> None:
    print(f"{counted(transfer.rows, 'row')}, {counted(transfer.episodes, 'episode')} in {transfer.location}")
    for note in transfer.notes:
        print(f"  {note}")


def _print_summary(summary: LogSummary) -> None:
    from rich.table import Table

    def told_figure(value: float | None, form: str = ",") -> str:
        return "unknown, a file is damaged" if value is None else format(value, form)

    returns = summary.returns
    span = (
        "none has ended" if returns is None else f"{returns.mean:.4g} (from {returns.least:.4g} to {returns.most:.4g})"
    )
    figures = {
        "log": summary.location,
        "run id": ", ".join(summary.run_ids) or "–",
        "rows": f"{summary.rows:,}, of them {told_figure(summary.steps)} steps",
        "lanes": f"{summary.lanes:,}" + (f" in {summary.shards} shards" if summary.shards > 1 else ""),
        "episodes ended": told_figure(summary.episodes),
        "return": span,
        "episode length": "–" if summary.episode_length_mean is None else f"{summary.episode_length_mean:.4g}",
        "captions": told_figure(summary.captions),
        **({"texts": told_figure(summary.texts)} if summary.texts != 0 else {}),
        "segments": f"{summary.segments:,}",
        "on disk": f"{summary.bytes / 1e6:,.2f} MB"
        + (f", {summary.bytes / summary.rows:,.1f} bytes a row" if summary.rows else ""),
        "sealed": f"{summary.first_sealed} to {summary.last_sealed}" if summary.first_sealed else "nothing yet",
        "torn files": ", ".join(summary.torn) or "none",
        "damaged manifests": ", ".join(summary.unreadable) or "none",
    }
    console = wide_console()
    head = Table(show_header=False, box=None)
    for name, text in figures.items():
        head.add_row(name, text)
    console.print(head)
    columns = Table()
    for name in ("column", "dtype", "shape", "unit", "bounds"):
        columns.add_column(name, overflow="fold", no_wrap=name == "column")
    for column in summary.columns:
        shape = " × ".join(map(str, column.shape))
        bounds = "" if column.low is None or column.high is None else f"{column.low:g} to {column.high:g}"
        columns.add_row(column.name, column.dtype, shape, column.unit, bounds)
    if summary.columns:
        console.print(columns)


def _print_rows(schema: Any, batches: Any, limit: int) -> None:
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    from onibi.platform.annotation.captions import printable
    from onibi.platform.replay.datasets.query_output import cell, fitting_columns, limited

    rows = [
        [printable(cell(value, _CELL_WIDTH)) for value in values]  # captions and texts come from outside
        for batch in limited(batches, limit + 1)
        for values in zip(*(column.to_pylist() for column in batch.columns), strict=True)
    ]
    shown = rows[:limit]
    widths = [3 + max(map(cell_len, column)) for column in zip(schema.names, *shown, strict=True)]  # 3: its borders
    console = wide_console()
    if not console.is_terminal:
        console.width = sum(widths) + 1
    fitting = fitting_columns(widths, console.width - 1)
    table = Table()
    for place in fitting:
        table.add_column(Text(schema.names[place]), no_wrap=True)
    for row in shown:
        table.add_row(*(Text(row[place]) for place in fitting))
    console.print(table)
    if len(fitting) < len(widths):
        left_out = ", ".join(name for place, name in enumerate(schema.names) if place not in fitting)
        print(f"columns that do not fit beside these: {left_out}; select fewer, or take --format csv")
    more = len(rows) > limit
    print(f"the first {limit} rows; --limit shows more" if more else counted(len(rows), "row"))
