"""The encoder of docs/learners.md, trained as it stands there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import yaml

PAGE = Path(__file__).resolve().parents[2] / "docs" / "learners.md"
SECTION = PAGE.read_text(encoding="utf-8").partition("Your own encoder is any")[2]
MODULE, RUN_FILE = (re.search(rf"^```{name}\n(.*?)^```$", SECTION, re.M | re.S)[1] for name in ("python", "yaml"))


def test_the_encoder_of_the_page_learns(workshop, tmp_path, monkeypatch):
    name = re.match(r"# (\S+)\n", MODULE)[1]
    assert name == "my_package/networks.py"
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    network = yaml.safe_load(RUN_FILE)["learner"]["network"]
    learner = {"kind": "dqn", "batch_size": 16, "support": {"low": -0.5, "high": 1.5}, "network": network}
    try:
        result = workshop.train(learner=learner)
        assert result.updates > 50
        assert sys.modules["my_package.networks"].MyEncoder.__name__ in network["path"]
    finally:
        for module in ("my_package", "my_package.networks"):
            sys.modules.pop(module, None)
