"""Where a named log lies: a run's own folder, the place in its settings, a path, an address."""

from __future__ import annotations

import pytest

from onibi.platform.errors import ConfigError
from onibi.platform.replay.datasets.log_location import find_log
from onibi.platform.run_folder import create_run


@pytest.fixture
def run(tmp_path):
    return create_run(tmp_path / "runs", "corridor")


@pytest.mark.parametrize(
    ("replay", "place"),
    [
        ({}, "{run}/replay"),
        ({"log": {"url": None}}, "{run}/replay"),
        ({"log": {"enabled": False}}, "{run}/replay"),
        ({"log": {"url": "memory://bucket/logs/"}}, "memory://bucket/logs/{run_id}"),
        ({"log": {"url": "{root}/logs"}}, "{root}/logs/{run_id}"),
        ({"log": {"url": "file://{root}/logs"}}, "{root}/logs/{run_id}"),
    ],
)
def test_a_runs_log_lies_where_its_settings_say(run, tmp_path, replay, place):
    if "log" in replay and replay["log"].get("url"):
        replay = {"log": {"url": replay["log"]["url"].format(root=tmp_path)}}
    run.write_config({"replay": replay})
    expected = place.format(run=run.path, run_id=run.record().run_id, root=tmp_path)
    for name in ("corridor", "last", str(run.path)):
        found = find_log(tmp_path / "runs", name)
        assert (found.location, found.run) == (expected, run)


def test_a_folder_of_segments_and_an_address_are_taken_as_they_are(log, tmp_path):
    assert find_log(tmp_path / "runs", log.location).location == log.location
    assert find_log(tmp_path / "runs", "s3://bucket/log").location == "s3://bucket/log"


def test_a_run_without_a_log_is_told_by_name(run, tmp_path):
    run.write_config({"replay": {"log": {"enabled": False}}})
    with pytest.raises(ConfigError, match=r"run 'corridor': .*no replay log is here"):
        find_log(tmp_path / "runs", "corridor").open()


def test_a_name_that_is_nothing_is_told_with_the_nearest_run(run, tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'corridor'"):
        find_log(tmp_path / "runs", "coridor")
    with pytest.raises(ConfigError, match="neither a run nor a folder with segments"):
        find_log(tmp_path / "runs", str(tmp_path))
