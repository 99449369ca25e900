"""The examples of docs/replay.md run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from onibi.platform.replay.ring_writer import RingWriter

PAGE = Path(__file__).resolve().parents[3] / "docs" / "replay.md"


def test_examples_of_the_page_read_a_ring(rows, ring_path):
    writer = RingWriter.create(
        ring_path, rows.SPEC, groups=1, lanes_per_group=2, slots=256, window_rows=3, run_id="run"
    )
    rng = np.random.default_rng(0)
    lanes = [rows.Lane(rng, lane, True, 0.1) for lane in range(2)]
    made = [[row for _ in range(12) for row in lane.advance()] for lane in lanes]
    writer.insert(
        0,
        incarnation=writer.register(0),
        sequence=0,
        rows_per_lane=np.array([len(lane) for lane in made], np.int32),
        columns=rows.fragment_columns(made, [lane.head() for lane in lanes]),
    )
    writer.close()
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    here = [example for example in examples if "remote_actor" not in example]  # that one needs Ray: test_remote_draws
    assert len(here) == 2
    names: dict = {}
    for example in here:
        assert example.count("/dev/shm/NAME.ring") == (example is here[0])
        exec(example.replace("/dev/shm/NAME.ring", str(ring_path)), names)
    assert names["windows"].reward.shape == (128, 3)
    assert names["table"].column_names == ["lane", "generation", "reward", "terminated"]
    assert names["table"].num_rows == sum(len(lane) for lane in made)
