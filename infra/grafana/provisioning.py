"""Datasource, folder and dashboards in a Grafana that runs already, through its HTTP API.

What is there as it should be is left alone, what differs is written over: called twice, the second changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from onibi.infra.grafana.machines_dashboard import MACHINES
from onibi.infra.grafana.panels import DATASOURCE_NAME, DATASOURCE_UID, dashboard_json, datasource_json
from onibi.infra.grafana.run_dashboard import RUN
from onibi.platform.errors import ConfigError, OnibiError

DASHBOARDS = (RUN, MACHINES)
FOLDER_UID, FOLDER_TITLE = "onibi", "Onibi"

_TIMEOUT_SECONDS = 15.0
_NOT_FOUND = 404
_KEPT_BY_GRAFANA = frozenset({"id", "version", "schemaVersion"})

Outcome = Literal["created", "updated", "unchanged"]


class GrafanaError(OnibiError):
    """Grafana cannot be reached, or refused; says which, and what to do."""


@dataclass(frozen=True)
class Provisioned:
    """What became of one thing, as ``dashboard Onibi run``, and where it is found."""

    what: str
    outcome: Outcome
    url: str


@dataclass(frozen=True, repr=False)
class Credentials:
    """A token of a service account, or a user with password. Never shown: it has no repr."""

    token: str | None = None
    user: str | None = None
    password: str | None = None

    @classmethod
    def from_environment(cls, variables: Mapping[str, str]) -> Credentials:
        """Of GRAFANA_TOKEN, or GRAFANA_USER and GRAFANA_PASSWORD. Raises: ConfigError where neither is set."""
        token, user, password = (variables.get(f"GRAFANA_{name}") for name in ("TOKEN", "USER", "PASSWORD"))
        if token:
            return cls(token=token)
        if user and password:
            return cls(user=user, password=password)
        raise ConfigError(
            "Grafana asks who is there: set GRAFANA_TOKEN to a token of a service account with the role Admin "
            "(Administration, Users and access, Service accounts), or GRAFANA_USER and GRAFANA_PASSWORD"
        )

    @property
    def for_requests(self) -> str | tuple[str, str]:
        """As grafana-api takes it."""
        return self.token or (self.user or "", self.password or "")


class Grafana:
    """A Grafana server, with what Onibi puts there.

    Args:
        url: as in the browser, with a path where it has one: ``http://host:3000/grafana``.
        credentials: of whom.

    Raises: ConfigError where ``url`` is none that can be used.
    """

    def __init__(self, url: str, credentials: Credentials) -> None:
        from grafana_api.grafana_face import GrafanaFace

        if "@" in url:
            raise ConfigError("the address of Grafana holds a user or password; set GRAFANA_USER and GRAFANA_PASSWORD")
        if not is_address(url):
            raise ConfigError(f"{url!r} is no address of Grafana; one is http://HOST:3000 or https://HOST/grafana")
        parts = urlsplit(url)
        self.url = url.rstrip("/")
        path = parts.path.strip("/")
        self._face = GrafanaFace(
            auth=credentials.for_requests,
            host=parts.netloc,
            url_path_prefix=f"{path}/" if path else "",
            protocol=parts.scheme,
            timeout=_TIMEOUT_SECONDS,
        )
        # A POST that is redirected is sent again as a GET, which answers with a list and has created nothing.
        self._face.api.s.max_redirects = 0

    def provision(self, prometheus_url: str) -> list[Provisioned]:
        """Make or correct datasource, folder and dashboards.

        Args:
            prometheus_url: where Grafana's server, not the browser, reaches Prometheus.

        Raises: GrafanaError where it cannot be reached, does not let us in, or refuses.
        """
        with self._told():
            health = self._face.api.GET("/health")
            if not isinstance(health, dict) or "database" not in health:
                raise _no_grafana(self.url)
            datasource = self._datasource(prometheus_url)
            folder = self._folder()
            return [datasource, folder, *(self._dashboard(dashboard_json(each)) for each in DASHBOARDS)]

    def datasource_fault(self) -> str:
        """Why Grafana gets no answer from Prometheus; "" where it does. Raises: as ``provision``."""
        from grafana_api.grafana_api import GrafanaException

        with self._told():
            try:
                self._face.api.GET(f"/datasources/uid/{DATASOURCE_UID}/health")
            except GrafanaException as error:
                if error.status_code in (401, 403):
                    raise
                return str(_message_of(error))
        return ""

    def _datasource(self, prometheus_url: str) -> Provisioned:
        wanted = datasource_json(prometheus_url)
        # grafana-api's calls take the numeric id, whose routes Grafana has given up; uid/UID stands in its place.
        place = f"uid/{DATASOURCE_UID}"
        there = self._found(lambda: self._face.datasource.get_datasource_by_id(place))
        outcome = self._write(
            there,
            wanted,
            create=lambda: self._face.datasource.create_datasource(wanted),
            update=lambda: self._face.datasource.update_datasource(place, wanted),
        )
        return Provisioned(
            f"datasource {DATASOURCE_NAME}", outcome, f"{self.url}/connections/datasources/edit/{DATASOURCE_UID}"
        )

    def _folder(self) -> Provisioned:
        there = self._found(lambda: self._face.folder.get_folder(FOLDER_UID))
        outcome = self._write(
            there,
            {"title": FOLDER_TITLE},
            create=lambda: self._face.folder.create_folder(FOLDER_TITLE, uid=FOLDER_UID),
            update=lambda: self._face.folder.update_folder(FOLDER_UID, FOLDER_TITLE, overwrite=True),
        )
        return Provisioned(f"folder {FOLDER_TITLE}", outcome, f"{self.url}/dashboards/f/{FOLDER_UID}")

    def _dashboard(self, model: dict[str, Any]) -> Provisioned:
        there = self._found(lambda: self._face.dashboard.get_dashboard(model["uid"]))
        command = {"dashboard": model, "folderUid": FOLDER_UID, "overwrite": True, "message": "onibi dashboard"}
        shown = None
        if there is not None:
            shown = {"dashboard": there.get("dashboard"), "folderUid": there.get("meta", {}).get("folderUid")}
        outcome = self._write(
            shown,
            {"dashboard": model, "folderUid": FOLDER_UID},
            create=lambda: self._face.dashboard.update_dashboard(command),
            update=lambda: self._face.dashboard.update_dashboard(command),
        )
        return Provisioned(f"dashboard {model['title']}", outcome, f"{self.url}/d/{model['uid']}")

    @staticmethod
    def _found(get: Callable[[], Any]) -> Any | None:
        from grafana_api.grafana_api import GrafanaClientError

        try:
            return get()
        except GrafanaClientError as error:
            if error.status_code != _NOT_FOUND:
                raise
            return None

    @staticmethod
    def _write(there: Any | None, wanted: Any, create: Callable[[], Any], update: Callable[[], Any]) -> Outcome:
        if there is None:
            create()
            return "created"
        if holds(there, wanted):
            return "unchanged"
        update()
        return "updated"

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Errors of grafana-api and requests as ours."""
        import requests
        from grafana_api.grafana_api import GrafanaException
        from urllib3.exceptions import LocationParseError

        try:
            yield
        except GrafanaException as error:
            raise _refused(self.url, error) from error
        except requests.exceptions.TooManyRedirects as error:
            raise GrafanaError(f"{self.url} sends us elsewhere; give the address that the browser ends at") from error
        except requests.exceptions.SSLError as error:
            raise GrafanaError(
                f"{self.url}: its certificate is not trusted here ({error}). REQUESTS_CA_BUNDLE names a file with "
                "the one that signed it"
            ) from error
        except (requests.exceptions.ConnectionError, requests.exceptions.Timeout) as error:
            raise GrafanaError(
                f"no Grafana answers at {self.url} ({type(error).__name__}). Is it running, and is the port right? "
                "Without one: onibi dashboard --export FOLDER writes the files to import by hand"
            ) from error
        # grafana-api reads every answer as JSON with a message; another server's page is neither.
        except (requests.exceptions.JSONDecodeError, TypeError, RecursionError) as error:
            raise _no_grafana(self.url) from error
        except (requests.exceptions.InvalidURL, LocationParseError) as error:
            raise GrafanaError(f"{self.url} names no server ({error}); an address is http://HOST:3000") from error
        except requests.exceptions.RequestException as error:
            raise GrafanaError(f"{self.url} broke off its answer ({type(error).__name__}). Try again") from error


