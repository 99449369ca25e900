"""What an experiment finds its rows by: a hash that changes with all that a run was told, and with nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from onibi.actors.annotators.prompt_template import PROMPT_FOLDER
from onibi.clusters.experiments.declaration import CalledTrial, TrainedTrial
from onibi.clusters.experiments.registry import find_experiment
from onibi.clusters.experiments.result_table import ResultTable
from onibi.clusters.experiments.schedule import Schedule, trial_hash
from onibi.clusters.run_settings import ReplaySettings
from onibi.platform.errors import ConfigError


def test_the_hash_changes_with_the_preset_and_not_with_the_seed(tmp_path):
    preset = tmp_path / "mine.yaml"

    def hash_of(text, *overrides):
        preset.write_text(text, encoding="utf-8")
        return trial_hash(TrainedTrial(preset=str(preset), overrides=overrides))

    first = hash_of("extends: cartpole-dqn\n")
    assert hash_of("# A word more.\nextends: cartpole-dqn\nseed: 5\n") == first
    assert hash_of("extends: cartpole-dqn\n", "seed=9") == first
    assert trial_hash(TrainedTrial(preset="cartpole-dqn")) == first
    changed = hash_of("extends: cartpole-dqn\nlearner: {discount: 0.98}\n")
    assert changed != first
    assert hash_of("extends: cartpole-dqn\n", "learner.discount=0.98") == changed
    # A setting that is told its default anew is as one that was never told: so new settings leave old rows alone.
    assert hash_of("extends: cartpole-dqn\n", f"replay.folder={ReplaySettings().folder}") == first
    assert trial_hash(TrainedTrial(preset="cartpole-dqn", episodes=21)) != first
    assert trial_hash(TrainedTrial(preset="cartpole-dqn", revision=2)) != first


def test_the_hash_of_a_call_changes_with_arguments_and_revision():
    trial = CalledTrial(function="m:f", arguments={"a": 1, "b": 2})
    assert trial_hash(CalledTrial(function="m:f", arguments={"b": 2, "a": 1})) == trial_hash(trial)
    others = [trial.changed("a", 3), CalledTrial(function="m:g", arguments={"a": 1, "b": 2})]
    others.append(CalledTrial(function="m:f", arguments={"a": 1, "b": 2}, revision=2))
    assert len({trial_hash(each) for each in [trial, *others]}) == 4


def test_a_judge_that_is_chosen_by_itself_counts_as_the_one_that_it_stands_for(monkeypatch):
    def hash_of(*overrides):
        return trial_hash(TrainedTrial(preset="minihack-oni", overrides=overrides))

    embedding = (
        "annotator.kind=embedding",
        "annotator.goal=Find the key. Open the locked door.",
        "annotator.threshold=0.5",
    )
    found = []
    for is_installed, explicit in ((True, embedding), (False, ("annotator.kind=lexicon", "annotator.lexicon=nethack"))):
        monkeypatch.setattr("onibi.actors.annotators.auto.is_installed", lambda _, answer=is_installed: answer)
        found.append(hash_of())
        assert hash_of(*explicit) == found[-1]
    assert found[0] != found[1]
    alone = hash_of("rewards.intrinsic=null")
    monkeypatch.setattr("onibi.actors.annotators.auto.is_installed", lambda _: True)
    assert hash_of("rewards.intrinsic=null") == alone, "where no label pays, the run is the same whoever judges"


LEXICON = "goal: Go on.\nunmatched: unhelpful\nrules: [{match: key, label: helpful, why: it opens}]\n"


def test_the_hash_changes_with_what_a_lexicon_of_ones_own_says_and_not_with_its_comments(tmp_path):
    path = tmp_path / "mine.yaml"
    overrides = ("annotator.kind=lexicon", f"annotator.lexicon={path}")

    def hash_of(text):
        path.write_text(text, encoding="utf-8")
        return trial_hash(TrainedTrial(preset="minihack-oni", overrides=overrides))

    first = hash_of(LEXICON)
    assert hash_of(f"# A word more.\n{LEXICON}") == first
    assert hash_of(LEXICON.replace("key", "door")) != first
    path.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        trial_hash(TrainedTrial(preset="minihack-oni", overrides=overrides))


def test_the_hash_changes_with_what_a_prompt_of_ones_own_says(tmp_path):
    path = tmp_path / "mine.yaml"
    overrides = (
        "annotator.kind=openai",
        f"annotator.prompt={path}",
        "annotator.model=some",
        "annotator.base_url=http://nowhere",
    )
    shipped = (PROMPT_FOLDER / "nethack.yaml").read_text(encoding="utf-8")

    def hash_of(text):
        path.write_text(text, encoding="utf-8")
        return trial_hash(TrainedTrial(preset="minihack-oni", overrides=overrides))

    edited = yaml.safe_load(shipped) | {"helpful": "whatever shines"}
    assert hash_of(shipped) == hash_of(f"# A word more.\n{shipped}") != hash_of(yaml.safe_dump(edited))


def test_the_hash_of_a_call_changes_with_its_preset(tmp_path):
    preset = tmp_path / "mine.yaml"

    def hash_of(text, *overrides, **changes):
        preset.write_text(text, encoding="utf-8")
        told = {"function": "m:f", "preset": str(preset), "overrides": overrides} | changes
        return trial_hash(CalledTrial(**told))

    first = hash_of("extends: cartpole-dqn\n")
    assert hash_of("extends: cartpole-dqn\nseed: 5\n", "seed=9") == first
    changed = hash_of("extends: cartpole-dqn\nlearner: {discount: 0.98}\n")
    assert changed != first
    assert hash_of("extends: cartpole-dqn\n", "learner.discount=0.98") == changed
    assert hash_of("extends: cartpole-dqn\n", revision=2) != first
    assert hash_of("extends: cartpole-dqn\n", arguments={"a": 1}) != first
    with pytest.raises(ConfigError):
        hash_of("extends: cartpole-nobody\n")
    with pytest.raises(ValueError, match="no preset to change"):
        CalledTrial(function="m:f", overrides=("a.b=c",))


def test_the_recorded_rows_of_relabelling_still_count():
    table = ResultTable(Path(__file__).parents[3] / "docs" / "results" / "relabelling.csv")
    experiment = find_experiment("relabelling")
    first = [replace(arm, trial=replace(arm.trial, revision=1)) for arm in experiment.arms]  # as they were measured
    schedule = Schedule(experiment, table, first, None, short=False, retry=False)
    assert schedule.estimates() == []


def test_what_is_filmed_makes_no_other_row():
    def hash_of(*overrides):
        return trial_hash(TrainedTrial(preset="minihack-oni", overrides=overrides))

    assert hash_of("evaluation.film_episodes=0") == hash_of("evaluation.film_episodes=7") == hash_of()
    assert hash_of("evaluation.episodes=47") != hash_of()
