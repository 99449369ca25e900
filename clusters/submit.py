"""A run handed to a Ray cluster as a job, with the code that this process imports sent along."""

from __future__ import annotations

import asyncio
import http.client
import importlib
import importlib.util
import logging
import os
import shlex
import shutil
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import ray
from ray.job_submission import JobStatus, JobSubmissionClient

from onibi.clusters.sessions import read_run_settings
from onibi.clusters.submitted_files import check_files
from onibi.platform.config import to_mapping
from onibi.platform.errors import ConfigError, SubmitError
from onibi.platform.redaction import without_secrets
from onibi.platform.run_folder import check_run_name
from onibi.platform.yaml_document import to_yaml

log = logging.getLogger(__name__)

Tell = Callable[[str], None]
"""Takes text as it comes, line ends included."""

_FOLDERS = ("platform", "actors", "learners", "clusters", "infra")
# Hidden files are where secrets lie (.env, .netrc), and bytecode is of no use to another Python.
_NOT_STAGED = shutil.ignore_patterns(".*", "__pycache__", "*.pyc")
_ANSWER_SECONDS = 10.0
# Ray gives a job that is stopped 3 s before it kills it: too little to save a checkpoint.
_STOP_SECONDS = 60
_LOST_ATTEMPTS, _LOST_PAUSE_SECONDS = 10, 3.0
_LOG_TAIL_CHARACTERS = 4_000
_TRANSPORT_FAULTS = (RuntimeError, ValueError, OSError, aiohttp.ClientError, ray.exceptions.RayError)


@dataclass(frozen=True, kw_only=True)
class SubmitReport:
    """What became of a submitted job, as far as it was followed."""

    job_id: str
    address: str  # of the dashboard, without any password in it
    name: str  # of the run
    runs_folder: str  # on the cluster's head node
    status: JobStatus
    message: str = ""  # Ray's word on a status other than success
    interrupted: bool = False  # Ctrl-C ended the following, not the job
    missing_module: bool = False  # the log's end tells of an import that failed

    @property
    def succeeded(self) -> bool | None:
        """True or False where the job has ended, None where it has not, or was not followed to its end."""
        return self.status == JobStatus.SUCCEEDED if self.status.is_terminal() else None

    def summary(self) -> str:
        """What ``onibi submit`` prints at its end."""
        place = f"run {self.name!r} (or the next free {self.name}-2, -3 …) in {self.runs_folder} on the head node"
        if self.succeeded:
            return f"job {self.job_id} succeeded: {place}"
        if self.succeeded is None:
            begin = "no longer followed, the job goes on" if self.interrupted else "handed over"
            return f"job {self.job_id} {begin}: {place}\n{self._commands('status', 'logs', 'stop')}"
        lines = [f"job {self.job_id} {self.status.value.lower()}: {self.message or 'no reason given'}"]
        if self.missing_module:
            lines.append(
                "A module was not found: the cluster's Python needs what Onibi stands on (torch, pyarrow, …), and a "
                "job runs the `python` that is first on the PATH where `ray start` was called. Modules of your own, "
                "such as environments, are not sent: install them there, or send your folder with `ray job submit`."
            )
        return "\n".join([*lines, self._commands("logs")])

    def _commands(self, *names: str) -> str:
        said = {
            "status": ("state ", f"ray job status {self.job_id}"),
            "logs": ("output", f"ray job logs {self.job_id}" + ("" if self.status.is_terminal() else " --follow")),
            "stop": ("stop  ", f"ray job stop {self.job_id}"),
        }
        return "\n".join(f"  {said[name][0]}  {said[name][1]} --address {self.address}" for name in names)


