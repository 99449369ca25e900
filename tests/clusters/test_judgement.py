"""`onibi evaluate` of one run: by what it judges, how many episodes it plays, and what its help says."""

from __future__ import annotations

import json

import pytest
import yaml
from typer.testing import CliRunner

from onibi.actors.evaluation import PlayedEpisode
from onibi.clusters.cli.main import app
from onibi.clusters.judgement import _report
from onibi.platform.run_folder import find_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory, corridor_settings):
    """A run that reaches the corridor's end, and whose judge finds nothing helpful: captions pay nobody anything."""
    from onibi.clusters import train

    folder = tmp_path_factory.mktemp("judged")
    (folder / "rings").mkdir()
    settings = corridor_settings(
        folder / "rings",
        environment={
            "id": "onibi.actors.environments.listening_corridor:make",
            "vectorization": "native",
            "kwargs": {"rooms": 2, "room_length": 3},
            "max_episode_steps": 20,
        },
        budget={"max_env_steps": 3_000, "max_seconds": None},
        evaluation={"period_env_steps": None, "episodes": 4, "envs": 2, "judge": "success"},
    )
    settings["annotator"] = {"kind": "lexicon", "lexicon": str(_all_unhelpful(folder))}
    train(settings, serial=True, name="run", runs_folder=folder / "runs", display=False)
    return find_run(folder / "runs", "run")


def _all_unhelpful(folder):
    path = folder / "nothing.yaml"
    path.write_text(yaml.safe_dump({"goal": "Reach the end.", "unmatched": "unhelpful", "rules": []}), encoding="utf-8")
    return path


def evaluate(run, *arguments, code=0):
    command = ["evaluate", "run", "--runs-folder", str(run.root), *map(str, arguments)]
    result = CliRunner().invoke(app, command, env={"COLUMNS": "160"})
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def judged_by(trained):
    """Sets what the run is judged by; puts it back at the end."""
    before = trained.config.read_text(encoding="utf-8")

    def change(judge):
        settings = yaml.safe_load(before)
        settings["evaluation"]["judge"] = judge
        trained.config.write_text(yaml.safe_dump(settings), encoding="utf-8")

    yield change
    trained.config.write_text(before, encoding="utf-8")


@pytest.mark.parametrize(("judge", "figure"), [("success", "success"), ("episode_return", "return")])
def test_the_verdict_is_on_what_the_run_is_judged_by_though_captions_pay_both_alike(trained, judged_by, judge, figure):
    judged_by(judge)
    told = evaluate(trained, "--against", "random", "--episodes", 16)
    assert f"trained player's {figure}, by which this run is judged (evaluation.judge), lies above" in told
    assert "intrinsic return 0 " in told, "the other figures stand beside it"


def test_a_run_that_is_judged_by_its_captions_does_not_pass_by_its_return(trained, judged_by):
    judged_by("intrinsic_return")
    told = evaluate(trained, "--against", "random", "--episodes", 16, code=1)
    assert "trained player's intrinsic return, by which" in told
    assert "does NOT lie above" in told


def test_a_figure_that_the_task_does_not_tell_is_not_passed(workshop):
    rewards = {"extrinsic": {"coefficient": 1.0, "clip": 1.0}, "intrinsic": None}
    budget = {"max_env_steps": 200, "max_seconds": None}
    evaluation = {"period_env_steps": None, "episodes": 2}
    workshop.train(captioner={"kind": "none"}, rewards=rewards, budget=budget, evaluation=evaluation)
    run = find_run(workshop.runs, "run")
    config = run.read_config()
    run.write_config({**config, "evaluation": {**config["evaluation"], "judge": "intrinsic_return"}})
    told = evaluate(run, "--against", "random", "--episodes", 8, code=1)
    assert "no episode told the intrinsic return, by which this run is judged (evaluation.judge): not passed" in told


def test_one_episode_against_one_is_too_little_to_pass_by(trained, judged_by):
    judged_by("episode_return")
    told = evaluate(trained, "--against", "random", "--episodes", 1, code=1)
    assert "too few episodes to tell the trained player's return" in told
    assert "(too few episodes)" in told
    report = json.loads(evaluate(trained, "--against", "random", "--episodes", 1, "--json", code=1))
    interval = report["players"][0]["episode_return"]
    assert (report["passed"], interval["low"], interval["high"]) == (False, None, None)


def test_exactly_as_many_episodes_are_played_as_were_asked_for(trained):
    told = evaluate(trained, "--episodes", 10)
    assert told.startswith("run, best checkpoint, of 3,"), "which one plays is told first"
    assert "success 100% (95%: " in told
    assert "trained: 10 episodes" in told
    report = json.loads(evaluate(trained, "--episodes", 10, "--json"))
    assert (report["asked"], report["players"][0]["episodes"], report["passed"]) == (10, 10, None)


def test_the_help_tells_the_defaults_and_what_best_means():
    told = " ".join(CliRunner().invoke(app, ["evaluate", "--help"], env={"COLUMNS": "300"}).output.split())
    for default in ("best", "100", "10000"):
        assert f"Default: {default}." in told
    assert "[default: (" not in told
    assert "best is the one that the run's own evaluations scored highest, by its evaluation.judge" in told


def test_success_that_is_told_of_won_episodes_alone_counts_the_others_as_lost():
    played = [PlayedEpisode(1.0, 5, 0.0, {"success": 1.0}), *[PlayedEpisode(0.0, 5, 0.0, {})] * 3]
    assert _report("trained", played, has_captions=False).success.mean == 0.25
    assert _report("trained", played[1:], has_captions=False).success is None


def test_shares_of_success_are_not_rounded_to_whole_ones():
    played = [PlayedEpisode(1.0, 5, 0.0, {"success": share}) for share in (0.25, 0.25, 0.5, 1.0)]
    assert _report("trained", played, has_captions=False).success.mean == 0.5


def test_a_run_that_learnt_on_a_gpu_is_evaluated_on_a_machine_without_one(workshop):
    workshop.train()
    run = find_run(workshop.runs, "run")
    settings = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    settings["placement"]["learner_gpus"] = 1.0
    settings["learner"]["acceleration"] |= {"precision": "bf16", "compile": "graphs"}
    run.config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert "trained: 8 episodes" in evaluate(run, "--episodes", 8)


def test_labels_that_were_held_back_pay_once_the_run_is_past_that(workshop):
    workshop.train(annotation={"delay_steps": 400}, environment__kwargs={"rooms": 3, "room_length": 2})
    report = json.loads(evaluate(find_run(workshop.runs, "run"), "--episodes", 8, "--json"))
    assert report["players"][0]["intrinsic_return"]["mean"] > 0.3
