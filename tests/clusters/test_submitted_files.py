"""What a submitted run may name: nothing that lies on the machine which submits it."""

from __future__ import annotations

import pytest

from onibi.clusters.sessions import read_run_settings
from onibi.clusters.submit import JobSettings, submit
from onibi.clusters.submitted_files import check_files
from onibi.platform.errors import ConfigError
from onibi.platform.presets import preset_names

OPENAI = ["annotator.kind=openai", "annotator.base_url=http://h/v1", "annotator.model=models"]


def check(*overrides, preset="corridor-oni"):
    check_files(read_run_settings(preset, overrides))


@pytest.mark.parametrize("preset", preset_names("onibi.clusters.presets"))
def test_every_preset_can_be_submitted(preset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check(preset=preset)


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["annotator.lexicon=rules.yaml"], "annotator.lexicon is 'rules.yaml'"),
        (["annotator.lexicon=~/rules.yaml"], "annotator.lexicon is '~/rules.yaml'"),
        ([*OPENAI, "annotator.prompt=mine/prompt.yaml"], "annotator.prompt is 'mine/prompt.yaml'"),
        ([*OPENAI, "annotator.budget.file=spent.json"], "annotator.budget.file is 'spent.json'"),
        (["annotator.kind=replay", "annotator.path=runs/first"], "annotator.path is 'runs/first'"),
        (["annotators.b.kind=embedding", "annotators.b.model=models"], "annotators.b.model is 'models'"),
        (["annotation.table=labels"], "annotation.table is 'labels'"),
        (["reward_model.fitted=fitted"], "reward_model.fitted is 'fitted'"),
    ],
)
def test_a_relative_path_is_refused_by_the_name_of_its_setting(overrides, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(ConfigError, match=name):
        check(*overrides)


def test_every_fault_is_told_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"annotator\.lexicon is 'a\.yaml', annotation\.table is 't'"):
        check("annotator.lexicon=a.yaml", "annotation.table=t")


def test_paths_on_the_cluster_names_and_import_paths_are_not_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    check("annotator.lexicon=/shared/rules.yaml", "annotation.table=~/labels")
    check(*OPENAI, "annotator.prompt=~/prompt.yaml", "annotator.budget.file=/shared/spent.json")
    check("annotator.kind=custom", "annotator.path=mine.judges:Judge")
    check("annotator.kind=embedding", "annotator.model=somebody/encoder")


def test_nothing_is_sent_of_a_run_that_names_a_file_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rules.yaml").write_text("goal: g\nunmatched: unhelpful\nrules: []\n")
    with pytest.raises(ConfigError, match=r"annotator\.lexicon is 'rules\.yaml'.*absolute path"):
        submit(
            "corridor-oni",
            # Nobody answers there: a SubmitError, were it asked.
            JobSettings(address="http://127.0.0.1:1", runs_folder="~/onibi-runs", stage=False, wait=False),
            overrides=["annotator.lexicon=rules.yaml"],
            name="run",
            tell=print,
        )
