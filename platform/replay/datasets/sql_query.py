"""SQL over a log or a live ring: DuckDB reads the Arrow files in place, and nothing else."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from onibi.platform.checkpoint import list_checkpoints, load_checkpoint
from onibi.platform.errors import CheckpointError, ConfigError
from onibi.platform.replay.datasets.optional_packages import load_package
from onibi.platform.replay.log.log_reader import ReplayLog
from onibi.platform.replay.ring.row_table import rows_schema

log = logging.getLogger(__name__)

Views = Mapping[str, Any]
"""Arrow tables or datasets by the name that SQL has for them."""

_BATCH_ROWS = 65_536
T = TypeVar("T")


def log_views(log: ReplayLog) -> dict[str, Any]:
    """``rows``, ``captions``, ``episodes`` and ``texts`` of a log, the last one empty where it has no Text columns.

    Raises: ReplayError, SegmentError.
    """
    beside = {"captions": log.captions(), "episodes": log.episodes(), "texts": log.texts()}
    # DuckDB has no float of 16 bits; the scan widens them, batch by batch.
    return {"rows": log.dataset(widened(rows_schema(log.spec))), **beside}


def widened(schema: pa.Schema) -> pa.Schema:
    """The schema with float32 where it has float16."""
    fields = []
    for field in schema:
        if pa.types.is_float16(field.type):
            field = field.with_type(pa.float32())
        elif pa.types.is_fixed_size_list(field.type) and pa.types.is_float16(field.type.value_type):
            item = field.type.value_field.with_type(pa.float32())
            field = field.with_type(pa.list_(item, field.type.list_size))
        fields.append(field)
    return pa.schema(fields, metadata=schema.metadata)


def checkpoint_views(checkpoints: Path) -> dict[str, Any]:
    """``captions`` and ``labels`` of a run's newest whole checkpoint, where it has them."""
    if not list_checkpoints(checkpoints):
        return {}
    try:
        tables = load_checkpoint(checkpoints).tables
    except CheckpointError:
        return {}
    views: dict[str, Any] = {name: tables[name] for name in ("captions", "labels") if name in tables}
    if "captions" in views:  # there, a caption's id is its place
        numbers = pa.array(range(views["captions"].num_rows), pa.uint32())
        views["captions"] = views["captions"].add_column(0, "caption_id", numbers)
    return views


def query(views: Views, sql: str) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Run one statement that only reads, over the views and nothing else: no files, no network, no settings.

    Args:
        sql: one SELECT (WITH, FROM, DESCRIBE, SUMMARIZE) or EXPLAIN. Fixed-size lists are DuckDB arrays:
            ``observation[1]`` is the first element, ``list_sum(observation)`` their sum.
    Returns: the columns, and the rows as they are made; drawing them may raise the same errors.
    Raises: ConfigError with DuckDB's own message; KeyboardInterrupt.
    """
    duckdb = load_package("duckdb", "`onibi replay query`")
    faults = (duckdb.Error, RuntimeError, MemoryError, OSError, pa.ArrowException)
    try:
        statements = duckdb.extract_statements(sql)
        if len(statements) != 1:
            raise ConfigError(f"replay query: {len(statements)} statements in {sql!r}; allowed: one.")
        if statements[0].type not in (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN):
            kind = str(statements[0].type).rpartition(".")[2]
            raise ConfigError(f"replay query: {kind} is not allowed, as a query only reads; allowed: SELECT, EXPLAIN.")
        connection = duckdb.connect(":memory:")
    except (duckdb.Error, UnicodeError) as error:
        raise _told(error, views) from error
    work = _InterruptibleWork(connection.interrupt)

    def begin() -> pa.RecordBatchReader:
        for name, data in views.items():
            connection.register(name, data)
            _tell_renamed(name, data.schema.names, connection.table(name).columns)
        connection.execute("SET enable_external_access = false")
        return connection.sql(sql).to_arrow_reader(_BATCH_ROWS)

    def end() -> None:
        work.close()
        connection.close()

    try:
        reader = work.result(begin)
    except faults as error:
        end()
        raise _told(error, views) from error
    except BaseException:
        end()
        raise

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            while (batch := work.result(lambda: next(reader, None))) is not None:
                yield batch
        except faults as error:
            raise _told(error, views) from error
        finally:
            end()

    return reader.schema, batches()


class _InterruptibleWork:
    """A thread for calls that hear no signal while they run: DuckDB looks for Ctrl-C at some moments only."""

    def __init__(self, interrupt: Callable[[], None]) -> None:
        """``interrupt`` makes a running call end soon; harmless where none runs."""
        self._interrupt = interrupt
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="onibi-query")

    def result(self, call: Callable[[], T]) -> T:
        """What ``call`` returns. Raises: what it raises; KeyboardInterrupt at Ctrl-C, after it has ended."""
        future = self._pool.submit(call)
        try:
            while not wait([future], timeout=0.1).done:  # a wait without end may not hear the signal either
                pass
        except KeyboardInterrupt:
            while not future.done():  # an interrupt that comes before the call has begun is lost
                self._interrupt()
                wait([future], timeout=0.1)
            raise
        return future.result()

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown()


def _tell_renamed(view: str, names: Sequence[str], in_sql: Sequence[str]) -> None:
    """SQL names know no case: a column whose name differs from an earlier one's by that alone has another one there,
    and its own name answers with the earlier column.
    """
    renamed = [f"{name!r} is called {other!r}" for name, other in zip(names, in_sql, strict=True) if name != other]
    if renamed:
        log.warning("SQL does not tell upper and lower case apart: of %s, %s there", view, ", ".join(renamed))


def _told(error: Exception, views: Views) -> ConfigError:
    """DuckDB's message, with the views that there are. Raises: KeyboardInterrupt where that is what DuckDB tells."""
    if "interrupt" in f"{type(error).__name__} {error}".lower():
        raise KeyboardInterrupt from error
    if isinstance(error, FileNotFoundError) or "No such file" in str(error):
        return ConfigError(f"replay query: the run's retention removed a segment meanwhile ({error}). Ask again.")
    return ConfigError(f"replay query: {str(error).strip()}\nViews: {', '.join(views)}.")
