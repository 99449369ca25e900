"""The desk's tables for rewards that are learnt, scored or a control."""

from __future__ import annotations

import numpy as np

from onibi.platform.annotation.captions import text_hash
from onibi.platform.annotation.desk import AnnotationDesk
from onibi.platform.annotation.labels import Judge, Label, LabelValue
from onibi.platform.annotation.settings import AnnotationSettings
from onibi.platform.fragment import CaptionText, KeyText
from onibi.platform.rewards.table import LABELLED, NEVER_ASKED, UNLABELLED
from onibi.platform.rewards.table_component import (
    ClassificationSettings,
    RankingSettings,
    RetrievalSettings,
    SimilaritySettings,
)
from onibi.platform.rewards.training import MemberScores

KEYS = ("You enter the hall.", "You drop a rock.", "You find a key.", "It's a wall.")


def caption(key):
    return CaptionText(key, (KeyText(key, key != KEYS[3]),))


def desk_for(reward, window_rows=None, **settings):
    desk = AnnotationDesk(
        AnnotationSettings(**settings),
        keys_per_caption=1,
        key_version="k",
        judges=[Judge("p", "m", "win")],
        clock=lambda: 0.0,
        reward=reward,
        window_rows=window_rows,
    )
    desk.see(desk.intern([caption(key) for key in KEYS]))
    return desk


def label(key, score):
    return Label(
        key_hash=text_hash(key),
        key_text=key,
        raw_text=key,
        value=LabelValue.HELPFUL if score >= 0.5 else LabelValue.UNHELPFUL,
        score=score,
        annotator="x",
        model="m",
        prompt_version="p",
        goal="win",
        latency_seconds=0.0,
        tokens=0,
        reply="",
        time_seconds=0.0,
    )


def values(desk):
    return desk.table(newer_than=-1).value.tolist()


def test_retrieval_pays_the_verdict_and_similarity_the_score():
    for reward, expected in ((RetrievalSettings(), [1, 0, 0, 0]), (SimilaritySettings(threshold=0.3), [0.75, 0, 0, 0])):
        desk = desk_for(reward)
        desk.put([label(KEYS[0], 0.75), label(KEYS[1], 0.25)])
        assert values(desk) == expected
        assert desk.table(newer_than=-1).labelled.tolist() == [LABELLED, LABELLED, UNLABELLED, NEVER_ASKED]


def test_scores_make_a_new_table_that_pays_keys_without_a_label():
    desk = desk_for(ClassificationSettings(minimum_keys=1))
    desk.put([label(KEYS[0], 1.0)])
    before = desk.table(newer_than=-1)
    assert not before.value.any()
    desk.set_scores(MemberScores(1, np.array([[2.0, -2.0, 3.0, 9.0]], np.float32), {"reward_model/loss": 0.5}))
    table = desk.table(newer_than=before.version)
    assert table.value.tolist() == [1, 0, 1, 0]  # the bump's score does not count
    assert table.labelled.tolist() == [LABELLED, UNLABELLED, UNLABELLED, NEVER_ASKED]
    assert set(table.columns) == {"score", "deviation"}
    assert desk.statistics()["reward_model/loss"] == 0.5
    assert desk.statistics()["reward_table/paid_keys"] == 2


def test_a_new_caption_of_a_scored_key_makes_a_new_table_and_one_of_an_unscored_key_does_not():
    desk = desk_for(ClassificationSettings(minimum_keys=1))
    desk.put([label(KEYS[0], 1.0)])
    desk.set_scores(MemberScores(1, np.array([[2.0, -2.0, 3.0, 0.0]], np.float32)))
    version = desk.table(newer_than=-1).version
    desk.intern([CaptionText("A new one.", (KeyText("A new one.", True),))])
    assert desk.table(newer_than=version) is None
    desk.intern([CaptionText("You find a key!", (KeyText(KEYS[2], True),))])
    table = desk.table(newer_than=version)
    assert table.value[table.caption_keys[-1, 0]] == 1


def test_pairs_of_the_model_open_the_table_of_a_ranking():
    scores = np.array([[2.0, -2.0, 0.5, 0.0]], np.float32)
    compared = np.array([True, True, True, False])
    for pairs, paid in ((3, False), (4, True)):
        desk = desk_for(RankingSettings(minimum_keys=3, minimum_pairs=4))
        desk.set_scores(MemberScores(1, scores, compared=compared, pairs=pairs))
        assert any(values(desk)) == paid
        assert desk.table(newer_than=-1).labelled.tolist() == [LABELLED] * 3 + [NEVER_ASKED]


def test_the_all_ones_control_pays_a_new_key_at_once():
    desk = desk_for(RetrievalSettings(control="all_ones"))
    assert values(desk) == [1, 1, 1, 0]
    version = desk.table(newer_than=-1).version
    desk.intern([CaptionText("A new one.", (KeyText("A new one.", True),))])
    assert desk.table(newer_than=version).value.tolist() == [1, 1, 1, 0, 1]


def test_labels_that_are_held_back_pay_nothing_and_teach_nothing():
    desk = desk_for(ClassificationSettings(minimum_keys=1), delay_steps=100)
    desk.put([label(KEYS[0], 1.0)])
    assert desk.training_data(newer_than=-1) is None
    desk.set_scores(MemberScores(1, np.array([[2.0, -2.0, 3.0, 0.0]], np.float32)))
    assert not any(values(desk))
    desk.advance(100)
    assert values(desk) == [1, 0, 1, 0]
    assert desk.training_data(newer_than=-1) is not None


def test_scores_are_normalised_over_the_rows_of_the_window():
    desk = desk_for(RankingSettings(minimum_keys=1, minimum_pairs=1, threshold=0.0, threshold_quantile=None), 16)
    scores = np.array([[4.0, 2.0, 0.0, 0.0]], np.float32)
    old, new = (desk.intern([caption(key)])[0] for key in (KEYS[0], KEYS[1]))
    desk.see(np.array([old] * 100))
    desk.advance(100)
    desk.see(np.array([new] * 12 + [desk.intern([caption(KEYS[2])])[0]] * 4))
    desk.advance(116)
    desk.set_scores(MemberScores(1, scores, compared=np.ones(4, bool), pairs=1))
    mean = 2.0 * 12 / 16  # of the last 16 rows alone
    deviation = np.sqrt((12 * (2 - mean) ** 2 + 4 * mean**2) / 16)
    np.testing.assert_allclose(values(desk), [(4 - mean) / deviation, (2 - mean) / deviation, 0, 0], atol=1e-6)
