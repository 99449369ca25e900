"""The rows of a run that trains on this machine right now, copied out of its ring while it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from onibi.platform.errors import ConfigError, ReplayError
from onibi.platform.replay.datasets.sql_query import widened
from onibi.platform.replay.ring.file import RING_SUFFIX
from onibi.platform.replay.ring.layout import read_header
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.ring.snapshot import snapshot_table
from onibi.platform.run_folder import RunFolder


def live_rows(run: RunFolder) -> pa.Table:
    """A checked copy of the run's ring: whole rows of one moment, in memory as large as the ring.

    Raises: ConfigError where no ring of the run is on this machine.
    """
    replay: Any = run.read_config().get("replay")
    folder = Path(str(replay.get("folder", "/dev/shm")) if isinstance(replay, dict) else "/dev/shm")
    run_id = run.record().run_id
    for path in sorted(folder.glob(f"*{RING_SUFFIX}")):
        try:
            if read_header(path).layout.run_id != run_id:
                continue
            reader = RingReader(path)
        except ReplayError:  # another run's, just made or just removed
            continue
        table = snapshot_table(reader)
        reader.close()
        return table.cast(widened(table.schema))
    raise ConfigError(
        f"run {run.name!r}: no ring of it lies in {folder}. It trains on another machine, or not now; leave --live "
        "out to ask its log."
    )
