"""Runs over an environment with a Text leaf: they train, and their rows can be read back with their texts."""

from __future__ import annotations

import sys

import duckdb
import pytest
from typer.testing import CliRunner

from onibi.clusters.cli.main import app
from onibi.platform.annotation.captions import text_hash
from onibi.platform.errors import ConfigError
from onibi.platform.replay.log.log_reader import ReplayLog

# Each text tells which action pays, and in how many words there is no end: only its first word counts.
MODULE = '''
import gymnasium as gym
import numpy as np
import torch

class Signpost(gym.Env):
    """Ten steps; reward 1 for the action that the text names."""
    action_space = gym.spaces.Discrete(2)
    LEAVES = {"text": gym.spaces.Text(40, min_length=0), "place": gym.spaces.Box(0, 1, (2,), np.float32)}

    def __init__(self, alone=False):
        self.alone = alone
        self.observation_space = self.LEAVES["text"] if alone else gym.spaces.Dict(self.LEAVES)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def step(self, action):
        reward = float(action == self.way)
        self.steps += 1
        return self.observe(), reward, self.steps == 10, False, {}

    def observe(self):
        self.way = int(self.np_random.integers(2))
        text = ("left, träveller", "right, ☃")[self.way]
        return text if self.alone else {"text": text, "place": np.full(2, 0.5, np.float32)}

class Reader(torch.nn.Module):
    """One learnt vector for each of 64 residues of the hash."""
    def __init__(self, observation):
        super().__init__()
        self.words = torch.nn.Embedding(64, 8)
        self.name = next(spec.name for spec in observation if spec.content == "text hash")

    def forward(self, observation):
        return self.words(observation[self.name].view(torch.int64) % 64)
'''
TEXTS = {"left, träveller", "right, ☃"}


@pytest.fixture
def signpost(workshop, tmp_path, monkeypatch):
    """Trains a run over the environment above."""
    (tmp_path / "signpost_envs.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))

    def train(name="run", *, alone=False, **changes):
        learner = {"kind": "dqn", "batch_size": 32, "learning_rate": 1e-2, "discount": 0.0} | changes.pop("learner", {})
        return workshop.train(
            name,
            environment={"id": "signpost_envs:Signpost", "kwargs": {"alone": alone}},
            captioner={"kind": "none"},
            rewards={"extrinsic": {"coefficient": 1.0, "clip": 1.0}, "intrinsic": None},
            learner=learner,
            **changes,
        )

    yield train
    sys.modules.pop("signpost_envs", None)


def return_of(result):
    return result.evaluations[-1]["return_mean"]


def test_a_network_of_the_users_own_learns_from_texts_and_the_default_one_cannot_see_them(signpost):
    reader = {"network": {"kind": "custom", "path": "signpost_envs:Reader"}}
    assert return_of(signpost("reads", learner=reader, budget__max_env_steps=600)) > 9.0
    assert return_of(signpost("ignores", budget__max_env_steps=600)) < 8.0  # 5 by chance


def test_rows_of_a_run_are_read_back_with_their_texts(signpost, workshop, monkeypatch, tmp_path):
    result = signpost(budget__max_env_steps=300, replay__log={"segment_bytes": 4_096})
    log = ReplayLog(workshop.runs / "run" / "replay")
    assert log.verify() == []
    assert len(log.segments) > 2, "each segment has the texts that its rows name"
    assert set(log.texts()["text"].to_pylist()) == TEXTS
    rows, texts = log.dataset().to_table(), log.texts()
    assert set(rows["observation.text"].to_pylist()) == {text_hash(text) for text in TEXTS}
    found = duckdb.sql(
        """select text, count(*) as steps, sum((reward = 1)::int) as paid, sum((action = way)::int) as right
        from (select *, (text like 'right%')::int as way from rows join texts on "observation.text" = text_hash)
        where role = 0 group by text"""
    ).fetchall()
    assert {text for text, *_ in found} == TEXTS
    assert sum(steps for _, steps, *_ in found) == result.env_steps
    assert all(paid == right > 0 for *_, paid, right in found), "a row's text is that of its own observation"
    assert rows.num_rows > texts.num_rows == 2

    monkeypatch.setenv("COLUMNS", "200")
    sql = 'select text from rows join texts on "observation.text" = text_hash order by lane, generation limit 1'
    for arguments in (
        ["export", "run", str(tmp_path / "out")],
        ["import", str(tmp_path / "out"), "--to", str(tmp_path / "back")],
        ["query", "run", sql, "--format", "csv"],
        ["query", str(tmp_path / "back"), sql, "--format", "csv"],
        ["info", "run"],
    ):
        told = ["--runs-folder", str(workshop.runs)] if arguments[0] != "import" else []
        answer = CliRunner().invoke(app, ["replay", *arguments, *told])
        assert answer.exit_code == 0, answer.output
        if arguments[0] == "query":
            assert answer.stdout.splitlines()[1].strip('"') in TEXTS
        if arguments[0] == "info":
            assert "texts" in answer.stdout


def test_text_alone_is_refused_unless_a_network_of_the_users_own_reads_it(signpost):
    with pytest.raises(ConfigError, match=r"Text alone.*learner\.network\.kind to custom"):
        signpost("bare", alone=True)
    reader = {"network": {"kind": "custom", "path": "signpost_envs:Reader"}}
    assert signpost("read", alone=True, learner=reader, budget__max_env_steps=200).env_steps >= 200


def test_a_resumed_run_goes_on_with_its_texts_and_learns_from_those_in_its_log(signpost, workshop, caplog):
    reader = {"network": {"kind": "custom", "path": "signpost_envs:Reader"}}
    signpost(learner=reader, budget__max_env_steps=150)
    rows = ReplayLog(workshop.runs / "run" / "replay").rows
    with caplog.at_level("INFO"):
        result = workshop.resume(overrides=["budget.max_env_steps=300"])
    assert f"the replay ring is new: it begins with {rows:,} rows of the log" in caplog.text
    log = ReplayLog(workshop.runs / "run" / "replay")
    assert log.verify() == []
    assert log.rows >= result.env_steps >= 300
    assert set(log.texts()["text"].to_pylist()) == TEXTS