def submit(
    config: str | Path | Mapping[str, Any],
    *,
    address: str,
    overrides: Sequence[str],
    name: str | None,
    stage: bool,
    wait: bool,
    runs_folder: str,
    tell: Tell,
) -> SubmitReport:
    """Check the settings here, then have the cluster train them.

    Sent are the run's resolved YAML and, with ``stage``, copies of the folders of this very package: no tests, data or
    hidden files. The temporary folder that holds them is removed before the job is followed.

    Args:
        config: a preset's name, a YAML file, or the settings as a mapping.
        address: of the cluster's dashboard, ``http://HOST:8265``.
        overrides: ``key=value`` changes, as after ``--set``.
        name: of the run on the cluster; made from the config's name where left out.
        stage: False to run what the cluster has installed.
        wait: follow the job until it ends.
        runs_folder: where the run is kept on the head node: absolute, or ``~/…`` for the home of who runs Ray there.
            The job's own working folder does not outlive it.
        tell: told of the job's id at once and, with ``wait``, of its output.

    Raises:
        ConfigError: a fault in the settings, name, address or folder, or a file that the cluster would not find:
            nothing has been sent.
        SubmitError: the cluster cannot be reached, refused the job, or was lost while it was followed.
    """
    settings = read_run_settings(config, overrides)
    name = name or ("run" if isinstance(config, Mapping) else Path(str(config)).stem)
    check_run_name(name)
    check_files(settings)
    address = _dashboard(address)
    if not runs_folder.startswith("~") and not PurePosixPath(runs_folder).is_absolute():
        raise ConfigError(
            f"runs folder {runs_folder!r}: a relative path would lie in the job's working folder, which Ray removes. "
            "Give an absolute path on the head node, or ~/…"
        )
    client = _connect(address)
    job_id = f"onibi-{name}-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory(prefix="onibi-submit-") as folder:
        working_dir = Path(folder)
        if stage:
            stage_package(working_dir)
        (working_dir / f"{name}.yaml").write_text(to_yaml(to_mapping(settings)), encoding="utf-8")
        command = ["python", "-m", "onibi", "train", f"{name}.yaml", "--name", name, "--runs-folder", runs_folder]
        environment = {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS)}
        try:
            client.submit_job(
                entrypoint=shlex.join(command),
                submission_id=job_id,
                runtime_env={"working_dir": folder, "env_vars": environment},
                metadata={"onibi_run": name},
            )
        except _TRANSPORT_FAULTS as error:
            raise SubmitError(
                f"{_shown(address)} did not take the job: {error}. Its log is dashboard.log in Ray's session folder on "
                "the head node."
            ) from error
    handed = SubmitReport(
        job_id=job_id, address=_shown(address), name=name, runs_folder=runs_folder, status=JobStatus.PENDING
    )
    return _followed(client, handed, tell) if wait else handed


def stage_package(target: Path) -> None:
    """Copy the imported package into ``target/onibi``: its folders as they are imported now, and ``__main__.py``.

    Works from a wheel, an editable install and a staged copy alike, since it asks the import system for the folders.
    """
    package = target / "onibi"
    for name in _FOLDERS:
        paths = [Path(path) for path in importlib.import_module(f"onibi.{name}").__path__]
        # A namespace may have several folders, the first of which counts: so it is written last.
        for path in reversed([path for path in paths if path.is_dir()]):
            shutil.copytree(path, package / name, ignore=_NOT_STAGED, dirs_exist_ok=True)
    main = importlib.util.find_spec("onibi.__main__")
    if main is None or main.origin is None:
        raise SubmitError("onibi.__main__ cannot be found: this installation is not whole. Install Onibi anew.")
    shutil.copy(main.origin, package / "__main__.py")


def _dashboard(address: str) -> str:
    """The address as a URL without a path. Raises: ConfigError where it is none."""
    url = address if "://" in address else f"http://{address}"
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"address {_shown(address)!r}: expected the cluster's dashboard, http://HOST:8265, as `ray start --head` "
            "prints it."
        )
    return url.rstrip("/")


def _shown(address: str) -> str:
    return str(without_secrets(address))


