"""python killed_filling.py LOG RING    fill a ring from a log, say so after one segment, and wait to be killed"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from onibi.platform.replay.datasets.ring_filling import RingFilling
from onibi.platform.replay.log.log_reader import ReplayLog
from onibi.platform.replay.ring.layout import RingLayout
from onibi.platform.replay.ring.writer import RingWriter


class SlowLog(ReplayLog):
    """The second segment never comes."""

    taken = 0

    def read(self, segment):
        if self.taken:
            print("one segment is in", flush=True)
            time.sleep(600)
        self.taken += 1
        return super().read(segment)


log = SlowLog(sys.argv[1])
layout = RingLayout(spec=log.spec, groups=2, lanes_per_group=1, slots=16, window_rows=1, run_id="a-run")
RingWriter.of_layout(Path(sys.argv[2]), layout, RingFilling(log, {(0, 0): 0, (0, 1): 1}, counted=False).fill)
