"""A log as Parquet files, and back.

FOLDER/
  rows-SSSS.parquet   one a shard: ``lane``, ``generation`` and every column of the run, rows in the log's order
  captions.parquet    texts and keys by ``caption_id``
  texts.parquet       what the hashes in Text columns stand for; left out where there are none
  episodes.parquet    figures of finished episodes

The rows' schema metadata hold all of the run's ReplaySpec, so that an import restores it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from onibi.platform.errors import ConfigError, SpecError
from onibi.platform.replay.datasets.log_builder import LogBuilder, captions_of, episodes_of
from onibi.platform.replay.datasets.row_columns import row_columns
from onibi.platform.replay.log.log_files import arrow_filesystem, local_folder
from onibi.platform.replay.log.log_reader import ReplayLog
from onibi.platform.replay.log.segment_format import CAPTION_SCHEMA, EPISODE_SCHEMA, spec_of_segment
from onibi.platform.replay.ring.row_table import rows_schema
from onibi.platform.replay.text_table import TEXT_SCHEMA, TextTable, text_columns
from onibi.platform.spec import ReplaySpec

DATASET_METADATA = b"onibi_dataset"
"""Key of the rows' schema metadata: JSON of format, run_id, shard."""

_FORMAT_VERSION = 1
_GROUP_BYTES = 32 << 20
"""Of a row group before compression: large enough to compress well, small enough to hold several in memory."""
_LEAST_GROUP_ROWS = 1_024
_ROWS_NAME = re.compile(r"rows-(\d{4})\.parquet")


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """What an export or import moved, and what it has to say about it."""

    location: str
    rows: int
    episodes: int
    notes: tuple[str, ...] = ()


def missing_rows(log: ReplayLog, read: int) -> tuple[str, ...]:
    """What there is to say where fewer rows were read than the log had when it was opened."""
    if read == log.rows:
        return ()
    return (f"{log.rows - read:,} rows left out: the run's retention removed them meanwhile",)


