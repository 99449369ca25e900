"""A Grafana on loopback that keeps what it is given in memory, and refuses what the real one has no words for.

Routes and bodies are held against the HTTP API in data/http-api.openapi.json.gz, dashboards against their JSON schema.
"""

from __future__ import annotations

import base64
import functools
import gzip
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jsonschema

DATA = Path(__file__).parent / "data"


@functools.cache
def schema(name: str) -> dict:
    with gzip.open(DATA / f"{name}.json.gz", "rt", encoding="utf-8") as file:
        return json.load(file)


def strict(node):
    """The same schema, refusing fields that it does not name."""
    if isinstance(node, list):
        return [strict(each) for each in node]
    if not isinstance(node, dict):
        return node
    closed = {key: strict(value) for key, value in node.items()}
    if "properties" in node:
        closed.setdefault("additionalProperties", False)
    return closed


def dashboard_faults(dashboard: dict) -> list[str]:
    """What Grafana's schemas find wrong: the dashboard, each panel by its type, queries, options and custom fields."""
    whole = schema("dashboard.jsonschema")

    def faults(definitions: dict, name: str, value: object, where: str) -> list[str]:
        validator = jsonschema.Draft7Validator({"$ref": f"#/definitions/{name}", "definitions": definitions})
        return [f"{where} {error.json_path}: {error.message}" for error in validator.iter_errors(value)]

    found = faults(whole["definitions"], "Dashboard", {**dashboard, "panels": []}, "dashboard")
    for panel in panels_of(dashboard["panels"]):
        where = f"panel {panel.get('title')!r}"
        if panel["type"] == "row":
            found += faults(whole["definitions"], "RowPanel", {**panel, "panels": []}, where)
            continue
        found += faults(whole["definitions"], "Panel", panel, where)
        own = schema(f"{panel['type'].replace('-', '')}.jsonschema")["definitions"]
        found += faults(own, "Options", panel["options"], f"{where} options")
        if "FieldConfig" in own:
            found += faults(own, "FieldConfig", panel["fieldConfig"]["defaults"].get("custom", {}), f"{where} custom")
        for target in panel["targets"]:
            query = schema("prometheus.jsonschema")["definitions"]
            found += faults(query, "Dataquery", target, f"{where} query {target.get('refId')}")
    return found


def panels_of(panels: list[dict]):
    """All panels, those of folded rows included."""
    for panel in panels:
        yield panel
        yield from panels_of(panel.get("panels", []))