def _connect(address: str) -> JobSubmissionClient:
    parts = urlsplit(address)
    # urllib takes user:password@ for a part of the host's name; the client knows better.
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    try:
        # Ray's own check knows no time limit; a host that drops packets would hold it for minutes.
        urllib.request.urlopen(f"{bare}/api/version", timeout=_ANSWER_SECONDS).close()
    except (urllib.error.HTTPError, http.client.HTTPException):
        pass  # something answers: the client finds out whether it is Ray, and who may enter
    except (OSError, ValueError) as error:
        raise SubmitError(
            f"{_shown(address)} does not answer ({getattr(error, 'reason', error)}). Start a cluster with `ray start "
            "--head`, or tunnel to its dashboard with `ssh -L 8265:127.0.0.1:8265 HEAD`; the port is 8265 where not "
            "chosen otherwise."
        ) from error
    try:
        with _address_wins(address):
            return JobSubmissionClient(address)
    except (*_TRANSPORT_FAULTS, KeyError) as error:
        raise SubmitError(
            f"{_shown(address)} answers, but not as a Ray dashboard that takes jobs: {error}. Give the URL that "
            "`ray start --head` printed, and have ray[default] installed there."
        ) from error


@contextmanager
def _address_wins(address: str) -> Iterator[None]:
    """Ray lets RAY_ADDRESS and RAY_API_SERVER_ADDRESS overrule the address it is given: the job would go elsewhere."""
    variable = "RAY_API_SERVER_ADDRESS"
    before = os.environ.get(variable)
    os.environ[variable] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


def _followed(client: JobSubmissionClient, handed: SubmitReport, tell: Tell) -> SubmitReport:
    """Tell the job's output until it ends or Ctrl-C comes, then ask how it stands."""
    follower = _LogFollower(client, handed.job_id, tell)
    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)  # it reports every connection's end
    try:
        tell(f"{handed.summary()}\n\n")
        status = follower.follow()
        # Ray repeats the log's end after its reason; it has just been told.
        message = (client.get_job_info(handed.job_id).message or "").partition(", last available logs")[0].strip()
    except KeyboardInterrupt:
        return SubmitReport(**{**vars(handed), "status": JobStatus.RUNNING, "interrupted": True})
    except _TRANSPORT_FAULTS as error:
        raise SubmitError(
            f"job {handed.job_id}: {handed.address} no longer answers ({error}). The job goes on if the cluster does; "
            f"see `ray job logs {handed.job_id} --follow --address {handed.address}`."
        ) from error
    missing = "No module named" in follower.tail
    return SubmitReport(**{**vars(handed), "status": status, "message": message, "missing_module": missing})


class _LogFollower:
    """Tells a job's log once, though connections to it may break and begin again."""

    def __init__(self, client: JobSubmissionClient, job_id: str, tell: Tell) -> None:
        self._client, self._job_id, self._tell = client, job_id, tell
        self._told = 0  # characters
        self.tail = ""

    def follow(self) -> JobStatus:
        """Return when the job has ended. Raises: as the client, where the cluster stays out of reach."""
        failures = 0
        while True:
            try:
                asyncio.run(self._listen())
                status = self._client.get_job_status(self._job_id)
                failures = 0
            except _TRANSPORT_FAULTS as error:
                failures += 1
                if failures == _LOST_ATTEMPTS:
                    raise
                log.warning("job %s: connection lost (%s); trying again", self._job_id, error)
                time.sleep(_LOST_PAUSE_SECONDS)
                continue
            if status.is_terminal():
                return status
            time.sleep(1.0)  # the log's end may come before the news of the job's

    async def _listen(self) -> None:
        position = 0  # every connection hears the log from its beginning
        async for text in self._client.tail_job_logs(self._job_id):
            new = text[max(0, self._told - position) :]
            position += len(text)
            if new:
                self._told = position
                self.tail = (self.tail + new)[-_LOG_TAIL_CHARACTERS:]
                self._tell(new)
