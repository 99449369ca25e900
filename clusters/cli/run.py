"""Commands that start something: train, resume, submit. Heavy imports happen inside them."""

from __future__ import annotations

from typing import Annotated

import typer

from onibi.clusters.cli.frame import (
    DEFAULT_RUNS_FOLDER,
    INTERRUPTED_EXIT,
    JOB_RUNS_FOLDER,
    Debug,
    Overrides,
    RunName,
    RunsFolder,
    told,
)

ConfigName = Annotated[
    str, typer.Argument(metavar="PRESET|FILE", help="A preset's name (see `onibi presets`) or a YAML file.")
]
Seed = Annotated[int | None, typer.Option("--seed", help="Short for --set seed=N.")]


def train(
    config: ConfigName,
    overrides: Overrides = None,
    serial: Annotated[
        bool, typer.Option("--serial", help="All roles in this process, without Ray; repeats under a seed.")
    ] = False,
    name: Annotated[
        str | None, typer.Option("--name", help="The run's name, NAME-2 where it is taken; made up where left out.")
    ] = None,
    seed: Seed = None,
    runs_folder: RunsFolder = DEFAULT_RUNS_FOLDER,
    debug: Debug = False,
) -> None:
    """Start a run and train until its budget is used up. Ctrl-C saves a checkpoint and ends it.

    Examples:
      onibi train minihack-oni
      onibi train cartpole-dqn --seed 3 --set learner.discount=0.98
      onibi train my-run.yaml --serial --name first-try
    """
    with told(debug=debug, runs_folder=runs_folder):
        from onibi import clusters

        changes = _with_seed(overrides, seed)
        result = clusters.train(
            config, overrides=changes, serial=serial, name=name, runs_folder=runs_folder, display=True
        )
        print(result.summary())


def resume(
    run: RunName,
    overrides: Overrides = None,
    serial: Annotated[
        bool | None,
        typer.Option("--serial/--ray", help="In this process, or under Ray; as the run was before by default."),
    ] = None,
    runs_folder: RunsFolder = DEFAULT_RUNS_FOLDER,
    debug: Debug = False,
) -> None:
    """Go on with a run from its last sound checkpoint, counters continued.

    Examples:
      onibi resume last
      onibi resume minihack-oni-2 --set budget.max_seconds=1200
    """
    with told(debug=debug, runs_folder=runs_folder):
        from onibi import clusters

        result = clusters.resume(
            run, runs_folder=runs_folder, serial=serial, overrides=tuple(overrides or ()), display=True
        )
        print(result.summary())


def submit(
    config: Annotated[
        str,
        typer.Argument(
            metavar="PRESET|FILE|RUN", help="A preset's name, a YAML file, or with --resume a run of the cluster's."
        ),
    ],
    address: Annotated[
        str,
        typer.Option("--address", envvar="RAY_API_SERVER_ADDRESS", help="The cluster's dashboard, http://HOST:8265."),
    ],
    overrides: Overrides = None,
    name: Annotated[str | None, typer.Option("--name", help="The run's name on the cluster.")] = None,
    seed: Seed = None,
    goes_on: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that the cluster keeps, from its last checkpoint.")
    ] = False,
    modules: Annotated[
        list[str] | None,
        typer.Option("--module", metavar="NAME", help="A module of yours to send along; once for each."),
    ] = None,
    stage: Annotated[
        bool, typer.Option("--stage/--no-stage", help="Send this code along, or use what the cluster has installed.")
    ] = True,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the job's output until it ends.")] = True,
    runs_folder: Annotated[
        str, typer.Option("--runs-folder", help="Where the run is kept, on the cluster's head node.")
    ] = str(JOB_RUNS_FOLDER),
    debug: Debug = False,
) -> None:
    r"""Hand a run to a Ray cluster as a job; works where onibi is not installed there, too.

    The cluster's Python needs Onibi's dependencies only. Ctrl-C ends the following, not the job. The run lies on the
    head node afterwards, in --runs-folder.

    Examples:
      onibi submit cartpole-dqn --address http://127.0.0.1:8265
      onibi submit my-run.yaml --address http://head:8265 --no-wait \
          --set actors.count=16
      onibi submit my-run.yaml --address http://head:8265 --module my_games
      onibi submit my-run --resume --address http://head:8265 --module my_games
    """
    with told(debug=debug):
        from onibi.clusters import staging
        from onibi.clusters import submit as submission
        from onibi.platform.errors import ConfigError

        changes = _with_seed(overrides, seed)
        job = submission.JobSettings(
            address=address,
            runs_folder=runs_folder,
            stage=stage,
            modules=tuple(map(staging.OwnModule, modules or ())),
            wait=wait,
        )
        if goes_on and name is not None:
            raise ConfigError("--resume goes on with the run of the name given first: leave --name out")

        def tell(text: str) -> None:
            print(text, end="", flush=True)

        if goes_on:
            report = submission.submit_resume(config, job, overrides=changes, tell=tell)
        else:
            report = submission.submit(config, job, overrides=changes, name=name, tell=tell)
        print(report.summary())
    if report.interrupted:
        raise typer.Exit(INTERRUPTED_EXIT)
    if report.succeeded is False:
        raise typer.Exit(1)


def _with_seed(overrides: list[str] | None, seed: int | None) -> tuple[str, ...]:
    return (*(overrides or ()), *(() if seed is None else (f"seed={seed}",)))
