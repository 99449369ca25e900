"""`onibi dashboard` against a Grafana that refuses what the real one would refuse."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from typer.testing import CliRunner

from onibi.clusters.cli.main import app
from onibi.infra.grafana.provisioning import Credentials, Grafana, GrafanaError, holds
from onibi.platform.errors import ConfigError

PROMETHEUS = "http://prometheus:9090"
TOKEN = Credentials(token="glsa_right")


def outcomes(server, prometheus=PROMETHEUS, credentials=TOKEN):
    return [each.outcome for each in Grafana(server.url, credentials).provision(prometheus)]


def test_datasource_folder_and_dashboards_are_made_in_an_empty_grafana(grafana):
    made = Grafana(grafana.url, TOKEN).provision(PROMETHEUS)
    assert [each.outcome for each in made] == ["created"] * 4
    assert grafana.writes == [
        "POST /api/datasources",
        "POST /api/folders",
        "POST /api/dashboards/db",
        "POST /api/dashboards/db",
    ]
    assert grafana.datasources["onibi-prometheus"]["url"] == PROMETHEUS
    assert {each["meta"]["folderUid"] for each in grafana.dashboards.values()} == {"onibi"}
    assert made[2].url == f"{grafana.url}/d/onibi-run"


def test_a_second_time_changes_nothing(grafana):
    outcomes(grafana)
    grafana.writes.clear()
    assert outcomes(grafana) == ["unchanged"] * 4
    assert grafana.writes == [], "though Grafana gave the dashboards ids, a version and a newer model"


def test_what_differs_is_written_over_in_place_and_the_rest_is_left_alone(grafana):
    outcomes(grafana)
    grafana.writes.clear()
    grafana.dashboards["onibi-run"]["dashboard"]["panels"][1]["title"] = "changed by hand"
    assert outcomes(grafana, "http://other:9090") == ["updated", "unchanged", "updated", "unchanged"]
    assert grafana.writes == ["PUT /api/datasources/uid/onibi-prometheus", "POST /api/dashboards/db"]
    assert grafana.datasources["onibi-prometheus"]["url"] == "http://other:9090"
    assert grafana.dashboards["onibi-run"]["dashboard"]["panels"][1]["title"] == "Run"


def test_a_dashboard_that_was_moved_and_a_folder_that_was_renamed_come_back(grafana):
    outcomes(grafana)
    grafana.folders["onibi"]["title"] = "Old"
    grafana.dashboards["onibi-machines"]["meta"]["folderUid"] = ""
    assert outcomes(grafana) == ["unchanged", "updated", "unchanged", "updated"]
    assert grafana.folders["onibi"]["title"] == "Onibi"


def test_a_grafana_behind_a_path_and_a_user_with_password(grafana_module):
    server = grafana_module.GrafanaServer(prefix="/tools/grafana")
    try:
        assert outcomes(server, credentials=Credentials(user="admin", password="pw")) == ["created"] * 4
        assert server.faults == []
        with pytest.raises(GrafanaError, match=r"is no Grafana\. Where it is behind a path"):
            Grafana(server.url.removesuffix("/tools/grafana"), TOKEN).provision(PROMETHEUS)
    finally:
        server.close()


@pytest.mark.parametrize("credentials", [Credentials(token="glsa_wrong"), Credentials(user="admin", password="no")])
def test_wrong_credentials_are_told_without_being_shown(grafana, credentials):
    with pytest.raises(GrafanaError, match=r"does not know us .Invalid API key.*GRAFANA_TOKEN") as error:
        Grafana(grafana.url, credentials).provision(PROMETHEUS)
    assert "glsa_wrong" not in f"{error.value!r} {credentials!r}"
    assert grafana.writes == []


def test_a_token_of_a_viewer_is_told_which_role_it_needs(grafana):
    grafana.role = "Viewer"
    with pytest.raises(GrafanaError, match=r"does not let us .*Datasources are an Admin's"):
        Grafana(grafana.url, TOKEN).provision(PROMETHEUS)


def test_a_refusal_is_told_with_grafanas_own_words(grafana):
    grafana.datasources["mine"] = {"uid": "mine", "name": "Onibi Prometheus"}
    with pytest.raises(GrafanaError, match="refused with 409: data source with the same name already exists"):
        Grafana(grafana.url, TOKEN).provision(PROMETHEUS)


def test_a_prometheus_that_grafana_cannot_reach_is_told(grafana):
    server = Grafana(grafana.url, TOKEN)
    server.provision(PROMETHEUS)
    assert server.datasource_fault() == ""
    grafana.prometheus_answers = False
    assert "connection refused" in server.datasource_fault()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_no_server_is_told_with_the_way_without_one():
    with pytest.raises(GrafanaError, match=r"no Grafana answers at .*ConnectionError.*--export FOLDER"):
        Grafana(f"http://127.0.0.1:{free_port()}", TOKEN).provision(PROMETHEUS)


@contextmanager
def answering(answer):
    """The URL of a server that gives code, headers and text by path."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            code, headers, text = answer(self.path)
            self.send_response(code)
            for name, value in {**headers, "Content-Length": str(len(text))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text.encode())

        do_POST = do_GET

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("code", "text", "told"),
    [
        (200, "<html>a page with a message</html>", "is no Grafana"),
        (404, "<html>a page with a message</html>", "is no Grafana"),
        (200, '{"status": "ok"}', "is no Grafana"),
        (502, "Bad gateway", "refused with 502"),
    ],
)
def test_other_servers_are_told(code, text, told):
    with answering(lambda path: (code, {}, text)) as url, pytest.raises(GrafanaError, match=told):
        Grafana(url, TOKEN).provision(PROMETHEUS)


