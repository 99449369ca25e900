"""A Minari dataset as a log: one row a step, one final row an episode, so that samplers draw it as any other.

Of datasets that Onibi exported everything comes back: columns, texts, captions with their keys, episode ids, cuts
without a flag. Of others: observations of fixed width or Text, actions discrete (shifted to begin at 0) or
a Box of floats (flat, as float32), rewards as float32, flags, and texts in ``infos["caption"]`` where there are any.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from onibi.platform.errors import ConfigError, OnibiError, SpecError
from onibi.platform.fragment import CaptionText, EpisodeStatistics, KeyText
from onibi.platform.replay.datasets.log_builder import LogBuilder, captions_of
from onibi.platform.replay.datasets.minari_export import INFO_COLUMNS, ONIBI_METADATA, leaf_path
from onibi.platform.replay.datasets.optional_packages import load_package
from onibi.platform.replay.datasets.parquet_files import Transfer, group_rows
from onibi.platform.replay.log.segment_format import spec_of_segment
from onibi.platform.replay.schema import OBSERVATION, ObservationLeaves
from onibi.platform.replay.text_table import TextTable
from onibi.platform.spec import ROLE_FINAL, TEXT_HASH, ArraySpec, ReplaySpec


def find_minari(location: str) -> Path | None:
    """The data folder of a Minari dataset named by path, or by its name in Minari's own folder; None where none is."""
    candidates = [Path(location), Path(location) / "data"]
    if "://" not in location and not Path(location).is_absolute() and not location.startswith("."):
        root = load_package("minari.storage.datasets_root_dir", "a Minari import") if _has_minari() else None
        candidates += [root.get_dataset_path(location) / "data"] if root is not None else []
    return next((path for path in candidates if (path / "metadata.json").is_file()), None)


def import_minari(data: Path, log_location: str, *, lanes: int) -> Transfer:
    """Make a log of a Minari dataset, some episodes in memory at a time.

    Args:
        data: the folder with ``metadata.json``, as ``find_minari`` gives it.
        lanes: episodes go to the lanes 0 to ``lanes - 1`` in turn.
    Raises: ConfigError where it cannot be read or a log is at ``log_location``; SpecError where the spaces do not fit.
    """
    storage_module = load_package("minari.dataset.minari_storage", "a Minari import")
    try:
        storage = storage_module.MinariStorage.read(data)
        metadata, total = storage.metadata, storage.total_episodes
    except OnibiError:
        raise
    except ImportError as error:
        raise ConfigError(f"{data}: its format needs a package that is missing: {error}") from error
    except Exception as error:  # whatever a broken dataset makes Minari raise
        raise ConfigError(
            f"{data}: not readable as a Minari dataset ({error!r}). Download or export it again."
        ) from error
    if not total:
        raise ConfigError(f"{data}: holds no episodes, and a log without rows is none.")
    source = _source(data, storage, metadata)
    size = group_rows(source.spec)
    with LogBuilder(log_location, source.spec, source.run_id) as log:
        waiting, rows = _Waiting(lanes), 0
        for number, episode in enumerate(_episodes(data, storage, total)):
            rows += waiting.add(number, source, episode)
            if waiting.rows >= size:
                waiting.seal(log, source)
        if waiting.rows:
            waiting.seal(log, source)
    return Transfer(location=log_location, rows=rows, episodes=total, notes=tuple(source.notes))


@dataclass
class _Source:
    """How episodes of one dataset become rows."""

    data: Path
    spec: ReplaySpec
    run_id: str | None
    first_action: int
    leaves: ObservationLeaves | None  # None: by the columns' names
    captions: dict[int, CaptionText]
    notes: list[str] = field(default_factory=list)
    ids: dict[str, int] = field(default_factory=dict)
    texts: TextTable = field(default_factory=TextTable)  # of Text leaves

    def __post_init__(self) -> None:
        self.ids = {caption.text: number for number, caption in self.captions.items()}
        self._next_id = 1 + max(self.captions, default=0)

    @property
    def ours(self) -> bool:
        """Onibi exported it."""
        return self.leaves is None

    def observation(self, value: Any) -> dict[str, NDArray[Any]]:
        """The leaves by column name, each [T + 1, ...]."""
        if self.leaves is not None:
            return self.leaves.flatten(value)
        flat = {}
        bare = [column.name for column in self.spec.observation] == [OBSERVATION]
        for column in self.spec.observation:
            leaf = value
            for part in () if bare else leaf_path(column.name):
                leaf = leaf[part]
            if column.content == TEXT_HASH:
                flat[column.name] = self.texts.intern(leaf)
            else:
                flat[column.name] = np.asarray(leaf).astype(np.dtype(column.dtype), copy=False)
        return flat

    def caption_ids(self, texts: list[Any]) -> NDArray[np.uint32]:
        """Dense ids of texts; new ones get the next, with the text itself as their one key."""
        found = []
        for text in texts:
            word = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text or "")
            if word and word not in self.ids:
                self.ids[word], self.captions[self._next_id] = self._next_id, CaptionText(word, (KeyText(word),))
                self._next_id += 1
            found.append(self.ids[word] if word else 0)
        return np.array(found, np.uint32)


