"""The examples of docs/replay-datasets.md, run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[4] / "docs" / "replay-datasets.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def expected(logs, tmp_path, monkeypatch) -> dict[int, float]:
    """Returns by episode of the log that the examples find under runs/corridor."""
    lanes = logs.two_lanes()
    logs.seal(str(tmp_path / "runs" / "corridor" / "replay"), lanes, segments=3)
    monkeypatch.chdir(tmp_path)
    totals: dict[int, float] = {}
    for lane in lanes:
        for row in lane.rows:
            episode = int(row["episode_id"])
            totals[episode] = totals.get(episode, 0.0) + float(row["reward"])
    return totals


def run(word: str) -> dict:
    (source,) = [example for example in EXAMPLES if word in example]
    names: dict = {}
    exec(compile(source, f"{PAGE.name}: {word}", "exec"), names)
    return names


def test_there_is_an_example_for_each_tool():
    assert len(EXAMPLES) == 4


def test_polars_finds_the_return_of_every_episode(expected):
    returns = run("import polars")["returns"]
    assert dict(zip(returns["episode_id"].to_list(), returns["total"].to_list(), strict=True)) == expected


def test_duckdb_finds_the_return_of_every_episode(logs, tmp_path, monkeypatch):
    # As the page says, a log with 16-bit floats is not for DuckDB alone.
    from dataclasses import replace

    spec = replace(logs.SPEC, extra=logs.SPEC.extra[:1])
    lanes = logs.two_lanes()
    logs.seal(str(tmp_path / "runs" / "corridor" / "replay"), lanes, segments=3, spec=spec)
    monkeypatch.chdir(tmp_path)
    found = {row["episode_id"]: row["total"] for row in run("import duckdb")["returns"].to_pylist()}
    assert found == {
        number: sum(float(row["reward"]) for lane in lanes for row in lane.rows if row["episode_id"] == number)
        for number in (1, 2, 3, 11, 12)
    }


def test_pyarrow_finds_the_return_of_every_episode(expected):
    assert dict(run("import pyarrow.dataset")["returns"]) == expected


def test_a_sampler_draws_from_the_ring_of_a_log(expected, monkeypatch):
    ring = Path("/dev/shm/corridor-offline.ring")
    assert not ring.exists()
    try:
        names = run("load_into_ring")
    finally:
        ring.unlink(missing_ok=True)
    assert names["windows"].reward.shape == (128, 3)
    assert names["loaded"].steps == 30
