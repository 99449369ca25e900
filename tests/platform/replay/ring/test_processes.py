"""The ring between processes: a writer that laps its readers, and writers that are killed."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from onibi.platform.errors import ReplayError
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.ring.snapshot import snapshot_table
from onibi.platform.replay.ring.writer import RingWriter
from onibi.platform.replay.samplers.uniform_sampler import UniformSampler

SCRIPT = Path(__file__).with_name("ring_process.py")
_spec = importlib.util.spec_from_file_location("ring_process", SCRIPT)
ring_process = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(ring_process)

LANES, ROWS, WINDOW, WIDTH = ring_process.LANES, ring_process.ROWS, ring_process.WINDOW, ring_process.WIDTH
bad_windows = ring_process.bad_windows


def start(mode, path, environment=None):
    """The writer process, once it has told that it runs."""
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), mode, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    assert process.stdout.readline() in ("writing\n", "forked\n")
    return process


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


def kill_within_a_commit(process, reader):
    """Stop the process until it stands between `writing` and `committed`, and kill it there."""
    for _ in range(2_000):
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        if (reader._words["writing"] > reader._words["committed"]).any():
            kill(process)
            return
        process.send_signal(signal.SIGCONT)
        time.sleep(0.0005)
    kill(process)
    raise AssertionError("the writer was never met within a commit")


def race(reader, seconds, enough):
    """Draw while the writer laps; (drawn, bad, overtaken) when ``enough(bad, overtaken)`` or after ``seconds``."""
    sampler = UniformSampler(reader, n_steps=WINDOW, batch_size=64, rng=np.random.default_rng(0), batches_ahead=4)
    out, bad = sampler.allocate(), 0
    deadline = time.monotonic() + seconds
    while not reader.snapshot().cursor.any():
        assert time.monotonic() < deadline
    while time.monotonic() < deadline and not enough(bad, sampler.overtaken):
        bad += bad_windows(sampler.draw(out))
    return sampler.drawn_rows, bad, sampler.overtaken


@pytest.fixture
def ring(ring_path):
    ring_process.create(ring_path).close()
    return ring_path


@pytest.mark.parametrize(
    "environment",
    [{}, {"GLIBC_TUNABLES": "glibc.cpu.x86_non_temporal_threshold=0x4040"}],
    ids=["ordinary stores", "non-temporal stores"],
)
def test_no_bad_window_is_handed_out_while_the_writer_laps_the_reader(ring, environment):
    process = start("lap", ring, environment)
    try:
        reader = RingReader(ring)
        before = int(reader.snapshot().cursor[0])
        drawn, bad, overtaken = race(reader, 20, lambda bad, overtaken: bad > 0 or overtaken > 10_000)
        laps = (int(reader.snapshot().cursor[0]) - before) / reader.slots
        assert process.poll() is None
    finally:
        kill(process)
    assert bad == 0
    assert min(drawn, overtaken) > 300  # else the test has shown nothing; which is more is the scheduler's choice
    assert laps > 10


def readers_beside_a_lapping_writer(ring, count, rows, overtaken, seconds):
    """What several reader processes have counted, and how often the writer went round the ring meanwhile."""
    writer = start("lap", ring)
    readers = []
    try:
        reader = RingReader(ring)
        deadline = time.monotonic() + 20
        while not reader.snapshot().cursor.all():
            assert time.monotonic() < deadline
        before = int(reader.snapshot().cursor[0])
        command = [sys.executable, str(SCRIPT), "read", str(ring), str(rows), str(overtaken), str(seconds)]
        readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
        counts = [json.loads(process.communicate()[0]) for process in readers]
        laps = (int(reader.snapshot().cursor[0]) - before) / reader.slots
        assert writer.poll() is None
    finally:
        for process in readers:
            if process.poll() is None:
                kill(process)
        kill(writer)
    return counts, laps


def test_several_reader_processes_hand_out_no_bad_window_while_the_writer_laps_them(ring):
    counts, laps = readers_beside_a_lapping_writer(ring, count=2, rows=4_000, overtaken=600, seconds=60)
    assert sum(count["bad"] for count in counts) == 0
    assert sum(count["overtaken"] for count in counts) > 1_000
    assert laps > 10


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_millions_of_checksummed_rows_are_read_by_several_processes_and_none_is_bad(ring):
    counts, laps = readers_beside_a_lapping_writer(ring, count=3, rows=1_000_000, overtaken=1_000, seconds=900)
    sys.stdout.write(f"{counts}, {laps:.0f} laps\n")
    assert sum(count["bad"] for count in counts) == 0
    assert sum(count["rows"] for count in counts) >= 3_000_000
    assert sum(count["overtaken"] for count in counts) > 1_000


def test_snapshot_of_a_ring_that_is_lapped_meanwhile_holds_whole_rows_only(ring):
    writer = start("lap", ring)
    try:
        reader = RingReader(ring)
        rows = overtaken = 0
        deadline = time.monotonic() + 60
        while (rows < 5_000 or overtaken < 100) and time.monotonic() < deadline:
            table = snapshot_table(reader, columns=["observation", "action", "reward"])
            overtaken += int(table.schema.metadata[b"overtaken_rows"])
            key = table["generation"].to_numpy() * LANES + table["lane"].to_numpy()
            rows += len(key)
            if len(key):
                observation = table["observation"].combine_chunks().flatten().to_numpy().reshape(len(key), WIDTH)
                np.testing.assert_array_equal(observation, key[:, None] * WIDTH + np.arange(WIDTH))
                np.testing.assert_array_equal(table["action"].to_numpy(), key)
                np.testing.assert_array_equal(table["reward"].to_numpy(), key % 65_521)
    finally:
        kill(writer)
    assert (rows >= 5_000, overtaken >= 100) == (True, True), (rows, overtaken)


class NoEndCheck(RingReader):
    """Believes that nothing is ever overwritten."""

    def oldest_now(self):
        return np.zeros(self.lanes, np.int64)


class CheckByCommitted(RingReader):
    """Looks at what was published instead of what is being overwritten."""

    def oldest_now(self):
        return self._per_lane("oldest", self._words["committed"].copy() & 1)


class DerivedByReader(RingReader):
    """Works out the oldest row from the committed cursor instead of reading what the writer has announced."""

    def oldest_now(self):
        return self._per_lane("cursor", self._words["committed"].copy() & 1) + 1 - self.slots


@pytest.mark.parametrize(
    ("mode", "reader_class"),
    [("lap", NoEndCheck), ("lap", CheckByCommitted), ("lap", DerivedByReader), ("late_writing", RingReader)],
    ids=["no end check", "end check by committed", "oldest derived", "writing set after the columns"],
)
def test_bad_windows_get_through_when_a_part_of_the_protocol_is_left_out(ring, mode, reader_class):
    process = start(mode, ring)
    try:
        _, bad, _ = race(reader_class(ring), 60, lambda bad, overtaken: bad > 0)
    finally:
        kill(process)
    assert bad > 0


def test_no_row_is_doubled_lost_or_damaged_over_kills_of_the_writer(ring):
    cursors = []
    for attempt in range(6):
        process = start("go_on", ring)  # it refuses to run on if its committed fragment is taken twice
        time.sleep(0.05 + 0.013 * attempt)
        reader = RingReader(ring)
        kill_within_a_commit(process, reader)
        snapshot = reader.snapshot()
        for lane in range(LANES):
            numbers = np.arange(snapshot.oldest[lane], snapshot.cursor[lane] + 1)  # the head's observation, too
            at = lane * reader.slots + numbers % reader.slots
            key = numbers * LANES + lane
            np.testing.assert_array_equal(reader.columns["observation"][at], key[:, None] * WIDTH + np.arange(WIDTH))
            np.testing.assert_array_equal(reader.columns["action"][at[:-1]], key[:-1])
        assert snapshot.cursor[0] % ROWS == 0
        assert snapshot.inserted_rows == int(snapshot.cursor.sum())
        cursors.append(int(snapshot.cursor[0]))
        reader.close()
    assert cursors == sorted(set(cursors))  # each start went on behind the last
    assert cursors[0] > ring_process.SLOTS


def test_second_writer_is_refused_while_the_first_lives_and_welcome_when_it_was_killed(ring):
    process = start("lap", ring)
    try:
        with pytest.raises(ReplayError, match=f"another process writes this ring \\(pid {process.pid} opened it last"):
            RingWriter.open(ring, "test")
    finally:
        kill(process)
    RingWriter.open(ring, "test").close()


def test_forked_child_does_not_keep_the_lock_of_its_killed_parent(ring):
    process = start("fork", ring)
    child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
    try:
        process.send_signal(signal.SIGKILL)
        process.wait()
        os.kill(child, 0)  # it lives
        RingWriter.open(ring, "test").close()
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()
