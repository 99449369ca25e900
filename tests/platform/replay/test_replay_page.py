"""The examples of docs/replay.md run as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from onibi.clusters.run_state import ring_path
from onibi.platform.replay.datasets.row_check import verify_log
from onibi.platform.replay.log.log_reader import ReplayLog
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.ring.writer import RingWriter
from onibi.platform.replay.samplers.uniform_sampler import UniformSampler

PAGE = Path(__file__).resolve().parents[3] / "docs" / "replay.md"
SAMPLING = PAGE.with_name("replay-sampling.md")

NEEDED = {"numpy", "pyarrow", "pydantic", "pyyaml"}
BARE = """
import sys

for name in sys.argv[1].split():
    sys.modules[name] = None  # as if it were not installed
for example in sys.argv[2:]:
    exec(example, globals())
"""


def examples_of(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


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
    examples = examples_of(PAGE)
    written_by_hand = [example for example in examples if "/dev/shm/mine.ring" in example]
    here = [example for example in examples if "remote_actor" not in example]  # that one needs Ray: test_remote_draws
    here = [example for example in here if example not in written_by_hand]
    assert (len(here), len(written_by_hand)) == (2, 1)
    names: dict = {}
    for example in here:
        assert example.count("/dev/shm/NAME.ring") == (example is here[0])
        exec(example.replace("/dev/shm/NAME.ring", str(ring_path)), names)
    assert names["windows"].reward.shape == (128, 3)
    assert names["table"].column_names == ["lane", "generation", "reward", "terminated"]
    assert names["table"].num_rows == sum(len(lane) for lane in made)


def test_the_example_of_rows_written_by_hand_leaves_a_whole_log_and_a_ring_that_is_drawn_from(tmp_path):
    (example,) = re.findall(r"```python\n((?:(?!```).)*?mine\.ring.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    ring, folder = tmp_path / "mine.ring", tmp_path / "my-log"
    exec(example.replace("/dev/shm/mine.ring", str(ring)).replace('"my-log"', repr(str(folder))), {})
    log = ReplayLog(folder)
    assert verify_log(log) == ([], [])
    assert log.dataset().to_table(columns=["reward"])["reward"].to_pylist()[:20] == [1.0] * 20
    assert [episode["length"] for episode in log.episodes().to_pylist()] == [20]
    reader = RingReader(ring)
    sampler = UniformSampler(reader, n_steps=3, batch_size=64, rng=np.random.default_rng(0))
    windows = sampler.draw(sampler.allocate())
    assert set(windows.steps.tolist()) == {1, 2, 3}
    assert not windows.continues[windows.steps < 3].all(axis=1).any(), "shorter ones end in the terminal step"
    reader.close()


def test_the_examples_need_no_more_than_the_page_says(tmp_path):
    project = tomllib.loads((PAGE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {re.match(r"[\w-]+", each)[0] for each in project["dependencies"]}
    assert names > NEEDED
    others = " ".join(name.replace("-", "_") for name in names - NEEDED)
    (by_hand,) = (each for each in examples_of(PAGE) if "/dev/shm/mine.ring" in each)
    by_hand = by_hand.replace("/dev/shm/mine.ring", f"{tmp_path}/mine.ring").replace("my-log", f"{tmp_path}/my-log")
    command = [sys.executable, "-c", BARE, others, by_hand, *examples_of(SAMPLING)]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert ReplayLog(tmp_path / "my-log").rows == 22


def test_the_page_tells_how_the_ring_of_a_run_is_called():
    plan = SimpleNamespace(settings=SimpleNamespace(replay=SimpleNamespace(folder="/dev/shm")), shard=0)
    named = ring_path(plan, "RUN_ID")
    page = PAGE.read_text(encoding="utf-8")
    assert f"`{named.name}` in `replay.folder` (`{named.parent}`;" in page
    plan.shard = 2
    assert f"`{ring_path(plan, 'RUN_ID').name}`" in page
