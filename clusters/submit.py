"""A run handed to a Ray cluster as a job, with the code that this process imports sent along."""

from __future__ import annotations

import asyncio
import http.client
import logging
import os
import shlex
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
from onibi.clusters.staging import OwnModule, stage_package
from onibi.clusters.submitted_files import check_files
from onibi.platform.config import to_mapping
from onibi.platform.errors import ConfigError, SubmitError
from onibi.platform.redaction import without_secrets
from onibi.platform.run_folder import check_run_name
from onibi.platform.yaml_document import to_yaml

log = logging.getLogger(__name__)

Tell = Callable[[str], None]
"""Takes text as it comes, line ends included."""

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
    place: str  # which run, and where it is kept
    status: JobStatus
    message: str = ""  # Ray's word on a status other than success
    interrupted: bool = False  # Ctrl-C ended the following, not the job
    sends_token: bool = False  # the cluster asks for Ray's token
    missing_module: bool = False  # the log's end tells of an import that failed

    @property
    def succeeded(self) -> bool | None:
        """True or False where the job has ended, None where it has not, or was not followed to its end."""
        return self.status == JobStatus.SUCCEEDED if self.status.is_terminal() else None

    def summary(self) -> str:
        """What ``onibi submit`` prints at its end."""
        if self.succeeded:
            return f"job {self.job_id} succeeded: {self.place}"
        if self.succeeded is None:
            begin = "no longer followed, the job goes on" if self.interrupted else "handed over"
            return f"job {self.job_id} {begin}: {self.place}\n{self._commands('status', 'logs', 'stop')}"
        lines = [f"job {self.job_id} {self.status.value.lower()}: {self.message or 'no reason given'}"]
        if self.missing_module:
            lines.append(
                "A module was not found: the cluster's Python needs what Onibi stands on (torch, pyarrow, …), and a "
                "job runs the `python` that is first on the PATH where `ray start` was called. A module of your own, "
                "such as an environment, is sent with --module NAME."
            )
        return "\n".join([*lines, self._commands("logs")])

    def _commands(self, *names: str) -> str:
        said = {
            "status": ("state ", f"ray job status {self.job_id}"),
            "logs": ("output", f"ray job logs {self.job_id}" + ("" if self.status.is_terminal() else " --follow")),
            "stop": ("stop  ", f"ray job stop {self.job_id}"),
        }
        mode = "RAY_AUTH_MODE=token " if self.sends_token else ""
        return "\n".join(f"  {said[name][0]}  {mode}{said[name][1]} --address {self.address}" for name in names)


@dataclass(frozen=True, kw_only=True)
class JobSettings:
    """How a job is handed over.

    Raises: ConfigError where the address is no dashboard's or the folder is relative.
    """

    address: str  # of the cluster's dashboard, http://HOST:8265
    # Where runs are kept on the head node: absolute, or ~/… for the home of who runs Ray there. The job's own working
    # folder does not outlive it.
    runs_folder: str
    stage: bool = True  # send this very package along; else what the cluster has installed runs
    modules: tuple[OwnModule, ...] = ()  # sent along, too
    wait: bool = True  # follow the job until it ends

    def __post_init__(self) -> None:
        _dashboard(self.address)
        if not self.runs_folder.startswith("~") and not PurePosixPath(self.runs_folder).is_absolute():
            raise ConfigError(
                f"runs folder {self.runs_folder!r}: a relative path would lie in the job's working folder, which Ray "
                "removes. Give an absolute path on the head node, or ~/…"
            )


def submit(
    config: str | Path | Mapping[str, Any], job: JobSettings, *, overrides: Sequence[str], name: str | None, tell: Tell
) -> SubmitReport:
    """Check the settings here, then have the cluster train them.

    Sent are the run's resolved YAML, copies of the folders of this very package (no tests, data or hidden files), and
    the modules named. The temporary folder that holds them is removed before the job is followed.

    Args:
        config: a preset's name, a YAML file, or the settings as a mapping.
        job: where, and what goes along.
        overrides: ``key=value`` changes, as after ``--set``.
        name: of the run on the cluster; made from the config's name where left out.
        tell: told of the job's id at once and, where it is followed, of its output.

    Raises:
        ConfigError: a fault in the settings or the name, or a file that the cluster would not find: nothing has been
            sent.
        SubmitError: the cluster cannot be reached, refused the job, or was lost while it was followed.
    """
    settings = read_run_settings(config, overrides)
    name = name or ("run" if isinstance(config, Mapping) else Path(str(config)).stem)
    check_run_name(name)
    check_files(settings)
    place = f"run {name!r} (or the next free {name}-2, -3 …)"
    document = to_yaml(to_mapping(settings))
    return _hand_over(job, ["train", f"{name}.yaml", "--name", name], name, place, {f"{name}.yaml": document}, tell)


def submit_resume(run: str, job: JobSettings, *, overrides: Sequence[str], tell: Tell) -> SubmitReport:
    """Have the cluster go on with a run that it keeps, as ``onibi resume`` does.

    Args:
        run: its name in the job's runs folder, or ``last``.
        job: where, and what goes along: a staged package is to be sent again, and so are modules.
        overrides: ``key=value`` changes; they are read on the cluster, where the run's settings are.
        tell: as ``submit``.

    Raises: as ``submit``.
    """
    if run != "last":
        check_run_name(run)
    changes = [part for change in overrides for part in ("--set", change)]
    return _hand_over(job, ["resume", run, *changes], run, f"run {run!r}", {}, tell)


def _hand_over(
    job: JobSettings, command: list[str], name: str, place: str, documents: Mapping[str, str], tell: Tell
) -> SubmitReport:
    address = _dashboard(job.address)
    client, sends_token = _connect(address)
    job_id = f"onibi-{name}-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory(prefix="onibi-submit-") as folder:
        for module in job.modules:
            module.stage(Path(folder))
        if job.stage:
            stage_package(Path(folder))
        for file_name, text in documents.items():
            Path(folder, file_name).write_text(text, encoding="utf-8")
        environment = {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS)}
        try:
            client.submit_job(
                entrypoint=shlex.join(["python", "-m", "onibi", *command, "--runs-folder", job.runs_folder]),
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
        job_id=job_id,
        address=_shown(address),
        place=f"{place} in {job.runs_folder} on the head node",
        status=JobStatus.PENDING,
        sends_token=sends_token,
    )
    return _followed(client, handed, tell) if job.wait else handed


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


def _connect(address: str) -> tuple[JobSubmissionClient, bool]:
    """A client, and whether it had to send Ray's token. Raises: SubmitError."""
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
            try:
                return JobSubmissionClient(address), False
            except ray.exceptions.AuthenticationError:
                # Ray makes a token in the home folder with the first cluster of its own, and from then on `ray start`
                # asks for it; clients send it in token mode alone, which a process cannot enter later.
                if (token := _own_token()) is None:
                    raise
                return JobSubmissionClient(address, headers={"Authorization": f"Bearer {token}"}), True
    except (*_TRANSPORT_FAULTS, KeyError) as error:
        raise SubmitError(
            f"{_shown(address)} answers, but not as a Ray dashboard that takes jobs: {error}. Give the URL that "
            "`ray start --head` printed, and have ray[default] installed there."
        ) from error


def _own_token() -> str | None:
    """The token that Ray would send in token mode, from where it looks for one."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


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
