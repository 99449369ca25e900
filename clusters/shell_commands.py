"""What a run tells its user to type next."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from onibi.platform.checkpoint import list_checkpoints
from onibi.platform.run_folder import RunFolder
from onibi.platform.shell_words import path_as_typed


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
    return f"{typed_as('onibi')} resume {shlex.quote(name)}{_runs_folder_option(run.root)}{raised}"


def _runs_folder_option(folder: Path) -> str:
    """What ``onibi`` must be told to find runs there from here; nothing where it looks there anyway."""
    return "" if folder.resolve() == Path("runs").resolve() else f" --runs-folder {shlex.quote(str(folder))}"


def mlflow_command(tracking_uri: str) -> str:
    """What to type, or where to look, to see the run in MLflow."""
    if tracking_uri.startswith(("http://", "https://")):
        return tracking_uri
    return f"{typed_as('mlflow')} ui --backend-store-uri {shlex.quote(tracking_uri)}"


def typed_as(script: str) -> str:
    """How to call a script of this environment in the shell: by its path, where the shell finds none or another one."""
    place, found = Path(sys.executable).with_name(script), shutil.which(script)
    if not place.exists() or (found is not None and place.samefile(found)):
        return script
    return path_as_typed(place)
