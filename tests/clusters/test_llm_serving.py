"""The serving files that ship: read by Ray Serve's schema and by Onibi's settings. Nothing is served here: no GPU."""

from __future__ import annotations

import ast
import copy
import importlib.util
from pathlib import Path

import pytest
import yaml

from onibi.clusters.run_settings import RunSettings
from onibi.platform.config import read_settings
from onibi.platform.presets import find_document

FOLDER = Path(__file__).resolve().parents[2] / "clusters" / "llm_serving"
JUDGES = sorted(FOLDER.glob("judge-*.yaml"))

serve = pytest.mark.filterwarnings("ignore")  # of Ray's imports


@pytest.fixture(scope="module")
def schemas():
    """Ray Serve's schema of a deployment, and Ray Serve LLM's of a model, which imports without vLLM from here only."""
    pytest.importorskip("grpc_reflection", reason="ray.serve needs it; comes with onibi[llm-tests]")
    from ray.llm._internal.serve.core.configs.llm_config import LLMConfig
    from ray.serve.schema import ServeDeploySchema

    return ServeDeploySchema, LLMConfig


@pytest.fixture
def config():
    return yaml.safe_load((FOLDER / "ray-serve-llm.yaml").read_text(encoding="utf-8"))


@serve
def test_ray_serves_schema_takes_the_file_and_finds_a_misspelt_key(schemas, config):
    deploy, _ = schemas
    (application,) = deploy.model_validate(config).applications
    assert application.route_prefix == "/"
    wrong = copy.deepcopy(config)
    wrong["applications"][0]["import_pth"] = wrong["applications"][0].pop("import_path")
    with pytest.raises(ValueError, match="import_p"):
        deploy.model_validate(wrong)


@serve
def test_ray_serve_llm_takes_the_model_and_finds_a_misspelt_key(schemas, config):
    _, llm = schemas
    (given,) = config["applications"][0]["args"]["llm_configs"]
    model = llm.model_validate(given)
    assert model.model_loading_config.model_source == "meta-llama/Llama-3.1-8B-Instruct"
    assert model.llm_engine == "vLLM"
    with pytest.raises(ValueError, match="engine_kwarg"):
        llm.model_validate({**given, "engine_kwarg": {}})
    with pytest.raises(ValueError, match="accelerator"):
        llm.model_validate({**given, "accelerator_type": "A10g"})


@serve
def test_the_application_is_a_function_that_this_version_of_ray_has(schemas, config):
    module, _, name = config["applications"][0]["import_path"].partition(":")
    # Importing it would need vLLM.
    tree = ast.parse(
        Path(importlib.util.find_spec("ray.serve").origin).with_name("llm").joinpath("__init__.py").read_text()
    )
    assert module == "ray.serve.llm"
    (function,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    assert len(function.args.args) == 1


@pytest.mark.parametrize("file", JUDGES, ids=lambda file: file.stem)
def test_the_run_files_are_runs_with_a_language_model_as_judge(file):
    settings = read_settings(RunSettings, find_document(file, "onibi.clusters.presets"))
    assert settings.annotator.kind == "openai" and settings.environment.id.startswith("MiniHack")
    assert settings.annotator.server.batch_seconds < settings.annotation.desk.lease_seconds


def test_the_judge_names_the_model_and_port_that_are_served(config):
    judge = yaml.safe_load((FOLDER / "judge-ray-serve.yaml").read_text(encoding="utf-8"))["annotator"]
    (model,) = config["applications"][0]["args"]["llm_configs"]
    assert judge["model"] == model["model_loading_config"]["model_id"]
    assert f":{config['http_options']['port']}/v1" in judge["base_url"]
    assert judge["server"]["concurrency"] <= model["deployment_config"]["max_ongoing_requests"]
