from __future__ import annotations

import logging

import pytest

from onibi.platform.annotation.desk import AnnotationDesk
from onibi.platform.annotation.labels import Judge
from onibi.platform.annotation.settings import AnnotationSettings, PairSettings, QueueSettings, idle_settings
from onibi.platform.rewards.table_component import ClassificationSettings, RankingSettings, RetrievalSettings

DEFAULT = AnnotationSettings()
VOTES, MET = AnnotationSettings(votes=3), AnnotationSettings(queue=QueueSettings(order="most_frequent"))
UNSURE, PAIRS = (
    AnnotationSettings(queue=QueueSettings(order="most_uncertain")),
    AnnotationSettings(pairs=PairSettings(max_pairs=9)),
)


@pytest.mark.parametrize(
    ("settings", "reward", "told"),
    [
        (VOTES, RankingSettings(), "annotation.votes does nothing"),
        (MET, RankingSettings(), "annotation.queue.order does nothing"),
        (UNSURE, RankingSettings(), "annotation.queue.order does nothing"),
        (UNSURE, RetrievalSettings(), "annotation.queue.order most_uncertain does nothing"),
        (UNSURE, None, "annotation.queue.order most_uncertain does nothing"),
        (PAIRS, ClassificationSettings(), "annotation.pairs does nothing"),
    ],
)
def test_a_setting_that_does_nothing_is_told_when_a_run_begins(settings, reward, told, caplog):
    judges = [Judge("p", "m", "g")]
    AnnotationDesk(settings, keys_per_caption=1, key_version="k", judges=judges, clock=lambda: 0.0, reward=reward)
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()[: len(told)]) == (logging.WARNING, told)


@pytest.mark.parametrize(
    ("settings", "kind"),
    [(VOTES, "retrieval"), (MET, "similarity"), (UNSURE, "classification"), (PAIRS, "ranking"), (DEFAULT, None)],
)
def test_settings_that_act_are_not_told(settings, kind):
    assert idle_settings(settings, kind) == []