def group_rows(spec: ReplaySpec) -> int:
    """Rows of a row group, and of an imported segment."""
    return max(_LEAST_GROUP_ROWS, _GROUP_BYTES // spec.row_bytes)


def export_parquet(log: ReplayLog, location: str) -> Transfer:
    """Write the log as Parquet, one segment in memory at a time; checksums are compared on the way.

    Args:
        location: a folder that does not exist or is empty, or an address of a file system.
    Raises: ConfigError where something is there already; SegmentError where a segment is damaged: then nothing is left.
    """
    from pyarrow import parquet

    spec = log.spec
    filesystem, folder = _new_folder(location)
    files: list[str] = []
    try:
        # Before the rows that name them: a run's retention may remove segments meanwhile.
        episodes = log.episodes()
        tables = {"captions": log.captions(), "episodes": episodes}
        if text_columns(spec):
            tables["texts"] = log.texts()
        rows = 0
        # Rows last: what a kill leaves is refused by an import for want of them, not taken for rows without captions.
        for name, table in tables.items():
            files.append(f"{folder}/{name}.parquet")
            parquet.write_table(table, files[-1], filesystem=filesystem, compression="zstd")
        for shard in sorted({segment.shard for segment in log.segments}):
            files.append(f"{folder}/rows-{shard:04d}.parquet")
            rows += _write_rows(log, shard, spec, filesystem, files[-1])
    except BaseException:
        for path in files:
            _try_delete(filesystem, path)
        raise
    notes = missing_rows(log, rows)
    return Transfer(location=location, rows=rows, episodes=episodes.num_rows, notes=notes)


def import_parquet(location: str, log_location: str) -> Transfer:
    """Make a log of what ``export_parquet`` wrote: one segment a row group, rows equal bit for bit.

    Raises: ConfigError where ``location`` holds no such files or a log is at ``log_location``; SpecError where the rows
        are not Onibi's.
    """
    filesystem, folder = arrow_filesystem(location)
    shards = _shard_files(filesystem, folder, location)
    captions = captions_of(_beside(filesystem, f"{folder}/captions.parquet", CAPTION_SCHEMA))
    episodes = episodes_of(_beside(filesystem, f"{folder}/episodes.parquet", EPISODE_SCHEMA))
    texts = _texts_beside(filesystem, f"{folder}/texts.parquet")
    ended = len(episodes)
    with filesystem.open_input_file(next(iter(shards.values()))) as first:
        spec, run_id = _identity(_opened(first, location), location)
    with LogBuilder(log_location, spec, run_id) as log:
        for shard, path in shards.items():
            with filesystem.open_input_file(path) as source:
                file = _opened(source, path)
                if _identity(file, path) != (spec, run_id):
                    raise SpecError(f"{path}: its columns or run differ from those of the other rows files beside it")
                for lane, generation, columns in _groups(file, spec, path):
                    log.seal(shard, lane, generation, columns, captions=captions, episodes=episodes, texts=texts)
                    captions, episodes, texts = (
                        {},
                        [],
                        {},
                    )  # all in the first segment, sealed before any such row
        if not log.segments:
            raise ConfigError(f"{location}: holds no rows, and a log without rows is none.")
    return Transfer(location=log_location, rows=log.rows, episodes=ended)


def _write_rows(log: ReplayLog, shard: int, spec: ReplaySpec, filesystem: Any, path: str) -> int:
    from pyarrow import parquet

    run_id = next(segment.run_id for segment in log.segments if segment.shard == shard)
    said = {"format": _FORMAT_VERSION, "run_id": run_id, "shard": shard}
    schema = rows_schema(spec)
    schema = schema.with_metadata({**schema.metadata, DATASET_METADATA: json.dumps(said).encode()})
    size = group_rows(spec)
    rows = 0
    with parquet.ParquetWriter(path, schema, filesystem=filesystem, compression="zstd") as writer:
        waiting = schema.empty_table()
        for segment, table in log.read_each(shard):
            if not table.schema.equals(schema):
                raise SpecError(
                    f"{segment.rows_path}: its columns {table.schema.names} are not those of the log's newest segment"
                )
            waiting = pa.concat_tables([waiting, table.replace_schema_metadata(schema.metadata).cast(schema)])
            while waiting.num_rows >= size:
                writer.write_table(waiting.slice(0, size).combine_chunks(), row_group_size=size)
                waiting = waiting.slice(size)
            waiting = waiting.combine_chunks() if waiting.num_rows else schema.empty_table()
            rows += table.num_rows
        if waiting.num_rows:
            writer.write_table(waiting, row_group_size=size)
    return rows


def _new_folder(location: str) -> tuple[Any, str]:
    from pyarrow import fs

    filesystem, folder = arrow_filesystem(location)
    try:
        info = filesystem.get_file_info(folder)
        taken = info.type == fs.FileType.File or (
            info.type == fs.FileType.Directory and bool(filesystem.get_file_info(fs.FileSelector(folder)))
        )
        if not taken:
            filesystem.create_dir(folder, recursive=True)
    except OSError as error:
        raise ConfigError(f"{location}: cannot be written ({error}). Choose another folder.") from error
    if taken:
        raise ConfigError(f"{location}: something is there already. Choose a new folder, or remove it first.")
    return filesystem, folder


def _shard_files(filesystem: Any, folder: str, location: str) -> dict[int, str]:
    from pyarrow import fs

    try:
        found = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    except OSError as error:
        raise ConfigError(f"{location}: cannot be listed ({error}). Name the folder, not a file in it.") from error
    shards = {
        int(match[1]): info.path
        for info in sorted(found, key=lambda info: info.base_name)
        if (match := _ROWS_NAME.fullmatch(info.base_name))
    }
    if not shards:
        local = local_folder(location)
        there = "is no folder" if local is not None and not local.is_dir() else "holds no rows-NNNN.parquet"
        raise ConfigError(
            f"{location}: {there}. Name a folder that `onibi replay export RUN --to parquet` wrote, or a Minari "
            "dataset."
        )
    return shards


def _opened(source: Any, where: str) -> Any:
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(source)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{where}: not a Parquet file ({str(error).strip()}). Export it again.") from error


def _identity(file: Any, where: str) -> tuple[ReplaySpec, str]:
    schema = file.schema_arrow
    try:
        said = json.loads((schema.metadata or {})[DATASET_METADATA])
        if said["format"] != _FORMAT_VERSION:
            raise ConfigError(
                f"{where}: format {said['format']!r}, this version of Onibi reads {_FORMAT_VERSION}; import it with "
                "the version that wrote it."
            )
        return spec_of_segment(schema), str(said["run_id"])
    except (KeyError, TypeError, ValueError) as error:
        raise SpecError(
            f"{where}: these Parquet files were not written by `onibi replay export`, or a tool that rewrote them "
            f"dropped the schema's metadata ({DATASET_METADATA.decode()!r} is missing or broken)"
        ) from error


def _groups(file: Any, spec: ReplaySpec, path: str) -> Iterator[tuple[Any, Any, dict[str, Any]]]:
    """Lane, generation and columns of each row group."""
    for number in range(file.num_row_groups):
        try:
            table = file.read_row_group(number)
            table.validate(full=True)
        except (pa.ArrowException, OSError) as error:
            raise ConfigError(f"{path}: row group {number} cannot be read ({error}). Export it again.") from error
        lane = table.column("lane").to_numpy().astype(np.int32, copy=False)
        columns = {name: np.ascontiguousarray(values) for name, values in row_columns(spec, table).items()}
        yield lane, table.column("generation").to_numpy(), columns


def _beside(filesystem: Any, path: str, schema: pa.Schema) -> pa.Table:
    from pyarrow import fs, parquet

    if filesystem.get_file_info(path).type == fs.FileType.NotFound:
        return schema.empty_table()
    try:
        return parquet.read_table(path, filesystem=filesystem).select(schema.names).cast(schema)
    except (pa.ArrowException, KeyError, OSError) as error:
        raise ConfigError(f"{path}: not readable as the columns {schema.names} ({error}). Export it again.") from error


def _texts_beside(filesystem: Any, path: str) -> dict[int, str]:
    table = _beside(filesystem, path, TEXT_SCHEMA)
    try:
        TextTable().merge(table)
    except SpecError as error:
        raise ConfigError(f"{path}: {error}. Export it again.") from error
    return dict(zip(table["text_hash"].to_pylist(), table["text"].to_pylist(), strict=True))


def _try_delete(filesystem: Any, path: str) -> None:
    try:
        filesystem.delete_file(path)
    except OSError:  # it was not begun
        return
