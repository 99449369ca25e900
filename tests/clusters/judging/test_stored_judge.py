"""The annotator of stored captions: what it takes from the run that heard them."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest

from onibi.actors.annotators.similarity import SimilarityAnnotator, SimilaritySettings
from onibi.clusters.judging.annotator_benchmark import _make
from onibi.clusters.judging.stored_judge import judge_of
from onibi.platform.errors import ConfigError
from onibi.platform.run_folder import create_run

SIMILAR = {"kind": "similarity", "goal": "Reach the end of the corridor.", "threshold": 0.2}
WORDS = {"kind": "lexicon", "lexicon": "all_ones"}


@pytest.fixture
def judged(tmp_path):
    """(the run's settings, what is asked for, overrides) → the annotator's settings."""

    def judge(config, named, *overrides):
        folder = create_run(tmp_path, "heard")
        folder.write_config({"captioner": {"kind": "info"}, "annotators": {}, **config})
        judge = judge_of(folder.name, tmp_path, named, list(overrides))
        judge.close()
        return judge.settings

    return judge


def test_a_kind_that_the_run_has_judges_with_its_goal_and_settings(judged):
    for config in ({"annotator": SIMILAR}, {"annotator": WORDS, "annotators": {"other": SIMILAR}}):
        settings = judged(config, "similarity")
        assert (settings.goal, settings.threshold) == (SIMILAR["goal"], 0.2)
        settings = judged(config, "similarity", "threshold=0.7")
        assert (settings.goal, settings.threshold) == (SIMILAR["goal"], 0.7)


def test_an_annotator_is_found_by_its_name_in_the_run(judged):
    config = {"annotator": WORDS, "annotators": {"near": SIMILAR, "lexicon": {**SIMILAR, "threshold": 0.4}}}
    assert judged(config, "near").threshold == 0.2
    assert judged(config, "lexicon").threshold == 0.4, "names come before kinds"


def test_other_kinds_have_their_own_defaults_and_nothing_of_another_one(judged):
    assert judged({"annotator": SIMILAR}, "lexicon").lexicon != "all_ones"
    assert judged({"annotator": WORDS}, "similarity").goal != SIMILAR["goal"]
    for wrong, told in (("lexikon", "Did you mean 'lexicon'"), ("kind", "'kind'")):
        with pytest.raises(ConfigError, match=told):
            judged({"annotator": SIMILAR}, wrong)


def test_without_a_kind_the_runs_own_judge_is_taken_where_it_heard_anything(judged, tmp_path):
    assert judged({"annotator": SIMILAR}, None).threshold == 0.2
    deaf = judged({"annotator": {**WORDS}, "captioner": {"kind": "none"}}, None)
    assert getattr(deaf, "lexicon", None) != "all_ones"
    (tmp_path / "x.parquet").write_bytes(b"")
    assert (
        judge_of(str(tmp_path / "x.parquet"), tmp_path, "lexicon", ["lexicon=all_ones"]).settings.lexicon == "all_ones"
    )


@dataclass(frozen=True, kw_only=True)
class LoudSettings(SimilaritySettings):
    loudness: float = 1.0


class Loud(SimilarityAnnotator):
    """A user's annotator, chosen by where it lies."""

    Settings = LoudSettings


def test_an_annotator_of_ones_own_judges_what_is_stored_and_is_benchmarked(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "my_judges", sys.modules[__name__])
    judge = judge_of("nowhere", tmp_path, "my_judges:Loud", ["loudness=2.0", "goal=Win."])
    assert isinstance(judge, Loud)
    assert (judge.settings.kind, judge.settings.loudness) == ("my_judges:Loud", 2.0)
    made, _ = _make("my_judges:Loud", ["loudness=3.0"], "Win.")
    assert (made.settings.loudness, made.goal) == (3.0, "Win.")


def test_a_run_whose_settings_cannot_be_read_is_not_judged_by_another_judge(tmp_path):
    folder = create_run(tmp_path, "heard")
    folder.write_config({"annotator": SIMILAR})
    folder.config.write_text("annotator: {kind: [")
    with pytest.raises(ConfigError, match=r"config\.yaml: not readable"):
        judge_of(folder.name, tmp_path, None, [])
