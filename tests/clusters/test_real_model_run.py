"""From a run's captions over HTTP to a real language model and back: its labels pay, and are kept for other runs."""

from __future__ import annotations

import pytest
import yaml
from typer.testing import CliRunner

from onibi.clusters.cli.main import app
from onibi.platform.annotation.labels import LabelValue
from onibi.platform.annotation.table import AnnotationTable

pytestmark = pytest.mark.timeout(280)
TEMPLATE = {
    "version": 1,
    "context": "You judge messages of a game.",
    "goal": "Reach the end of the corridor.",
    "helpful": "The event is a step towards the goal.",
    "unhelpful": "Anything else.",
    "examples": [],
    "pair_examples": [],
}


def test_a_run_is_paid_by_a_real_model_and_what_it_said_is_not_asked_again(workshop, smollm_url, tmp_path):
    template = tmp_path / "short.yaml"
    template.write_text(yaml.safe_dump(TEMPLATE))
    server = {"concurrency": 2, "timeout_seconds": 200.0, "batch_seconds": 250.0, "retries": 0}
    judge = {"kind": "openai", "base_url": smollm_url, "model": "smollm2", "prompt": str(template), "server": server}
    result = workshop.train(annotator=judge, budget__max_env_steps=400)
    figures = result.figures
    asked = figures["annotator/openai/requests"]
    assert asked == figures["annotation/keys_labelled"] == figures["annotation/asked_keys"] > 1
    assert figures["annotator/openai/failures"] == figures["annotation/invalid_replies"] == 0
    labels = list(AnnotationTable(workshop.runs / "annotations").all_labels())
    assert len({label.key_text for label in labels}) == len(labels) == asked
    assert all(label.value != LabelValue.INVALID and label.reply and label.tokens for label in labels)

    found = ["--annotator", "openai", "--runs-folder", str(workshop.runs)]
    told = CliRunner().invoke(app, ["annotate", "run", *found, "--estimate"])
    assert told.exit_code == 0, told.output
    assert f"labels: 0 to ask, {asked:.0f} answered before" in told.output, told.output
