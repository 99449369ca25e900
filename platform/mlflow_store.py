"""One MLflow run as a store: opened or found again, written in batches, ended. Imports MLflow at first use.

Every call blocks and may raise whatever MLflow, its HTTP client or its database raises; ``platform/tracking.py`` calls
from a thread and asks again. ``Refused`` is raised where asking again is of no use.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from onibi.platform.errors import OnibiError
from onibi.platform.redaction import flattened, without_secrets

log = logging.getLogger(__name__)

RUN_ID_TAG = "onibi.run_id"
"""MLflow tag that holds a run's own id, by which a resumed run finds its MLflow run."""

_PARAM_CHARACTERS = 6_000  # MLflow's limit
_PARAMS_PER_BATCH = 100
_FINAL_ERRORS = frozenset({"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED"})


class Refused(OnibiError):
    """The server understood the request and will not take it."""


@dataclass(frozen=True)
class MetricPoint:
    """One figure: name, value, time in milliseconds since 1970, env steps."""

    name: str
    value: float
    milliseconds: int
    env_steps: int


class MlflowStore:
    """The MLflow run of one run of ours. Used by one thread."""

    def __init__(self, uri: str, experiment: str, artifacts: Path | None, request_timeout_seconds: int) -> None:
        self._uri = uri
        self._experiment = experiment
        self._artifacts = artifacts
        self._request_timeout_seconds = request_timeout_seconds
        self._client: Any = None
        self._mlflow_run_id = ""

    @property
    def shown_uri(self) -> str:
        """The URI without user and password."""
        return str(without_secrets(self._uri))

    def open(self, run_id: str, name: str, tags: Mapping[str, str], config: Mapping[str, Any]) -> str:
        """Find the MLflow run tagged with ``run_id`` or make it, log its params once; returns MLflow's run id."""
        self._connect()
        return str(self._asked(self._open, run_id, name, tags, config))

    def _open(self, run_id: str, name: str, tags: Mapping[str, str], config: Mapping[str, Any]) -> str:
        client = self._client
        experiment = client.get_experiment_by_name(self._experiment)
        if experiment is None:
            location = None if self._artifacts is None else self._artifacts.absolute().as_uri()
            experiment_id = client.create_experiment(self._experiment, artifact_location=location)
        elif experiment.lifecycle_stage == "deleted":
            raise Refused(
                f"its experiment {self._experiment!r} is deleted. Restore it (mlflow experiments restore "
                f"--experiment-id {experiment.experiment_id}), or set tracking.experiment"
            )
        else:
            experiment_id = experiment.experiment_id
        # Searched before it is made: a request whose answer was lost must not leave a second run behind.
        found = self._found(experiment_id, run_id)
        run = found[0] if found else client.create_run(experiment_id, tags={**tags, RUN_ID_TAG: run_id}, run_name=name)
        self._mlflow_run_id = str(run.info.run_id)
        if found:
            client.update_run(self._mlflow_run_id, status="RUNNING")
        self._log_config(config, known=run.data.params)
        return self._mlflow_run_id

    def log(self, points: Sequence[MetricPoint]) -> None:
        """Log figures as one batch. Repeating it changes nothing."""
        from mlflow.entities import Metric

        metrics = [Metric(point.name, point.value, point.milliseconds, point.env_steps) for point in points]
        self._asked(self._client.log_batch, self._mlflow_run_id, metrics=metrics)

    def upload(self, path: Path, folder: str) -> None:
        """Upload a file, or a folder with all it holds."""
        if not path.exists():
            raise Refused(f"{path} is not there any more")
        upload = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        self._asked(upload, self._mlflow_run_id, str(path), folder or None)

    def end(self, status: str) -> None:
        """Mark the MLflow run as ended."""
        self._asked(self._client.set_terminated, self._mlflow_run_id, status)

    def end_left(self, run_id: str, status: str) -> None:
        """Mark the MLflow run tagged with ``run_id`` as ended where there is one, whatever it was before."""
        self._connect()
        experiment = self._client.get_experiment_by_name(self._experiment)
        for run in [] if experiment is None else self._found(experiment.experiment_id, run_id):
            self._client.set_terminated(run.info.run_id, status)

    def end_others(self, run_ids: Collection[str], status: str) -> None:
        """Mark those of some other runs as ended that MLflow shows as running."""
        experiment = self._client.get_experiment_by_name(self._experiment)
        for run in self._client.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'"):
            if run.data.tags.get(RUN_ID_TAG) in run_ids:
                self._client.set_terminated(run.info.run_id, status)

    def _found(self, experiment_id: str, run_id: str) -> Sequence[Any]:
        """The MLflow run of ours, or none."""
        tagged = f"tags.`{RUN_ID_TAG}` = '{run_id}'"
        runs: Sequence[Any] = self._client.search_runs([experiment_id], tagged, max_results=1)
        return runs

    def _connect(self) -> None:
        if self._client is not None:
            return
        # Read by MLflow at import and at each request. Its own seven retries with growing pauses would hold the thread
        # for minutes; ours can be interrupted. What the user has set stays.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(self._request_timeout_seconds))
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.tracking import MlflowClient

        # They announce each step of making the SQLite file, and print the traceback of what they raise besides.
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        self._client = MlflowClient(tracking_uri=self._uri)

    def _log_config(self, config: Mapping[str, Any], known: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        shown = without_secrets(config)
        # A param may never change in MLflow: those of a resumed run stay as they were, the artifact shows the new ones.
        missing = {name: text for name, text in flattened(shown).items() if name not in known}
        params = [Param(name, text[:_PARAM_CHARACTERS]) for name, text in missing.items()]
        for start in range(0, len(params), _PARAMS_PER_BATCH):
            self._client.log_batch(self._mlflow_run_id, params=params[start : start + _PARAMS_PER_BATCH])
        text = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)
        self._client.log_text(self._mlflow_run_id, text, "config.yaml")

    def _asked(self, call: Any, *arguments: Any, **named: Any) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            return call(*arguments, **named)
        except MlflowException as error:
            if error.error_code in _FINAL_ERRORS:
                raise Refused(str(without_secrets(str(error)))) from error
            raise
