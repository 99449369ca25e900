"""Where the log lies that a user names: by run, by ``last``, by folder or by address."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onibi.platform.errors import ConfigError, ReplayError
from onibi.platform.replay.log.log_files import location_of
from onibi.platform.replay.log.log_reader import ReplayLog
from onibi.platform.replay.log.log_settings import LogSettings
from onibi.platform.replay.log.segment_format import group_of
from onibi.platform.run_folder import RunFolder, find_run


@dataclass(frozen=True)
class NamedLog:
    """A log, and the run that it belongs to where it was named by one."""

    location: str
    run: RunFolder | None

    def open(self) -> ReplayLog:
        """Open it. Raises: ConfigError where there is no log."""
        try:
            return ReplayLog(self.location)
        except ReplayError as error:
            whose = f"run {self.run.name!r}: " if self.run else ""
            raise ConfigError(f"{whose}{error}") from error


def find_log(runs_folder: Path, name: str) -> NamedLog:
    """The log of a run, or the one at a path or address.

    Args:
        name: a run's name or folder, ``last``, a folder of segments, or an address (``s3://…``, ``memory://…``,
            ``file://…``).
    Raises: ConfigError where no run has this name and no log is at this path.
    """
    if "://" in name:
        return NamedLog(name, None)
    path = Path(name).expanduser()
    if path.is_dir() and any(group_of(entry.name) is not None for entry in path.iterdir()):
        return NamedLog(str(path), None)
    try:
        run = find_run(runs_folder, name)
    except ConfigError as error:
        if path.is_dir():
            raise ConfigError(f"{path}: neither a run nor a folder with segments of a replay log.") from error
        raise
    return NamedLog(_place(run), run)


def _place(run: RunFolder) -> str:
    replay: Any = run.read_config().get("replay")
    log = replay.get("log") if isinstance(replay, dict) else None
    url = log.get("url") if isinstance(log, dict) else None
    # Also of a run whose log is off now: it may have been on in an earlier session.
    settings = LogSettings(enabled=True, url=str(url) if url else None)
    place = location_of(settings, run.path, run.record().run_id)
    assert place is not None, "a log that is on has a place"
    return place
