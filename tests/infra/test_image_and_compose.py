"""What can be said of image and compose file without Docker: form, paths, ports, secrets, and what make installs."""

from __future__ import annotations

import gzip
import json
import re
import shlex
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "infra" / "compose.yaml"
COMPOSE = yaml.safe_load(FILE.read_text(encoding="utf-8"))
SERVICES = COMPOSE["services"]
DOCKERFILE = (ROOT / "infra" / "image" / "Dockerfile").read_text(encoding="utf-8")
INSTRUCTIONS = [
    shlex.split(line, comments=True)
    for line in re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    if line.strip()
]


def specification() -> dict:
    with gzip.open(Path(__file__).parent / "data" / "compose-spec.json.gz", "rt", encoding="utf-8") as file:
        return json.load(file)


def faults(compose: dict) -> list[str]:
    validator = jsonschema.Draft201909Validator(specification())
    older = {key: value for key, value in compose.items() if key != "name"}  # came in 2022, after this specification
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(older)]


def mounts():
    for name, service in SERVICES.items():
        for volume in service["volumes"]:
            yield name, *volume.split(":")[:2]


def test_the_compose_file_fits_the_compose_specification():
    assert faults(COMPOSE) == []
    wrong = {**COMPOSE, "services": {"head": {**SERVICES["head"], "shm": "1gb"}}}
    assert len(faults(wrong)) == 1


def test_every_port_is_open_to_this_machine_alone():
    ports = [port for service in SERVICES.values() for port in service["ports"]]
    assert len(ports) == 4
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_every_file_that_is_mounted_is_there_and_every_volume_declared():
    sources = {source for _, source, _ in mounts()}
    assert {each for each in sources if not each.startswith(".")} == set(COMPOSE["volumes"])
    files = [FILE.parent / each for each in sources if each.startswith(".")]
    assert len(files) == 5
    assert [path for path in files if not path.exists()] == []


def test_grafana_finds_each_dashboard_where_its_provider_looks():
    (provider,) = yaml.safe_load((ROOT / "infra/grafana/providers.yaml").read_text())["providers"]
    mounted = {target for name, _, target in mounts() if name == "grafana"}
    shipped = {path.name for path in (ROOT / "infra" / "grafana").glob("*.json")}
    assert {f"{provider['options']['path']}/{name}" for name in shipped} <= mounted
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home in mounted


def test_services_call_each_other_by_names_and_ports_that_are_there():
    (datasource,) = yaml.safe_load((ROOT / "infra/grafana/datasources.yaml").read_text())["datasources"]
    settings = yaml.safe_load((ROOT / "infra/prometheus/prometheus-compose.yml").read_text())
    (target,) = settings["scrape_configs"][0]["static_configs"][0]["targets"]
    assert datasource["url"] == "http://prometheus:9090"
    assert SERVICES["head"]["environment"]["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert target == "head:8085" and "--metrics-export-port=8085" in SERVICES["head"]["command"]
    allowed = shlex.split(SERVICES["mlflow"]["command"])
    assert "mlflow:5000" in allowed[allowed.index("--allowed-hosts") + 1].split(",")
    assert {"head", "mlflow", "prometheus", "grafana"} == set(SERVICES)


def test_no_secret_stands_in_the_file():
    variables = [f"{key}={value}" for each in SERVICES.values() for key, value in each.get("environment", {}).items()]
    secret = [each for each in variables if re.search("PASSWORD|TOKEN|SECRET|KEY", each)]
    assert len(secret) == 1
    assert secret[0].startswith("GF_SECURITY_ADMIN_PASSWORD=${GRAFANA_PASSWORD:?"), "compose refuses to start without"


def test_shared_memory_has_room_for_a_ring_and_the_object_store():
    assert SERVICES["head"]["shm_size"] == "16gb"


def test_everything_that_the_image_copies_is_in_the_repository():
    copied = [source for word, *rest in INSTRUCTIONS if word == "COPY" for source in rest[:-1]]
    assert [source for source in copied if not (ROOT / source).exists()] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = set(project["tool"]["setuptools"]["package-dir"].values()) - {"."}
    assert folders | {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "__main__.py"} == set(copied)


def pip_installs(text: str) -> list[list[str]]:
    found = re.findall(r"-m pip install (.+?)(?: \\)?(?:  #.*)?$", text, re.MULTILINE)
    return [[word for word in shlex.split(each) if word not in ("--quiet", "-e")] for each in found]


def test_the_image_installs_what_make_train_installs():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    rule = re.search(r"^\$\(VENV\)/installed-run:.*?(?=^\S*:|\n\n)", makefile, re.MULTILINE | re.DOTALL).group()
    first, *rest = pip_installs(DOCKERFILE)
    assert first == ["-c", "constraints.txt", "--extra-index-url", "$TORCH_INDEX", "torch"]
    assert rest == pip_installs(rule)
    assert len(rest) == 2


def test_nothing_runs_as_root():
    words = [word for word, *_ in INSTRUCTIONS]
    assert ["USER", "onibi"] in INSTRUCTIONS
    assert words.index("USER") > max(number for number, word in enumerate(words) if word == "RUN")


@pytest.mark.parametrize("service", ["head", "mlflow"])
def test_paths_in_commands_belong_to_the_images_user(service):
    (home,) = {target for name, _, target in mounts() if name == service}
    assert home.startswith("/home/onibi/")
    assert f"/home/onibi/{home.rsplit('/', 1)[1]}" in DOCKERFILE, "made with that owner, or the volume is root's"