class _Waiting:
    """Episodes that are not sealed yet."""

    def __init__(self, lanes: int) -> None:
        self._next = np.zeros(lanes, np.int64)
        self._lane: list[NDArray[np.int32]] = []
        self._generation: list[NDArray[np.int64]] = []
        self._columns: list[dict[str, NDArray[Any]]] = []
        self._ended: list[EpisodeStatistics] = []
        self._sealed_captions = 0
        self.rows = 0

    def add(self, number: int, source: _Source, episode: Mapping[str, Any]) -> int:
        """Take an episode in. Returns: its rows."""
        columns, figures = _rows(number, source, episode, lane=number % len(self._next))
        count, lane = len(columns["role"]), number % len(self._next)
        self._lane.append(np.full(count, lane, np.int32))
        self._generation.append(self._next[lane] + np.arange(count))
        self._columns.append(columns)
        self._next[lane] += count
        self.rows += count
        if figures is not None:
            self._ended.append(figures)
        return count

    def seal(self, log: LogBuilder, source: _Source) -> None:
        """One segment of all that waits."""
        new = dict(list(source.captions.items())[self._sealed_captions :])
        self._sealed_captions = len(source.captions)
        texts = source.texts.take_new()
        log.seal(
            0,
            np.concatenate(self._lane),
            np.concatenate(self._generation),
            {name: np.concatenate([part[name] for part in self._columns]) for name in self._columns[0]},
            captions=new,
            episodes=self._ended,
            texts=dict(zip(texts["text_hash"].to_pylist(), texts["text"].to_pylist(), strict=True)),
        )
        self._lane, self._generation, self._columns, self._ended, self.rows = [], [], [], [], 0


def _source(data: Path, storage: Any, metadata: Mapping[str, Any]) -> _Source:
    said = metadata.get(ONIBI_METADATA)
    if isinstance(said, dict):
        try:
            spec = spec_of_segment(pa.ipc.read_schema(pa.py_buffer(base64.b64decode(said["schema"]))))
        except (KeyError, TypeError, binascii.Error, pa.ArrowException) as error:
            raise ConfigError(f"{data}: its note on Onibi's columns is broken ({error!r}). Export it again.") from error
        return _Source(data, spec, said.get("run_id"), 0, None, _captions_beside(data))
    from gymnasium import spaces

    space = storage.action_space
    box = isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating)
    if not box and not isinstance(space, spaces.Discrete):
        raise SpecError(
            f"{data}: its actions are {space}; a log holds Discrete ones, or a Box of floats. Make them so first"
        )
    first = 0 if box else int(space.start)
    texts = TextTable()
    leaves = ObservationLeaves(storage.observation_space, texts)
    notes = [f"actions shifted by {-first}, so that they begin at 0"] if first else []
    if box:
        low, high = (tuple(map(float, bound.reshape(-1))) for bound in (space.low, space.high))
        wide = ArraySpec(name="action", dtype="float32", shape=(len(low),))
        spec = ReplaySpec(observation=leaves.specs, actions=0, action=wide, action_low=low, action_high=high)
    else:
        spec = ReplaySpec(observation=leaves.specs, actions=int(space.n))
    return _Source(data, spec, None, first, leaves, {}, notes, texts=texts)


def _captions_beside(data: Path) -> dict[int, CaptionText]:
    from pyarrow import parquet

    path = data.parent / "captions.parquet"
    try:
        return captions_of(parquet.read_table(path)) if path.is_file() else {}
    except (pa.ArrowException, KeyError, OSError) as error:
        raise ConfigError(f"{path}: not readable ({error}). Export it again, or remove it to go on without.") from error


