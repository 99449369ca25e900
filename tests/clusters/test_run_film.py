"""Films of runs: asked for after it, made when it has finished, and never a run's ruin."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pytest
from PIL import Image
from typer.testing import CliRunner

from onibi.clusters.cli.main import app
from onibi.platform.run_folder import find_run

SHORT = {"max_env_steps": 200, "max_seconds": None}
CORRIDOR = {"id": "onibi.actors.environments.corridor:CaptionCorridor", "max_episode_steps": 15}


def evaluate(root, *arguments, code=0):
    command = ["evaluate", "run", "--runs-folder", str(root), "--episodes", "2", *map(str, arguments)]
    result = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def run(workshop):
    evaluation = {"period_env_steps": None, "episodes": 2}
    workshop.train(environment=CORRIDOR, budget=SHORT, evaluation=evaluation)
    return find_run(workshop.runs, "run")


def test_an_evaluation_films_as_many_episodes_as_it_is_told(run, tmp_path):
    film = tmp_path / "games.gif"
    told = evaluate(run.root, "--video", film, "--video-episodes", 2)
    assert f"film in {film}: 2 of 2 episodes, return " in told
    with Image.open(film) as image:
        assert image.n_frames > 2
    report = json.loads(evaluate(run.root, "--video", film, "--json"))
    assert (report["film"]["path"], report["film"]["asked"]) == (str(film), 3)
    assert len(report["film"]["episodes"]) == 3
    assert "film in" not in evaluate(run.root)


def test_what_cannot_be_filmed_is_told_before_anything_is_played(run, tmp_path):
    assert "a film's name ends in .mp4, .gif or .webp" in evaluate(run.root, "--video", tmp_path / "x.avi", code=2)
    assert "is not there" in evaluate(run.root, "--video", tmp_path / "no" / "x.gif", code=2)
    assert "--video-episodes says how many --video films" in evaluate(run.root, "--video-episodes", 2, code=2)
    told = CliRunner().invoke(app, ["evaluate", "a", "b", "--video", str(tmp_path / "x.gif")])
    assert (told.exit_code, "--video is for one run" in told.output) == (2, True)
    assert "the film was not written (" in evaluate(run.root, "--video", "/proc/x.gif", code=2)
    config = run.read_config()
    run.write_config({**config, "environment": {**CORRIDOR, "id": f"{__name__}:blind_corridor"}})
    assert "cannot be filmed: render() raised" in evaluate(run.root, "--video", tmp_path / "x.gif", code=1)
    assert not list(tmp_path.glob("*.gif"))


def blind_corridor(**options):
    from gymnasium import Env

    from onibi.actors.environments.corridor import CaptionCorridor

    class Blind(CaptionCorridor):
        render = Env.render

    return Blind(**options)


def train(workshop, film_episodes, environment=CORRIDOR, **settings):
    evaluation = {"period_env_steps": None, "episodes": 2, "film_episodes": film_episodes}
    tracking = {"enabled": True, "uri": f"sqlite:///{workshop.runs / 'mlflow.db'}"}
    return workshop.train(environment=environment, budget=SHORT, evaluation=evaluation, tracking=tracking, **settings)


def test_a_finished_run_leaves_a_film_of_its_best_checkpoint(workshop):
    result = train(workshop, 1)
    assert result.film is not None
    assert result.film.parent == result.folder / "artifacts"
    assert result.film.stat().st_size > 1_000
    assert any(line.startswith("film ") for line in result.summary().splitlines())
    client = mlflow.MlflowClient(f"sqlite:///{workshop.runs / 'mlflow.db'}")
    tracked = find_run(workshop.runs, "run").record().tracking_run_id
    assert result.film.name in {Path(each.path).name for each in client.list_artifacts(tracked)}


def test_no_film_is_made_unasked(workshop):
    result = train(workshop, 0)
    assert result.film is None
    assert not any(line.startswith("film ") for line in result.summary().splitlines())
    assert not list((result.folder / "artifacts").glob("film*"))


def test_a_run_that_cannot_be_filmed_has_finished_all_the_same(workshop, caplog):
    result = train(workshop, 1, environment={**CORRIDOR, "id": f"{__name__}:blind_corridor"})
    assert (result.status, result.film) == ("finished", None)
    assert "the best checkpoint is not filmed" in caplog.text
    assert find_run(workshop.runs, "run").record().status == "finished"


def interrupting_corridor(**options):
    from onibi.actors.environments.corridor import CaptionCorridor

    class Interrupting(CaptionCorridor):
        def render(self):
            raise KeyboardInterrupt

    return Interrupting(**options)


def test_who_interrupts_the_film_has_a_finished_run(workshop, caplog):
    """A second Ctrl-C ends at once, as everywhere; but the run had ended before."""
    result = train(workshop, 1, environment={**CORRIDOR, "id": f"{__name__}:interrupting_corridor"})
    assert (result.status, result.film) == ("finished", None)
    assert "not filmed: interrupted. The run has finished all the same; onibi evaluate run --video" in caplog.text
    record = find_run(workshop.runs, "run").record()
    assert record.status == "finished"
    client = mlflow.MlflowClient(f"sqlite:///{workshop.runs / 'mlflow.db'}")
    assert client.get_run(record.tracking_run_id).info.status == "FINISHED"


def test_whatever_a_film_fails_of_the_run_has_finished(workshop, caplog, monkeypatch):
    def full(*_):
        raise MemoryError("no room for a picture")

    monkeypatch.setattr("onibi.clusters.run_film.encoded", full)
    result = train(workshop, 1)
    assert (result.status, result.film) == ("finished", None)
    assert "not filmed: MemoryError: no room for a picture" in caplog.text
    assert find_run(workshop.runs, "run").record().status == "finished"


def test_filming_changes_nothing_that_is_measured(run, tmp_path):
    unfilmed = json.loads(evaluate(run.root, "--json"))
    filmed = json.loads(evaluate(run.root, "--json", "--video", tmp_path / "x.gif"))
    assert filmed.pop("film")["episodes"]
    assert unfilmed.pop("film") is None
    assert filmed == unfilmed
