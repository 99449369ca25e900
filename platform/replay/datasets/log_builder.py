"""A new log made from data that no ring held: what importers write to."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from onibi.platform.errors import ConfigError, ReplayError
from onibi.platform.fragment import CaptionText, EpisodeStatistics, KeyText
from onibi.platform.replay.log.log_files import FolderLock, LogFiles, open_files
from onibi.platform.replay.log.segment_format import MANIFEST, RingOrigin, group_of
from onibi.platform.replay.log.segment_writer import RetentionSettings, Rows, SegmentWriter
from onibi.platform.spec import ReplaySpec


class LogBuilder:
    """Seals segments in a place that holds no log yet; a context manager that takes everything back on an error.

    Manifests are written together when all else is: what a kill leaves is torn, and not taken for a whole log.

    Args:
        location: folder or address; made where it is missing.
        spec: of all rows.
        run_id: of the new log; made up where None.
    """

    def __init__(self, location: str, spec: ReplaySpec, run_id: str | None) -> None:
        """Raises: ConfigError where a log is there already, or the place cannot be written."""
        self.location, self._spec = location, spec
        self._run_id = run_id or uuid.uuid4().hex
        try:
            self._files = _ManifestsLast(open_files(location, create=True))
            self._lock = self._files.lock()
            there = self._files.names()
        except (OSError, ReplayError) as error:
            raise ConfigError(f"{location}: no log can be made there ({error}). Choose another folder.") from error
        if any(group_of(name) is not None for name in there):
            self._unlock()
            raise ConfigError(
                f"{location}: a replay log is there already, and an import makes a new one. Choose an empty folder."
            )
        self._writers: dict[int, SegmentWriter] = {}
        self._next_generation: dict[int, dict[int, int]] = {}
        self.rows = 0
        self.segments = 0

    def __enter__(self) -> LogBuilder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                self._take_back()
                return
            try:
                self._files.seal_manifests()
            except BaseException:
                self._take_back()
                raise
        finally:
            self._unlock()

    def _take_back(self) -> None:
        self._files.remove([name for name in self._files.names() if group_of(name) is not None])

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def seal(
        self,
        shard: int,
        lane: NDArray[np.int32],
        generation: NDArray[np.int64],
        columns: Mapping[str, NDArray[Any]],
        *,
        captions: Mapping[int, CaptionText],
        episodes: Sequence[EpisodeStatistics],
        texts: Mapping[int, str] | None = None,
    ) -> None:
        """One segment: rows [N], in each lane by rising generation. Captions and texts (by hash) come with the first
        rows that name them.

        Raises: ConfigError where a lane's generations do not rise; OSError where the disk refuses.
        """
        following = self._next_generation.setdefault(shard, {})
        for number in np.unique(lane).tolist():
            mine = generation[lane == number]
            if mine[0] < following.get(number, 0) or (np.diff(mine) <= 0).any():
                raise ConfigError(
                    f"{self.location}: the rows of lane {number} do not come by rising generation (segment "
                    f"{self.segments}, generations from {mine.min()}); sort the rows by lane and generation first."
                )
            following[number] = int(mine[-1]) + 1
        lanes = 1 + max(following, default=-1)
        self._writer(shard).seal(
            Rows(lane=lane, generation=generation, columns=columns),
            captions,
            episodes,
            next_generation=[following.get(number, 0) for number in range(lanes)],
            ring=RingOrigin(created_unix_ns=0, first_generation=(0,) * lanes),  # of no ring: nothing can go on with it
            texts=texts,
        )
        self.rows += len(lane)
        self.segments += 1

    def _writer(self, shard: int) -> SegmentWriter:
        if shard not in self._writers:
            self._writers[shard] = SegmentWriter(
                self._files,
                self._spec,
                run_id=self._run_id,
                shard=shard,
                retention=RetentionSettings(bytes=None),
                compression="zstd",
            )
        return self._writers[shard]


class _ManifestsLast:
    """Files that hold manifests back."""

    def __init__(self, files: LogFiles) -> None:
        self._files = files
        self.location = files.location
        self._manifests: list[tuple[str, bytes | memoryview]] = []

    def lock(self, shard: int = 0) -> FolderLock | None:
        return self._files.lock(shard)

    def names(self) -> dict[str, int]:
        return self._files.names()

    def read(self, name: str) -> bytes:
        return self._files.read(name)

    def seal(self, files: Sequence[tuple[str, bytes | memoryview]]) -> None:
        self._manifests += [file for file in files if file[0].startswith(MANIFEST)]
        if others := [file for file in files if not file[0].startswith(MANIFEST)]:
            self._files.seal(others)

    def seal_manifests(self) -> None:
        self._files.seal(self._manifests)

    def remove(self, names: Sequence[str]) -> None:
        self._files.remove(names)


def captions_of(table: pa.Table) -> dict[int, CaptionText]:
    """Captions of a log's caption table by their id."""
    return {
        row["caption_id"]: CaptionText(
            row["text"],
            tuple(KeyText(text, askable) for text, askable in zip(row["keys"], row["askable"], strict=True)),
        )
        for row in table.to_pylist()
    }


def episodes_of(table: pa.Table) -> list[EpisodeStatistics]:
    """Rows of a log's table of episodes."""
    return [EpisodeStatistics(**{**row, "extra": dict(row["extra"])}) for row in table.to_pylist()]
