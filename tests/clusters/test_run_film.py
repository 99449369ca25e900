"""Films of runs: asked for after it, made when it has finished, and never a run's ruin."""

from __future__ import annotations

import json
import signal
from functools import partial
from pathlib import Path
from typing import ClassVar

import mlflow
import pytest
from PIL import Image
from typer.testing import CliRunner

from onibi.actors.environments.corridor import CaptionCorridor
from onibi.clusters.cli.main import app
from onibi.clusters.run_plan import plan_run
from onibi.clusters.run_settings import RunSettings
from onibi.platform.config import read_settings
from onibi.platform.errors import EnvironmentFault
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


def corridor_of_one_signal(**options):
    from onibi.actors.environments.corridor import CaptionCorridor

    class Signalling(CaptionCorridor):
        """The first Ctrl-C comes as the first picture is drawn."""

        def render(self):
            signal.raise_signal(signal.SIGINT)
            Signalling.render = CaptionCorridor.render
            return super().render()

    return Signalling(**options)


def test_the_first_ctrl_c_during_the_film_ends_the_film_and_speaks_of_no_checkpoint(workshop, caplog):
    result = train(workshop, 1, environment={**CORRIDOR, "id": f"{__name__}:corridor_of_one_signal"})
    assert result.status == "finished"
    assert "SIGINT: the run has finished; ending its film and what is left to send" in caplog.text
    assert "saving a checkpoint" not in caplog.text


def test_a_run_whose_end_was_asked_for_since_training_ended_is_not_filmed(workshop, caplog, monkeypatch):
    def interrupted(*_):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("onibi.clusters.run_journal.RunJournal._write_reports", interrupted)
    result = train(workshop, 1)
    assert (result.status, result.film) == ("finished", None)
    assert "not filmed: interrupted. The run has finished all the same" in caplog.text


class Closing(CaptionCorridor):
    """Counts how many are open; told to, each raises at its first observation or draws nothing."""

    opened: ClassVar[list[int]] = []
    raises = False

    def __init__(self, **options):
        super().__init__(**options)
        self.opened.append(id(self))

    def reset(self, **options):
        if Closing.raises:
            raise OSError("the server of the game is gone")
        return super().reset(**options)

    def render(self):
        raise NotImplementedError

    def close(self):
        self.opened.remove(id(self))


def test_an_environment_that_cannot_begin_is_closed(workshop):
    """An evaluation that raises is left out and the next one tries again: nothing may pile up in a long run."""
    environment = {"id": f"{__name__}:Closing", "max_episode_steps": 15}
    plan = plan_run(read_settings(RunSettings, workshop.settings(environment=environment)))
    with pytest.raises(EnvironmentFault, match="cannot be filmed") as kept:  # by the error: what is not, closes itself
        plan.make_filmed_evaluation(plan.make_learner().weights(1), 0)
    assert Closing.opened == [], kept
    Closing.raises = True
    for make in (partial(plan.make_evaluation, None, 2, 0), partial(plan.make_rollout, 0, 1, 0)):
        with pytest.raises(EnvironmentFault, match="the server of the game is gone") as kept:
            make()
        assert Closing.opened == [], kept


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
