"""kill -9 at random instants of writing: nothing damaged, nothing twice, and no more lost than was not sealed yet."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("kill_rounds.py")
SEAL_SECONDS = 0.1  # as the script has it


def reports_of(folder, kills, seed, ring, longest_seconds):
    command = [sys.executable, str(SCRIPT), str(folder), str(kills), str(seed), ring, str(longest_seconds)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=2_400)
    assert finished.returncode == 0, finished.stderr[-3_000:]
    return json.loads(finished.stdout)


def check(reports, ring):
    assert sum(report["segments"] for report in reports) > 0, "nothing was ever sealed"
    for report in reports:
        assert [report[name] for name in ("damaged", "doubled", "wrong", "holes", "vanished")] == [0] * 5
        assert report["gaps"] == 0 or ring == "keep"
    if ring == "keep":
        assert reports[-1]["free"] == 0
        assert reports[-1]["unsealed"] == 0, "what the ring kept is sealed by the next session"
    rows = [report["rows"] for report in reports]
    assert rows == sorted(rows), "what was sealed stays"


@pytest.mark.parametrize("ring", ["keep", "lose"])
def test_five_kills_damage_and_double_nothing(tmp_path, ring):
    check(reports_of(tmp_path / "log", 5, 1, ring, 1.2), ring)


@pytest.mark.slow
@pytest.mark.timeout(2_700)
@pytest.mark.parametrize(("seed", "ring"), [(2, "keep"), (3, "keep"), (4, "lose"), (5, "lose")])
def test_fifty_kills_of_each_of_four_logs_damage_and_double_nothing(tmp_path, seed, ring, capsys):
    reports = reports_of(tmp_path / "log", 50, seed, ring, 4.0)
    check(reports, ring)
    # The last look is at the ring of the last round again.
    lost = sum(report["unsealed"] for report in reports[:-1]) if ring == "lose" else reports[-1]["unsealed"]
    age = max(report["unsealed_age_seconds"] for report in reports)
    assert age < SEAL_SECONDS + 2.5, "sealing itself takes a while on a busy disk, but never as long as the sessions"
    with capsys.disabled():
        sys.stdout.write(
            f"\n{ring}: 50 kills, {reports[-1]['rows']} rows sealed in {reports[-1]['segments']} segments, {lost} "
            f"lost, the oldest unsealed row {age:.2f} s old at its kill\n"
        )
