"""The encoder and the learner of docs/learners.md, trained as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import yaml

PAGE = Path(__file__).resolve().parents[2] / "docs" / "learners.md"


def blocks_after(words):
    """The Python and the YAML block that come next on the page."""
    section = PAGE.read_text(encoding="utf-8").partition(words)[2]
    return [re.search(rf"^```{name}\n(.*?)^```$", section, re.M | re.S)[1] for name in ("python", "yaml")]


MODULE, RUN_FILE = blocks_after("Your own encoder is any")
LEARNER, LEARNER_RUN_FILE = blocks_after("## A learner of your own")


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


def test_the_learner_of_the_page_learns_and_is_evaluated(tmp_path, monkeypatch):
    assert LEARNER.startswith("# my_learner.py")
    (tmp_path / "my_learner.py").write_text(LEARNER, encoding="utf-8")
    (tmp_path / "cautious.yaml").write_text(LEARNER_RUN_FILE, encoding="utf-8")
    (tmp_path / "rings").mkdir()
    monkeypatch.chdir(tmp_path)

    def onibi(*arguments):
        return subprocess.run([sys.executable, "-m", "onibi", *arguments], capture_output=True, text=True, check=False)

    small = ("budget.max_env_steps=2000", "evaluation.episodes=2", "evaluation.envs=2", "replay.folder=rings")
    few = [part for each in (*small, "replay.limiter.minimum_rows=500") for part in ("--set", each)]
    trained = onibi("train", "cautious.yaml", "--serial", *few)
    assert trained.returncode == 0, trained.stderr
    config = yaml.safe_load((tmp_path / "runs" / "cautious" / "config.yaml").read_text(encoding="utf-8"))
    assert (config["learner"]["kind"], config["learner"]["caution"]) == ("my_learner:CautiousDqn", 3.0)
    assert config["learner"]["n_steps"] == 10, "the preset's"
    assert "trained: 2 episodes" in onibi("evaluate", "cautious", "--episodes", "2").stdout
