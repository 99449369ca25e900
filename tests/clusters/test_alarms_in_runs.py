"""Alarms on hacked rewards in whole runs, what they leave behind, and `onibi rewards explain`."""

from __future__ import annotations

import json

import pytest
import yaml
from typer.testing import CliRunner

from onibi.clusters.cli.main import app
from onibi.clusters.reports.reward_explanation import alarm_courses, explain
from onibi.platform.checkpoint import CheckpointParts, load_checkpoint, save_checkpoint
from onibi.platform.run_folder import find_run

ALARMS = {"hold_episodes": 10, "least_episodes": 5, "episodes": 40}
LISTENING = {
    "id": "onibi.actors.environments.listening_corridor:make",
    "kwargs": {"rooms": 3, "room_length": 2, "max_episode_steps": 20},
    "vectorization": "native",
}
ONLY_WATCH = {"capacity_rows": 8_000, "limiter": {"samples_per_insert": 4, "minimum_rows": 4_000}}  # learn nothing
ROOMS = {
    "goal": "Walk on.",
    "unmatched": "unhelpful",
    "rules": [{"match": "^You (enter|reach)", "label": "helpful", "why": "further on"}],
}


@pytest.fixture
def listening(workshop, tmp_path, monkeypatch):
    """Trains in the corridor where one can also listen; ``rules`` judge. Figures are told after each fragment: when
    an alarm goes up is then no matter of the machine's speed.
    """
    monkeypatch.setattr("onibi.clusters.serial_run._INTERVAL_SECONDS", 0.0)

    def train(rules, steps=1_500, **changes):
        path = tmp_path / "rules.yaml"
        path.write_text(yaml.safe_dump(rules))
        return workshop.train(
            environment=LISTENING,
            annotator={"kind": "lexicon", "lexicon": str(path)},
            alarms=ALARMS,
            replay=ONLY_WATCH | {"folder": str(workshop.rings)},
            budget={"max_env_steps": steps, "max_seconds": None},
            **changes,
        )

    return train


def up(rows):
    return {name.removeprefix("alarms/") for row in rows for name, value in row.items() if "alarms/" in name and value}


def test_paying_for_all_that_is_heard_raises_the_alarm_of_hearsay(listening, workshop, caplog):
    result = listening({**ROOMS, "unmatched": "helpful", "rules": []})
    assert "heard" in up(workshop.history())
    assert result.figures["rewards/heard_share"] > 0.5
    assert "of the caption reward is for what was perceived, not done" in caplog.text


def test_a_judge_of_deeds_raises_no_alarm_and_the_ends_are_told(listening, workshop):
    result = listening(ROOMS)
    assert up(workshop.history()) <= {"one_key"}, "a random walk mostly enters the first room"
    assert result.figures["rewards/heard_share"] == 0
    assert result.figures["rewards/new_keys_per_episode"] > 0
    # Who fails has entered fewer rooms: 0.11 to 0.14 against 1.17 to 1.19, seen with three seeds.
    failure, success = (result.figures[f"rewards/discounted_total_of_{end}"] for end in ("failure", "success"))
    assert 0.0 < failure < 0.5 * success


def test_one_key_that_pays_alone_raises_its_alarm_and_a_run_without_pay_has_none(listening, workshop):
    wall = {**ROOMS, "rules": [{"match": "^You bump", "label": "helpful", "why": "a mistake"}]}
    result = listening(wall, steps=1_200)
    assert up(workshop.history()) == {"one_key"}
    assert result.figures["rewards/best_key_share"] == 1
    plain = listening(wall, steps=200, rewards={"extrinsic": {"coefficient": 1.0, "clip": 1.0}, "intrinsic": None})
    assert not [name for name in plain.figures if name.startswith(("alarms/", "rewards/"))]


def test_what_keys_were_paid_outlives_a_resume(listening, workshop):
    first = listening(ROOMS, steps=600)
    paid = dict(zip((row.key for row in first.captions), first.paid.tolist(), strict=True))
    again = workshop.resume(overrides=("budget.max_env_steps=800",))
    after = dict(zip((row.key for row in again.captions), again.paid.tolist(), strict=True))
    assert after["You enter the kitchen."] >= paid["You enter the kitchen."] > 0


def explained(workshop, *options, code=0):
    result = CliRunner().invoke(app, ["rewards", "explain", "run", *options, "--runs-folder", str(workshop.runs)])
    assert result.exit_code == code, result.output
    return result.output


def test_explain_tells_the_best_paid_captions_with_their_judge_and_the_alarms(listening, workshop):
    result = listening(ROOMS | {"rules": [{"match": "^You bump", "label": "helpful", "why": "a mistake"}]}, steps=1_200)
    told = json.loads(explained(workshop, "--json", "--limit", "3"))
    assert len(told["keys"]) == 3
    best = told["keys"][0]
    assert (best["key"], best["verdict"], best["share"]) == ("You bump into the wall.", "helpful", 1.0)
    assert (best["votes"], best["helpful_votes"], best["score"]) == (1, 1, 1.0)
    assert best["paid"] == pytest.approx(float(max(result.paid)))
    assert best["replies"] == ["lexicon (rules): rule 1: a mistake"]
    assert [(alarm["name"], alarm["is_up"]) for alarm in told["alarms"]] == [("one_key", True)]
    assert told["goals"] == ["Walk on."]
    shown = explained(workshop)
    alarm = "ALARM one_key is up: most pay for one key (in "
    for text in ("You bump into the wall.", "rule 1: a mistake", alarm, "more: --limit N", "100%"):
        assert text in shown


def test_explain_reads_the_table_of_captions_where_a_checkpoint_has_no_pay(listening, workshop):
    listening(ROOMS, steps=600)
    run = find_run(workshop.runs, "run")
    before = explain(run)
    whole = load_checkpoint(run.checkpoints)
    tables = {name: table for name, table in whole.tables.items() if name != "paid"}
    parts = CheckpointParts(tensors=whole.tensors, tables=tables, state=whole.state)
    save_checkpoint(run.checkpoints, whole.step, parts, keep_last=1)
    assert [key.paid for key in explain(run).keys] == pytest.approx([key.paid for key in before.keys], rel=1e-4)
    (run.artifacts / "captions.csv").unlink()
    assert {key.paid for key in explain(run).keys} == {None}


def test_a_run_without_captions_has_nothing_to_explain(workshop):
    rewards = {"extrinsic": {"coefficient": 1.0, "clip": 1.0}, "intrinsic": None}
    workshop.train(captioner={"kind": "none"}, rewards=rewards, budget={"max_env_steps": 200, "max_seconds": None})
    assert "has no captions, so none are paid" in explained(workshop, code=2)


def test_the_course_of_an_alarm_is_read_from_the_history():
    rows = [{"actors/env_steps": 10.0 * n, "alarms/heard": float(n in (2, 3)), "alarms/one_key": 0.0} for n in range(5)]
    (course,) = alarm_courses([*rows, {"actors/env_steps": 99.0}])
    assert (course.name, course.is_up, course.share) == ("heard", False, 0.4)
    assert (course.first_env_steps, course.last_env_steps) == (20, 30)