class GrafanaServer:
    """Up from its making to ``close``.

    ``faults`` are requests that a real server would refuse; ``writes`` those that changed something.
    """

    TOKEN, USER, PASSWORD = "glsa_right", "admin", "pw"

    def __init__(self, prefix: str = "") -> None:
        self.faults: list[str] = []
        self.writes: list[str] = []
        self.datasources: dict[str, dict] = {}
        self.folders: dict[str, dict] = {}
        self.dashboards: dict[str, dict] = {}
        self.prometheus_answers = True
        self.role = "Admin"
        self._api = schema("http-api.openapi")
        self._prefix = prefix
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def answer(self):
                length = int(self.headers.get("Content-Length") or 0)
                text = self.rfile.read(length)
                code, body = outer.answer(self.command, self.path, text, self.headers.get("Authorization"))
                encoded = json.dumps(body).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(encoded)))
                self.end_headers()
                self.wfile.write(encoded)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}{prefix}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, method: str, path: str, text: bytes, authorization: str | None) -> tuple[int, object]:
        start = f"{self._prefix}/api"
        route = self._route(method, path.removeprefix(start)) if path.startswith(f"{start}/") else None
        if route is None:
            self.faults.append(f"{method} {path}: no such route")
            return 404, {"message": "Not found"}
        template, operation, names = route
        if template == "/health":
            return 200, {"database": "ok", "version": "13.0.0", "commit": "abc"}
        basic = base64.b64encode(f"{self.USER}:{self.PASSWORD}".encode()).decode()
        if authorization not in (f"Bearer {self.TOKEN}", f"Basic {basic}"):
            return 401, {"message": "Invalid API key"}
        if self.role != "Admin" and template.startswith("/datasources"):
            return 403, {"message": "You'll need additional permissions to perform this action."}
        body = json.loads(text) if text else None
        if fault := self._body_fault(operation, body):
            self.faults.append(f"{method} {path}: {fault}")
            return 400, {"message": fault}
        code, answer = self._state(method, template, names, body)
        if method != "GET" and code == 200:
            self.writes.append(f"{method} {path}")
        if code == 200:
            content = operation["responses"]["200"]["content"]["application/json"]["schema"]
            jsonschema.validate(answer, self._resolving(content))
        return code, answer

    def _route(self, method: str, path: str):
        matches = []
        for template, operations in self._api["paths"].items():
            pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", template)
            found = re.fullmatch(pattern, path.partition("?")[0])
            if found and method.lower() in operations:
                matches.append((template, operations[method.lower()], found.groupdict()))
        return min(matches, key=lambda each: each[0].count("{"), default=None)  # fixed before variable

    def _resolving(self, node: dict, *, closed: bool = False) -> dict:
        components = self._api["components"]
        return {**node, "components": strict(components) if closed else components}

    def _body_fault(self, operation: dict, body: object) -> str:
        asked = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
        if asked is None:
            return "" if body is None else "this route takes no body"
        errors = list(jsonschema.Draft202012Validator(self._resolving(asked, closed=True)).iter_errors(body))
        found = [f"{error.json_path}: {error.message}" for error in errors]
        if isinstance(body, dict) and "dashboard" in body:
            found += dashboard_faults(body["dashboard"])
        return "; ".join(found)

    def _state(self, method: str, template: str, names: dict, body: dict) -> tuple[int, object]:
        uid = next(iter(names.values()), None)
        match method, template:
            case "GET", "/datasources/uid/{uid}":
                return self._of(self.datasources, uid, "Data source not found")
            case "POST", "/datasources":
                if any(each["name"] == body["name"] for each in self.datasources.values()):
                    return 409, {"message": "data source with the same name already exists"}
                return 200, {
                    "id": 7,
                    "message": "Datasource added",
                    "name": body["name"],
                    "datasource": self._kept(body),
                }
            case "PUT", "/datasources/uid/{uid}":
                return 200, {
                    "id": 7,
                    "message": "Datasource updated",
                    "name": body["name"],
                    "datasource": self._kept(body),
                }
            case "GET", "/datasources/uid/{uid}/health":
                if self.prometheus_answers:
                    return 200, {"message": "Successfully queried the Prometheus API."}
                return 400, {"message": "dial tcp: connection refused", "status": "ERROR"}
            case "GET", "/folders/{folder_uid}":
                return self._of(self.folders, uid, "folder not found")
            case ("POST", "/folders") | ("PUT", "/folders/{folder_uid}"):
                folder = {"id": 1, "uid": uid or body["uid"], "title": body["title"], "version": 1}
                self.folders[folder["uid"]] = folder
                return 200, folder
            case "GET", "/dashboards/uid/{uid}":
                return self._of(self.dashboards, uid, "Dashboard not found")
            case "POST", "/dashboards/db":
                return self._save(body)
        self.faults.append(f"{method} {template}: not looked for here")
        return 404, {"message": "Not found"}

    @staticmethod
    def _of(kept: dict, uid: str, message: str) -> tuple[int, object]:
        return (200, kept[uid]) if uid in kept else (404, {"message": message})

    def _kept(self, body: dict) -> dict:
        self.datasources[body["uid"]] = {"id": 7, "orgId": 1, "readOnly": False, "version": 1, **body}
        return self.datasources[body["uid"]]

    def _save(self, body: dict) -> tuple[int, object]:
        """As Grafana does: with an id and a version of its own, and a newer model than it was given."""
        model, before = body["dashboard"], self.dashboards.get(body["dashboard"]["uid"])
        if body["folderUid"] not in self.folders:
            return 400, {"message": "folder not found"}
        if before is not None and not body.get("overwrite"):
            return 412, {"message": "The dashboard has been changed by someone else"}
        version = before["dashboard"]["version"] + 1 if before else 1
        kept = {**model, "id": 3, "version": version, "schemaVersion": 99, "links": []}
        self.dashboards[model["uid"]] = {"dashboard": kept, "meta": {"folderUid": body["folderUid"], "slug": "x"}}
        return 200, {
            "id": 3,
            "uid": model["uid"],
            "slug": "x",
            "status": "success",
            "title": model["title"],
            "url": f"/d/{model['uid']}",
            "version": version,
        }
