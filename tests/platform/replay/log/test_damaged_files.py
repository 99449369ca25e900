"""Damaged segments and manifests are refused with an error of ours, or read as they were: no crash, no wild memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("fuzz_rounds.py")


def outcomes(folder, rounds, seed):
    command = [sys.executable, str(SCRIPT), str(folder / "log"), str(rounds), str(seed)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=1_200)
    last = (folder / "round").read_text(encoding="ascii")
    assert finished.returncode == 0, f"seed {seed}, round {last}: {finished.returncode} {finished.stderr[-3_000:]}"
    return json.loads(finished.stdout)


def check(found, rounds):
    assert sum(found.values()) == rounds
    assert set(found) <= {"refused", "same", "vouched"}, found
    assert found["refused"] > 0.8 * rounds


def test_four_hundred_damaged_files_are_refused_or_read_as_they_were(tmp_path):
    check(outcomes(tmp_path, 400, 0), 400)


@pytest.mark.slow
@pytest.mark.timeout(1_500)
@pytest.mark.parametrize("seed", range(1, 5))
def test_ten_thousand_damaged_files_are_refused_or_read_as_they_were(tmp_path, seed, capsys):
    found = outcomes(tmp_path, 2_500, seed)
    check(found, 2_500)
    with capsys.disabled():
        sys.stdout.write(f"\nseed {seed}: {found}\n")
