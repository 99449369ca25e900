"""More actors than lanes under Ray: one waits, takes the lanes of a killed one, and every row stays somebody's."""

from __future__ import annotations

import numpy as np
import psutil
import pytest

from onibi.platform.errors import ConfigError
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.spec import ROLE_FINAL

TIMEOUT_SECONDS = 1.0


def rollouts(process):
    """Ray names a worker's process after its actor."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            title = " ".join(child.cmdline())
        except psutil.Error:
            continue
        if title.startswith("ray::RolloutActor"):
            found.append(child)
    return found


def incarnations(workshop):
    """Of each group, as the ring's header has them."""
    (ring,) = [path for path in workshop.rings.iterdir() if path.suffix == ".ring"]
    reader = RingReader(ring)
    words = reader._words["incarnation"][reader._words["committed"] & 1, np.arange(reader.layout.groups)].tolist()
    reader.close()
    return words


def assert_pieces_go_on(workshop):
    """In every lane, within a piece, episode and step go on by one row at a time."""
    (ring,) = [path for path in workshop.rings.iterdir() if path.suffix == ".ring"]
    reader = RingReader(ring)
    snapshot = reader.snapshot()
    for lane in range(reader.lanes):
        numbers = np.arange(snapshot.oldest[lane], snapshot.cursor[lane])
        places = lane * reader.slots + numbers % reader.slots
        episode, step, role = (reader.columns[name][places] for name in ("episode_id", "step", "role"))
        whole = numbers >= reader.oldest_now()[lane]
        goes_on = (role[:-1] != ROLE_FINAL) & whole[:-1]
        assert (episode[1:][goes_on] == episode[:-1][goes_on]).all()
        assert (step[1:][goes_on] == step[:-1][goes_on] + 1).all()
    reader.close()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_an_actor_without_lanes_takes_those_of_a_killed_one(workshop):
    process = workshop.start(
        serial=False,
        actors__count=3,
        replay__max_actors=2,
        replay__lane_timeout_seconds=TIMEOUT_SECONDS,
        replay__capacity_rows=400_000,
        placement__rollout_cpus=0.2,
        budget__max_env_steps=10**7,
    )
    kept = []
    try:
        waiting = lambda: workshop.history()[-1].get("actors/waiting_for_lanes") if workshop.history() else None  # noqa: E731
        workshop.wait_for(lambda: waiting() == 1, 150, process)
        kept = psutil.Process(process.pid).children(recursive=True)
        before = incarnations(workshop)
        assert before == [1, 1]
        victims = rollouts(process)
        assert len(victims) == 3
        for victim in victims:  # whichever of them waits: all come back, two of them to lanes
            victim.kill()
        workshop.wait_for(lambda: min(incarnations(workshop)) >= 2, 90, process)
        steps = workshop.history()[-1]["actors/env_steps"]
        workshop.wait_for(lambda: workshop.history()[-1]["actors/env_steps"] > steps + 500, 90, process)
        workshop.wait_for(lambda: waiting() == 1, 60, process)
        assert_pieces_go_on(workshop)
        process.terminate()
        assert process.wait(90) == 0, workshop.log_of()[-3_000:]
    finally:
        process.kill()
        process.wait()
        for child in kept:
            if child.is_running():
                child.kill()
    assert list(workshop.rings.iterdir()) == []


def test_a_serial_run_needs_lanes_for_every_actor(workshop):
    with pytest.raises(ConfigError, match=r"replay\.max_actors is 1, actors\.count 2: a serial run"):
        workshop.train(replay__max_actors=1)
    assert not workshop.runs.exists()