def is_address(url: str) -> bool:
    """Whether this is ``http(s)://HOST[:PORT][/PATH]`` and nothing else."""
    try:
        parts = urlsplit(url)
        has_server = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # half an IPv6 address, a port that is none
        return False
    return has_server and not (parts.query or parts.fragment or "@" in url or " " in url) and url.isprintable()


def holds(there: Any, wanted: Any) -> bool:
    """Whether all that is ``wanted`` is ``there``. What Grafana adds or counts itself (defaults, ids, versions) is left
    out, also the version of the model: a newer Grafana raises it.
    """
    if isinstance(wanted, Mapping):
        return isinstance(there, Mapping) and all(
            key in there and holds(there[key], value) for key, value in wanted.items() if key not in _KEPT_BY_GRAFANA
        )
    if isinstance(wanted, Sequence) and not isinstance(wanted, str):
        return (
            isinstance(there, Sequence)
            and len(there) == len(wanted)
            and all(holds(one, other) for one, other in zip(there, wanted, strict=True))
        )
    return bool(there == wanted)


def _message_of(error: Any) -> object:
    return error.response.get("message", error) if isinstance(error.response, dict) else error


def _no_grafana(url: str) -> GrafanaError:
    return GrafanaError(
        f"what answers at {url} is no Grafana. Where it is behind a path, add that: http://HOST:3000/grafana"
    )


def _refused(url: str, error: Any) -> GrafanaError:
    told = _message_of(error)
    if error.status_code == 401:
        return GrafanaError(
            f"{url} does not know us ({told}). Look at GRAFANA_TOKEN, or GRAFANA_USER and GRAFANA_PASSWORD"
        )
    if error.status_code == 403:
        return GrafanaError(
            f"{url} does not let us ({told}). Datasources are an Admin's: give the service account that role"
        )
    if error.status_code == _NOT_FOUND:
        return _no_grafana(url)
    return GrafanaError(f"{url} refused with {error.status_code}: {told}")