def _episodes(data: Path, storage: Any, total: int) -> Iterator[dict[str, Any]]:
    """Episodes one by one, with their metadata under ``metadata``."""
    episodes = iter(storage.get_episodes(range(total)))
    said = iter(storage.get_episode_metadata(range(total)))
    for number in range(total):
        try:
            yield {**next(episodes), "metadata": next(said)}
        except StopIteration:
            raise ConfigError(
                f"{data}: {total} episodes by its metadata, it holds {number}. Download it again."
            ) from None
        except (OSError, KeyError, ValueError, AssertionError) as error:
            raise ConfigError(f"{data}: episode {number} cannot be read ({error!r}). Download it again.") from error


def _rows(
    number: int, source: _Source, episode: Mapping[str, Any], *, lane: int
) -> tuple[dict[str, NDArray[Any]], EpisodeStatistics | None]:
    """T step rows and the final row of one episode, and its figures where the environment ended it."""
    said, infos = episode["metadata"], episode.get("infos") or {}
    reward = np.asarray(episode["rewards"], np.float32)
    steps = len(reward)
    action = np.asarray(episode["actions"])
    if source.spec.action is None:
        action = action.astype(np.int64).reshape(-1) - source.first_action
    else:
        action = action.astype(np.float32).reshape(len(action), -1)
    own: dict[str, NDArray[Any]] = {
        "action": action,
        "reward": reward,
        "terminated": np.asarray(episode["terminations"]).astype(np.uint8),
        "truncated": np.asarray(episode["truncations"]).astype(np.uint8),
    }
    observation = source.observation(episode["observations"])
    wrong = [name for name, values in observation.items() if len(values) != steps + 1]
    wrong += [name for name, values in own.items() if len(values) != steps]
    if wrong or not steps:
        raise ConfigError(
            f"{source.data}: episode {number} has {steps} rewards; {wrong or 'its steps'} do not fit "
            "(T rewards, actions and flags, T + 1 observations). Leave the episode out."
        )
    early = np.flatnonzero((own["terminated"] | own["truncated"])[:-1])
    if len(early):  # windows would go on behind the end
        raise ConfigError(
            f"{source.data}: episode {number} of {steps} steps has ended with step {int(early[0])} by its flags. Cut "
            "it there, or leave it out."
        )
    allowed = np.isfinite(action) if source.spec.action is not None else (action >= 0) & (action < source.spec.actions)
    for what, sound in (("rewards", np.isfinite(reward)), ("actions", allowed)):
        if not sound.all():
            raise ConfigError(
                f"{source.data}: episode {number} has {what} that are not finite or not in its action space, first at "
                f"step {int(np.flatnonzero(~sound.reshape(steps, -1).all(axis=1))[0])}. Leave the episode out."
            )
    if source.ours and bool(said.get("onibi_cut")):
        own["truncated"][-1] = 0
    first = int(said.get("onibi_first_step", 0)) if source.ours else 0
    columns: dict[str, NDArray[Any]] = {}
    for column in source.spec.columns:
        values = np.zeros((steps + 1, *column.shape), np.dtype(column.dtype))
        if column.name in observation:
            values[:] = observation[column.name].reshape(values.shape)
        elif column.name in own:
            values[:steps] = own[column.name]
        elif source.ours and (column.name in INFO_COLUMNS or column in source.spec.extra):
            values[:steps] = infos[column.name][1:].reshape(values[:steps].shape)
        columns[column.name] = values
    columns["role"][-1] = ROLE_FINAL
    columns["episode_id"][:] = int(said.get("onibi_episode_id", number)) if source.ours else number
    columns["step"][:] = first + np.arange(steps + 1)
    if not source.ours and len(infos.get("caption", ())) == steps + 1:
        columns["caption_id"][:steps] = source.caption_ids(list(infos["caption"])[1:])
    # Only an episode whose last step says so has ended, and only such a one has figures.
    ended = bool(columns["terminated"][steps - 1] | columns["truncated"][steps - 1]) and first == 0
    figures = EpisodeStatistics(
        lane=lane,
        episode_id=int(columns["episode_id"][0]),
        episode_return=float(reward.sum(dtype=np.float64)),
        length=steps,
        terminated=bool(columns["terminated"][steps - 1]),
    )
    return columns, figures if ended else None


def _has_minari() -> bool:
    try:
        load_package("minari", "a Minari import")
    except ConfigError:
        return False
    return True
