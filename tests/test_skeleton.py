"""The folders are the package, from wherever it is imported, and depend on each other in one direction only."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = ("platform", "actors", "learners", "clusters", "infra")
MAY_IMPORT = {
    "platform": {"platform"},
    "actors": {"platform", "actors"},
    "learners": {"platform", "learners"},
    "infra": {"platform", "infra"},
    "clusters": set(FOLDERS),
}


def files(folder: str) -> list[Path]:
    """All that belongs into the wheel: sources and data, but no pages for readers of the repository."""
    found = (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return sorted(path for path in found if path.suffix != ".md")


def sources(folder: str) -> list[Path]:
    return [path for path in files(folder) if path.suffix == ".py"]


def folders_named_in(source: str) -> set[str]:
    """Our folders that a module imports, or names as "module:Class" in a registry."""
    named: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            named += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            named += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            named += re.findall(rf"\A(onibi\.(?:{'|'.join(FOLDERS)})(?:\.\w+)*)(?::\w+)?\Z", node.value)
    return {name.split(".")[1] for name in named if name.startswith("onibi.")}


def python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    everything = {**os.environ, **environment}
    finished = subprocess.run(command, cwd=cwd, text=True, capture_output=True, env=everything, timeout=240)
    assert finished.returncode == 0, finished.stderr
    return finished


def copy_sources(target: Path) -> Path:
    target.mkdir()
    for name in FOLDERS:
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "__main__.py"):
        shutil.copy(ROOT / name, target / name)
    return target


def test_platform_of_the_standard_library_wins_in_the_repository_root():
    code = "import platform, uuid; print(platform.python_version(), platform.__file__)"
    version, file = python("-c", code, cwd=ROOT).stdout.split()
    assert version == ".".join(map(str, sys.version_info[:3]))
    assert ROOT not in Path(file).parents or ".venv" in file


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_between_folders_follow_the_arrows(folder):
    wrong = {
        str(path.relative_to(ROOT)): sorted(folders_named_in(path.read_text(encoding="utf-8")) - MAY_IMPORT[folder])
        for path in sources(folder)
    }
    assert {path: names for path, names in wrong.items() if names} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import onibi.learners.dqn",
        "from onibi.learners import dqn",
        "from onibi import learners",
        "def later():\n    from onibi.learners.dqn import DqnLearner",
        'LEARNERS = {"dqn": "onibi.learners.dqn:DqnLearner"}',
        'importlib.import_module("onibi.learners.dqn")',
    ],
)
def test_the_walk_over_imports_sees_each_form(source):
    assert folders_named_in(source) == {"learners"}


def test_core_imports_without_ray_mlflow_and_gymnasium():
    modules = [
        "onibi." + ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for folder in ("platform", "learners")
        for path in sources(folder)
        if not path.stem.endswith("_actor")
    ]
    code = (
        "import importlib, sys\n"
        "for name in ('ray', 'mlflow', 'gymnasium'):\n"
        "    sys.modules[name] = None\n"  # import of it raises ModuleNotFoundError
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "print(len([name for name in sys.modules if name.startswith('onibi.')]))"
    )
    assert int(python("-c", code, cwd=ROOT).stdout) >= len(modules)


def test_a_serial_run_needs_no_ray(tmp_path):
    code = (
        "import sys\n"
        "sys.modules['ray'] = None\n"
        "from onibi.clusters import train\n"
        "few = ['budget.max_env_steps=200', 'replay.limiter.minimum_rows=100', 'evaluation.episodes=1']\n"
        "quiet = ['tracking.enabled=false', 'evaluation.film_episodes=0', f'replay.folder={sys.argv[1]}']\n"
        "result = train('cartpole-dqn', overrides=few + quiet, serial=True, runs_folder=sys.argv[1])\n"
        "print(result.status)"
    )
    assert python("-c", code, str(tmp_path), cwd=ROOT).stdout.strip() == "finished"


def test_every_folder_with_files_of_ours_is_a_listed_package():
    found = {"onibi." + ".".join(path.parent.relative_to(ROOT).parts) for folder in FOLDERS for path in files(folder)}
    assert found | {"onibi"} == set(PROJECT["tool"]["setuptools"]["packages"])


def test_platform_has_no_init_file():
    assert not (ROOT / "platform" / "__init__.py").exists()


@pytest.fixture(scope="module")
def wheel_folder(tmp_path_factory):
    base = tmp_path_factory.mktemp("wheel")
    copy = copy_sources(base / "copy")  # a build in the repository would reuse build/lib, stale files included
    python("-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-q", "-w", str(base), cwd=copy)
    (wheel,) = base.glob("onibi-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(base / "unzipped")
    return base / "unzipped"


def test_wheel_holds_every_source_and_data_file_and_nothing_else(wheel_folder):
    package = wheel_folder / "onibi"
    packaged = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
    ours = {str(path.relative_to(ROOT)) for folder in FOLDERS for path in files(folder)}
    assert packaged == ours | {"__main__.py"}


def test_wheel_runs_without_the_repository(wheel_folder, tmp_path):
    code = "import onibi.clusters.cli.main as cli, platform; print(cli.__file__); platform.python_version()"
    file = python("-c", code, cwd=tmp_path, PYTHONPATH=str(wheel_folder)).stdout.strip()
    assert Path(file) == wheel_folder / "onibi" / "clusters" / "cli" / "main.py"
    assert "train" in python("-m", "onibi", "--help", cwd=tmp_path, PYTHONPATH=str(wheel_folder)).stdout


def test_a_plain_copy_of_the_folders_named_onibi_runs(tmp_path):
    copy_sources(tmp_path / "onibi")
    code = "import onibi.clusters.cli.main as cli; print(cli.__file__)"
    assert Path(python("-c", code, cwd=tmp_path).stdout.strip()) == tmp_path / "onibi" / "clusters" / "cli" / "main.py"
    assert "train" in python("-m", "onibi", "--help", cwd=tmp_path).stdout


@pytest.mark.parametrize("cwd", [ROOT, Path("/")], ids=["repository root", "elsewhere"])
def test_installed_package_runs_as_module(cwd):
    assert "train" in python("-m", "onibi", "--help", cwd=cwd).stdout


def test_ray_worker_with_the_repository_as_working_directory_imports_onibi():
    # Short path: Ray puts sockets below it, and their names end at 107 bytes.
    temporary = Path(tempfile.mkdtemp(prefix="oni", dir="/tmp"))
    code = (
        "import ray\n"
        f"ray.init(address='local', num_cpus=1, include_dashboard=False, _temp_dir={str(temporary)!r},\n"
        f"    log_to_driver=False, object_store_memory=80_000_000, runtime_env={{'working_dir': {str(ROOT)!r},\n"
        "    'excludes': ['.git', '.venv', 'build', 'runs', 'docs', 'tests', '.*_cache']})\n"
        "@ray.remote\n"
        "def look():\n"
        "    import os, platform, onibi.clusters.cli.main, onibi.platform.errors\n"
        "    return os.path.isfile('pyproject.toml'), platform.python_version()\n"
        "print(*ray.get(look.remote()))\n"
        "ray.shutdown()\n"
    )
    try:
        printed = python("-c", code, cwd=ROOT, RAY_USAGE_STATS_ENABLED="0").stdout.split()
        assert printed == ["True", ".".join(map(str, sys.version_info[:3]))]
        commands = {process: " ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])}
        mine = [process for process, command in commands.items() if str(temporary) in command]
        _, left = psutil.wait_procs(mine, timeout=20)
        assert left == []
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def test_files_that_start_ray_are_one_workers(request):
    if not request.config.getoption("loadgroup", False):
        pytest.skip("without --dist loadgroup, as `make test` has it")
    assert request.node.nodeid.endswith("@ray"), "else several clusters share two cores, and fixtures are made anew"
