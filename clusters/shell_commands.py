"""What a run tells its user to type next."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from onibi.platform.checkpoint import list_checkpoints
from onibi.platform.run_folder import RunFolder


def command_to_go_on(run: RunFolder, name: str, ended: str, env_steps: int, seconds: float) -> str:
    """What to type to train on, with twice the budget where the run ``ended`` "finished"; to begin anew where nothing
    was saved.
    """
    if not list_checkpoints(run.checkpoints):
        return f"no checkpoint was saved; anew: {typed_as('onibi')} train {shlex.quote(str(run.config))}"
    raised = ""
    if ended == "finished":
        budget = run.read_config().get("budget", {})
        for limit, used in (("max_env_steps", env_steps), ("max_seconds", round(seconds))):
            if budget.get(limit) is not None and used >= budget[limit]:
                raised += f" --set budget.{limit}={2 * used}"
    return f"{typed_as('onibi')} resume {name}{_runs_folder_option(run.root)}{raised}"


def _runs_folder_option(folder: Path) -> str:
    """What ``onibi`` must be told to find runs there from here; nothing where it looks there anyway."""
    return "" if folder.resolve() == Path("runs").resolve() else f" --runs-folder {shlex.quote(str(folder))}"


def mlflow_command(tracking_uri: str) -> str:
    """What to type, or where to look, to see the run in MLflow."""
    if tracking_uri.startswith(("http://", "https://")):
        return tracking_uri
    return f"{typed_as('mlflow')} ui --backend-store-uri {tracking_uri}"


def typed_as(script: str) -> str:
    """How to call a script of this environment in the shell: by its path, where the environment is not activated."""
    place = Path(sys.executable).with_name(script)
    if shutil.which(script) is not None or not place.exists():
        return script
    here = Path.cwd()
    return str(place.relative_to(here)) if place.is_relative_to(here) else str(place)