def test_a_redirect_is_told_as_a_post_would_arrive_as_a_get(grafana):
    with (
        answering(lambda path: (301, {"Location": f"{grafana.url}{path}"}, "")) as url,
        pytest.raises(GrafanaError, match="sends us elsewhere; give the address that the browser ends at"),
    ):
        Grafana(url, TOKEN).provision(PROMETHEUS)


@pytest.mark.parametrize(
    ("headers", "text", "told"),
    [
        ({"Content-Encoding": "gzip"}, "no gzip", "broke off its answer .ContentDecodingError"),
        ({"Transfer-Encoding": "chunked"}, "zz", "broke off its answer .ChunkedEncodingError"),
        ({}, "[" * 100_000, "is no Grafana"),
    ],
)
def test_an_answer_that_cannot_be_read_is_told(headers, text, told):
    with answering(lambda path: (200, headers, text)) as url, pytest.raises(GrafanaError, match=told):
        Grafana(url, TOKEN).provision(PROMETHEUS)


@pytest.mark.parametrize("host", ["\N{SNOWMAN}.invalid", "a" * 300, ".."])
def test_a_host_that_no_name_server_could_know_is_told(host):
    with pytest.raises(GrafanaError, match="names no server"):
        Grafana(f"http://{host}:3000", TOKEN).provision(PROMETHEUS)


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:3000",
        "ftp://host",
        "http://",
        "http://host:3000/?orgId=1",
        "http://[::1",
        "http://host:abc",
        "http://host:99999",
        "http://a host",
        "http://ho\nst",
    ],
)
def test_addresses_that_are_none_are_refused(url):
    with pytest.raises(ConfigError, match=r"no address of Grafana; one is http://HOST:3000"):
        Grafana(url, TOKEN)


def test_credentials_come_from_the_environment_and_never_from_the_address():
    assert Credentials.from_environment({"GRAFANA_TOKEN": "t"}).for_requests == "t"
    assert Credentials.from_environment({"GRAFANA_USER": "u", "GRAFANA_PASSWORD": "p"}).for_requests == ("u", "p")
    with pytest.raises(ConfigError, match="set GRAFANA_TOKEN"):
        Credentials.from_environment({"GRAFANA_USER": "u"})
    with pytest.raises(ConfigError, match="holds a user or password") as error:
        Grafana("http://me:secret@host:3000", TOKEN)
    assert "secret" not in str(error.value)


def test_what_grafana_adds_does_not_count_as_a_difference():
    assert holds({"a": [{"b": 1, "more": 2}], "id": 9}, {"a": [{"b": 1}], "id": 4})
    assert not holds({"a": [{"b": 1}, {"b": 2}]}, {"a": [{"b": 1}]})
    assert not holds({"a": {"b": 2}}, {"a": {"b": 1}})
    assert not holds({}, {"a": 1})


def call(*arguments, **variables):
    known = {"GRAFANA_TOKEN": None, "GRAFANA_USER": None, "GRAFANA_PASSWORD": None, **variables}
    return CliRunner().invoke(app, ["dashboard", *arguments], env=known)


def test_the_command_tells_what_it_did_and_where_to_look(grafana):
    result = call("--grafana", grafana.url, "--prometheus", PROMETHEUS, GRAFANA_TOKEN="glsa_right")
    assert result.exit_code == 0, result.output
    assert result.output.count("created") == 4
    assert f"{grafana.url}/d/onibi-run" in result.output
    grafana.prometheus_answers = False
    again = call("--grafana", grafana.url, "--prometheus", PROMETHEUS, GRAFANA_TOKEN="glsa_right")
    assert again.output.count("unchanged") == 4
    assert f"no answer from Prometheus at {PROMETHEUS}" in again.output


def test_the_command_writes_files_without_any_server(tmp_path):
    result = call("--export", str(tmp_path / "new"))
    assert result.exit_code == 0, result.output
    written = {str(path.relative_to(tmp_path / "new")) for path in (tmp_path / "new").rglob("*") if path.is_file()}
    assert {"grafana/onibi-run.json", "grafana/datasources.yaml", "prometheus/alerts.yaml"} <= written
    assert "url: http://127.0.0.1:9090" in (tmp_path / "new" / "grafana" / "datasources.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ((), 2, "nothing to do"),
        (("--grafana", "http://127.0.0.1:3000"), 2, "set GRAFANA_TOKEN"),
        (("--export", "x", "--prometheus", "prometheus:9090"), 2, "--prometheus is an address"),
        (("--export", "x", "--prometheus", "http://me:pw@host:9090"), 2, "without user and password"),
        (("--export", "x", "--prometheus", "http://host:abc"), 2, "--prometheus is an address"),
        (("--export", "/proc/x"), 2, "cannot be written"),
    ],
)
def test_the_command_tells_what_is_missing(arguments, code, told):
    result = call(*arguments)
    assert result.exit_code == code
    assert told in result.output
