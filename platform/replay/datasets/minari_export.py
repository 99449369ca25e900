"""A log as a Minari dataset: whole episodes with T + 1 observations, T actions and rewards.

FOLDER/data/             what Minari reads: ``minari.MinariDataset("FOLDER/data")``
FOLDER/captions.parquet  texts and keys by ``caption_id``, for an import by Onibi

``infos`` have T + 1 entries like the observations: entry k + 1 belongs to step k, as Minari has it for what ``step``
returns; entry 0 is 0 or empty. They hold ``caption`` (text), ``caption_id``, ``caption_count``, ``policy_version`` and
the columns that the learner declared.

What a Minari dataset cannot hold: lanes and row numbers (each episode's metadata name where it began), steps whose
following observation is not in the log, and the environment itself.
"""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pyarrow import Table

from onibi.platform.errors import ConfigError, SpecError
from onibi.platform.fragment import CaptionText
from onibi.platform.replay.datasets.episode_piece import EpisodePiece, episode_pieces
from onibi.platform.replay.datasets.log_builder import captions_of
from onibi.platform.replay.datasets.optional_packages import load_package
from onibi.platform.replay.datasets.parquet_files import Transfer, missing_rows
from onibi.platform.replay.log.log_files import local_folder
from onibi.platform.replay.log.log_reader import ReplayLog
from onibi.platform.replay.ring.row_table import rows_schema
from onibi.platform.replay.schema import OBSERVATION
from onibi.platform.spec import TEXT_HASH, ArraySpec, ReplaySpec

Pieces = Literal["ended", "begun", "all"]
"""Which episodes are exported: ``ended`` whole ones alone; ``begun`` also those that something cut off (the log's end,
an actor's death), their last step marked truncated; ``all`` also those whose beginning is not in the log."""

ONIBI_METADATA = "onibi"
"""Key of the dataset's metadata: {"schema": base64 of the rows' Arrow schema, "run_id"}."""
INFO_COLUMNS = ("caption_id", "caption_count", "policy_version")
"""Fixed columns that go into ``infos``, beside those that the learner declared."""

_EPISODES_AT_ONCE, _BYTES_AT_ONCE = 256, 64 << 20
_DATASET_ID = re.compile(r"[-\w]+-v\d+")


def export_minari(log: ReplayLog, location: str, *, pieces: Pieces) -> Transfer:
    """Write the log's episodes, one segment and the open episodes in memory at a time.

    Args:
        location: a folder that does not exist yet. Named like a Minari dataset (``name-v0``), its parent folder serves
            as MINARI_DATASETS_PATH.
    Raises: ConfigError where the place is taken or minari is missing; SegmentError where a segment is damaged: then
        nothing is left.
    """
    from pyarrow import parquet

    minari = load_package("minari", "a Minari export")
    storage_module = load_package("minari.dataset.minari_storage", "a Minari export")
    load_package("h5py", "a Minari export")
    spec, folder = log.spec, _new_folder(location)
    # Before the rows that name them: a run's retention may remove segments meanwhile.
    heard, texts, read = log.captions(), _texts_of(log), 0
    captions = captions_of(heard)

    def tables() -> Iterator[tuple[int, Table]]:
        nonlocal read
        for segment, table in log.read_each():
            read += table.num_rows
            yield segment.shard, table

    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        observation_space, action_space = spaces_of(spec, texts)
        storage = storage_module.MinariStorage.new(
            temporary / "data", observation_space, action_space, data_format="hdf5", jpeg_encoding=False
        )
        schema = base64.b64encode(rows_schema(spec).serialize()).decode()
        run_id = log.segments[0].run_id
        storage.update_metadata(
            {
                "dataset_id": dataset_id(folder.name),
                "minari_version": minari.__version__,
                "algorithm_name": "Onibi",
                ONIBI_METADATA: {"schema": schema, "run_id": run_id},
            }
        )
        tally = _Tally(pieces, _text_leaves(spec), texts)
        chosen = filter(tally.takes, episode_pieces(spec, tables()))
        for batch in _batches(spec, captions, texts, chosen):
            first = storage.total_episodes
            storage.update_episodes([buffer for buffer, _ in batch])
            storage.update_episode_metadata([metadata for _, metadata in batch], range(first, first + len(batch)))
        parquet.write_table(heard, temporary / "captions.parquet", compression="zstd")
        temporary.rename(folder)
    except OSError as error:
        raise ConfigError(f"{location}: not written ({error}). Choose another folder.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    notes = (*missing_rows(log, read), *tally.notes())
    return Transfer(location=location, rows=tally.rows, episodes=tally.episodes, notes=notes)


def spaces_of(spec: ReplaySpec, texts: Mapping[int, str]) -> tuple[Any, Any]:
    """(observation space, action space): a Box or Text a leaf, in nested Dicts as the columns' names say.

    Tuples come out as Dicts with the keys "0", "1"…; Discrete and the like as Box with their bounds: a row's column
    holds no more. Text has the longest of ``texts`` (by hash) and all their characters.
    """
    from gymnasium import spaces

    def nested(tree: dict[str, Any]) -> Any:
        return spaces.Dict({key: nested(child) if isinstance(child, dict) else child for key, child in tree.items()})

    tree = nest({column.name: _leaf_space(column, texts) for column in spec.observation})
    # A policy's own actions, before the rollout fits them to the environment's bounds: they may lie beyond those.
    actions: Any
    if spec.action is None:
        actions = spaces.Discrete(spec.actions)
    else:
        actions = spaces.Box(-np.inf, np.inf, spec.action.shape, np.float32)
    return (nested(tree) if isinstance(tree, dict) else tree), actions


def nest(leaves: dict[str, Any]) -> Any:
    """Leaves by column name as nested dicts; the one leaf of a bare space as it stands.

    Raises: SpecError where names cannot be told apart, or not be those of HDF5 folders.
    """
    if list(leaves) == [OBSERVATION]:
        return leaves[OBSERVATION]
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        if "/" in name:
            raise SpecError(f"observation column {name!r} contains '/', which Minari's HDF5 files take for a folder")
        *path, last = leaf_path(name)
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        if last in node:
            raise SpecError(f"observation column {name!r} has the place of another one in a nested observation")
        node[last] = leaf
    return tree


def leaf_path(name: str) -> list[str]:
    """Keys that lead to a leaf; a bare leaf with others beside it, as counts of captions, is called as it is."""
    first, *path = name.split(".")
    return path if first == OBSERVATION and path else [first, *path]


def dataset_id(name: str) -> str:
    """The folder's name as Minari allows it: ``name-vN``."""
    if _DATASET_ID.fullmatch(name):
        return name
    return (re.sub(r"[^-\w]+", "-", name).strip("-") or "onibi") + "-v0"


class _Tally:
    """Which pieces go into the dataset, and what is to be said about those that do not."""

    def __init__(self, pieces: Pieces, text_leaves: tuple[str, ...], texts: Mapping[int, str]) -> None:
        self._pieces, self._text_leaves, self._texts = pieces, text_leaves, texts
        self.rows = self.episodes = 0
        self._cut = self._unbegun = self._unended = self._lost_steps = 0
        self._lost_texts: set[int] = set()

    def takes(self, piece: EpisodePiece) -> bool:
        """Whether a piece is exported; counts it."""
        if not piece.begun and self._pieces != "all":
            self._unbegun += 1
            return False
        if not piece.ended and self._pieces == "ended":
            self._unended += 1
            return False
        self.episodes += 1
        self.rows += len(piece.rows)
        self._cut += not piece.ended
        self._lost_steps += not piece.final_stored
        for name in self._text_leaves:
            hashes = np.unique(piece.rows.columns[name]).tolist()
            self._lost_texts.update(hashed for hashed in hashes if hashed and hashed not in self._texts)
        return True

    def notes(self) -> tuple[str, ...]:
        """What Minari could not hold, or was not to."""
        told = [
            (self._unbegun, "episodes left out: their beginning is not in the log (--pieces all takes what is there)"),
            (self._unended, "episodes left out: the environment did not end them (--pieces begun takes them)"),
            (self._cut, "episodes were cut off, by the log's end or an actor's: their last step is marked truncated"),
            (self._lost_steps, "steps left out: the observation after them is not in the log"),
            (len(self._lost_texts), "texts are empty: they died with their process, the log has their hashes alone"),
        ]
        always = "not in a Minari dataset: lanes and row numbers, figures of episodes, and the environment's own spec"
        return (*(f"{count} {text}" for count, text in told if count), always)


def _batches(
    spec: ReplaySpec, captions: dict[int, CaptionText], texts: Mapping[int, str], pieces: Iterator[EpisodePiece]
) -> Iterator[list[tuple[Any, dict[str, Any]]]]:
    """Minari's buffers with their metadata, so many at once that its files are not opened for each of them."""
    heard = {number: _without_nul(caption.text) for number, caption in captions.items()}
    batch, rows = [], 0
    for piece in pieces:
        batch.append(_buffer(spec, heard, texts, piece))
        rows += len(piece.rows)
        if len(batch) >= _EPISODES_AT_ONCE or rows * spec.row_bytes >= _BYTES_AT_ONCE:
            yield batch
            batch, rows = [], 0
    if batch:
        yield batch


def _buffer(
    spec: ReplaySpec, heard: Mapping[int, str], texts: Mapping[int, str], piece: EpisodePiece
) -> tuple[Any, dict[str, Any]]:
    """Minari's buffer of a piece, and the episode's metadata."""
    columns, steps = piece.rows.columns, piece.steps
    truncated = columns["truncated"][:steps].astype(np.bool_)
    truncated[-1] |= not piece.ended
    observation: dict[str, Any] = {column.name: columns[column.name] for column in spec.observation}
    for name in _text_leaves(spec):
        observation[name] = [texts.get(hashed, "") for hashed in columns[name].tolist()]
    names = (*INFO_COLUMNS, *(column.name for column in spec.extra))
    infos: dict[str, Any] = {name: _after_step(columns[name], steps) for name in names}
    infos["caption"] = [heard.get(number, "") for number in infos["caption_id"].tolist()]
    buffer = load_package("minari.data_collector.episode_buffer", "a Minari export").EpisodeBuffer(
        observations=nest(observation),
        actions=columns["action"][:steps],
        rewards=columns["reward"][:steps],
        terminations=columns["terminated"][:steps].astype(np.bool_),
        truncations=truncated,
        infos=infos,
    )
    return buffer, {
        "onibi_shard": piece.shard,
        "onibi_lane": piece.rows.lane,
        "onibi_generation": int(piece.rows.generation[0]),
        "onibi_episode_id": piece.episode_id,
        "onibi_first_step": int(columns["step"][0]),
        "onibi_cut": not piece.ended,
    }


def _after_step(values: NDArray[Any], steps: int) -> NDArray[Any]:
    """[T + 1, ...]: what row k says about its step, at k + 1; 0 first."""
    shifted = np.zeros((steps + 1, *values.shape[1:]), values.dtype)
    shifted[1:] = values[:steps]
    return shifted


def _text_leaves(spec: ReplaySpec) -> tuple[str, ...]:
    return tuple(column.name for column in spec.observation if column.content == TEXT_HASH)


def _texts_of(log: ReplayLog) -> dict[int, str]:
    table = log.texts()
    texts = map(_without_nul, table["text"].to_pylist())
    return dict(zip(table["text_hash"].to_pylist(), texts, strict=True))


def _without_nul(text: str) -> str:
    """HDF5 ends a string at its first NUL."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _leaf_space(column: ArraySpec, texts: Mapping[int, str]) -> Any:
    if column.content != TEXT_HASH:
        return _box(column)
    from gymnasium import spaces

    characters = sorted(set().union(*texts.values())) or [" "]
    longest = max(map(len, texts.values()), default=1)
    return spaces.Text(longest, min_length=0, charset="".join(characters))


def _box(column: ArraySpec) -> Any:
    from gymnasium import spaces

    dtype = np.dtype(column.dtype)
    low: float
    high: float
    if dtype.kind == "f":
        low = -np.inf if column.low is None else column.low
        high = np.inf if column.high is None else column.high
    else:
        least, most = (0, 1) if dtype.kind == "b" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
        # A column's bounds are floats: those of 64-bit integers are rounded outward, beyond what the type holds.
        low = least if column.low is None else max(least, int(column.low))
        high = most if column.high is None else min(most, int(column.high))
    shape = column.shape
    return spaces.Box(np.full(shape, low, dtype), np.full(shape, high, dtype), shape, dtype.type)


def _new_folder(location: str) -> Path:
    folder = local_folder(location)
    if folder is None:
        raise ConfigError(f"{location}: Minari keeps its datasets in local folders. Name one, and copy it afterwards.")
    if folder.exists():
        raise ConfigError(f"{location}: something is there already. Choose a new folder, or remove it first.")
    return folder.absolute()
