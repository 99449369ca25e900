"""The chain against plain loops written from the formulas of docs/annotation.md, in float64."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from onibi.platform.errors import CaptionError
from onibi.platform.rewards.table import LABELLED, NEVER_ASKED, UNLABELLED
from onibi.platform.rewards.table_chain import (
    ClassificationChain,
    KeyFacts,
    RankingChain,
    ReferenceRows,
    RetrievalChain,
    SimilarityChain,
    build_values,
    permuted,
    row_quantile,
)
from onibi.platform.rewards.table_component import ClassificationSettings, RankingSettings

NAN = math.nan


def facts(keys=60, members=3, seed=0, **others):
    """Random keys of all sorts: never asked, never seen, unlabelled; the last five are newer than the model."""
    rng = np.random.default_rng(seed)
    label = np.where(rng.random(keys) < 0.3, NAN, rng.integers(0, 2, keys)).astype(np.float32)
    given = {
        "askable": rng.random(keys) < 0.85,
        "rows": rng.integers(0, 40, keys) * (rng.random(keys) < 0.9),
        "label": label,
        "compared": rng.random(keys) < 0.9,
        "pairs": 256,
        "members": rng.normal(0.5, 2.0, (members, keys - 5)).astype(np.float32),
    }
    return KeyFacts(**(given | others))


def plain(*values, askable=None, rows=None, **others):
    """Facts of a few labelled keys, each seen once."""
    count = len(values)
    return KeyFacts(
        askable=np.ones(count, bool) if askable is None else np.array(askable),
        rows=np.ones(count, np.int64) if rows is None else np.array(rows),
        label=np.array(values, np.float32),
        **others,
    )


def scored(*scores, **others):
    """Facts of keys with one member's scores, all compared, with enough pairs."""
    given = {"members": np.array([scores], np.float32), "compared": np.ones(len(scores), bool), "pairs": 1_000}
    return plain(*[NAN] * len(scores), **(given | others))


def member_column(all_facts, member, key):
    return float(all_facts.members[member, key])


def ranked_by_loops(chain, all_facts):
    """Bradley-Terry scores to values, one key and one member at a time."""
    members, scored_keys = all_facts.members.shape
    counted = [k for k in range(scored_keys) if all_facts.askable[k] and all_facts.rows[k] > 0]
    total = sum(int(all_facts.rows[k]) for k in counted)
    normal = []
    for m in range(members):
        mean = sum(int(all_facts.rows[k]) * member_column(all_facts, m, k) for k in counted) / total
        square = sum(int(all_facts.rows[k]) * (member_column(all_facts, m, k) - mean) ** 2 for k in counted) / total
        deviation = max(math.sqrt(square), chain.deviation_floor)
        normal.append([(member_column(all_facts, m, k) - mean) / deviation for k in range(scored_keys)])
    z = [aggregate_by_loops(chain, [normal[m][k] for m in range(members)]) for k in range(scored_keys)]
    threshold = chain.threshold
    if threshold is None:
        expanded = sorted(z[k] for k in counted for _ in range(int(all_facts.rows[k])))
        threshold = expanded[max(math.ceil(chain.threshold_quantile * len(expanded)) - 1, 0)]
    value = [0.0] * len(all_facts.askable)
    for k in range(scored_keys):
        if all_facts.askable[k] and z[k] > threshold and z[k] > 0:
            value[k] = min(z[k], chain.cap)
    return value


def classified_by_loops(chain, all_facts):
    members, scored_keys = all_facts.members.shape
    value = [0.0] * len(all_facts.askable)
    for k in range(scored_keys):
        shares = [1 / (1 + math.exp(-member_column(all_facts, m, k))) for m in range(members)]
        share = aggregate_by_loops(chain, shares)
        if all_facts.askable[k] and share > chain.threshold:
            value[k] = 1.0 if chain.pays == "one" else max(share, 0.0)
    return value


def labels_by_loops(all_facts):
    return [
        float(label) if askable and not math.isnan(label) else 0.0
        for label, askable in zip(all_facts.label, all_facts.askable, strict=True)
    ]


def aggregate_by_loops(chain, scores):
    mean = sum(scores) / len(scores)
    if chain.aggregate == "minimum":
        return min(scores)
    if chain.aggregate == "mean":
        return mean
    return mean - chain.deviation_weight * math.sqrt(sum((score - mean) ** 2 for score in scores) / len(scores))


def recorded(kind=None):
    """Real captions of NetHack and MiniHack with their rows, the lexicon's labels, and three members' scores."""
    told = json.loads((Path(__file__).parent / "recorded_scores.json").read_text(encoding="utf-8"))
    return KeyFacts(
        askable=np.array(told["askable"]),
        rows=np.array(told["rows"]),
        label=np.array([NAN if label is None else label for label in told["label"]], np.float32),
        compared=np.array(told["compared"]),
        pairs=told["pairs"],
        members=None if kind is None else np.array(told[kind], np.float32),
    )


@pytest.mark.parametrize(
    ("chain", "by_loops"),
    [
        (RetrievalChain(), lambda _, facts: labels_by_loops(facts)),
        (ClassificationChain(), lambda chain, facts: classified_by_loops(chain, facts)),
        (ClassificationChain(pays="probability"), lambda chain, facts: classified_by_loops(chain, facts)),
        (RankingChain(threshold=0.5, threshold_quantile=None), lambda chain, facts: ranked_by_loops(chain, facts)),
        (RankingChain(), lambda chain, facts: ranked_by_loops(chain, facts)),
        (RankingChain(aggregate="minimum"), lambda chain, facts: ranked_by_loops(chain, facts)),
    ],
    ids=["retrieval", "classification", "classification by probability", "ranking", "motif", "least of three"],
)
def test_oni_s_variants_pay_recorded_captions_as_their_formulas_say(chain, by_loops):
    kinds = {ClassificationChain: "classification", RankingChain: "ranking", RetrievalChain: None}
    given = recorded(kinds[type(chain)])
    expected = by_loops(chain, given)
    assert 5 < np.count_nonzero(expected) < len(expected) / 2
    np.testing.assert_allclose(build_values(chain, given).value, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("aggregate", ["mean", "minimum", "mean_less_deviation"])
@pytest.mark.parametrize(
    "choice",
    [
        {"threshold": 0.3, "threshold_quantile": None},
        {"threshold": -1.5, "threshold_quantile": None},  # below 0: nobody is punished
        {"threshold_quantile": 0.5},
        {"threshold_quantile": 0.0, "cap": 0.7},
        {"threshold_quantile": 1.0},
    ],
    ids=str,
)
def test_ranking_pays_what_the_formula_says(choice, aggregate, seed):
    chain = RankingChain(aggregate=aggregate, deviation_weight=0.7, minimum_keys=5, **choice)
    given = facts(members=1 + seed % 4, seed=seed)
    np.testing.assert_allclose(build_values(chain, given).value, ranked_by_loops(chain, given), rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("pays", ["one", "probability"])
@pytest.mark.parametrize("aggregate", ["mean", "minimum", "mean_less_deviation"])
def test_classification_pays_what_the_formula_says(aggregate, pays, seed):
    chain = ClassificationChain(aggregate=aggregate, pays=pays, threshold=0.2 * seed, minimum_keys=5)
    given = facts(members=1 + seed % 4, seed=seed)
    expected = classified_by_loops(chain, given)
    assert seed == 4 or any(expected)
    np.testing.assert_allclose(build_values(chain, given).value, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_retrieval_pays_the_label(seed):
    given = facts(seed=seed)
    table = build_values(RetrievalChain(), given)
    np.testing.assert_allclose(table.value, labels_by_loops(given), rtol=0, atol=1e-6)
    labels = [
        NEVER_ASKED if not askable else UNLABELLED if math.isnan(label) else LABELLED
        for label, askable in zip(given.label, given.askable, strict=True)
    ]
    assert table.labelled.tolist() == labels


def test_similarity_pays_scores_above_the_threshold_or_one():
    given = plain(0.2, 0.5, 0.75, NAN, 0.9, askable=[True, True, True, True, False])
    assert build_values(SimilarityChain(), given).value.tolist() == [0, 0, 0.75, 0, 0]
    assert build_values(SimilarityChain(pays="one"), given).value.tolist() == [0, 0, 1, 0, 0]


def test_members_are_normalised_before_they_are_aggregated():
    # Raw, the second member would decide alone. Normalised, both say ±1 and disagree: the minimum is −1.
    given = scored(0, 0, members=np.array([[1, -1], [-100, 100]], np.float32))
    chain = RankingChain(aggregate="minimum", threshold=-9.0, threshold_quantile=None, minimum_keys=1)
    table = build_values(chain, given)
    assert table.columns["score"].tolist() == [-1.0, -1.0]
    assert table.columns["deviation"].tolist() == [1.0, 1.0]
    assert table.value.tolist() == [0.0, 0.0]


def test_rows_weigh_by_how_often_they_occurred_and_bumps_do_not_count():
    # 9 rows of score 0 and one of 10; the bump's 1,000 rows are left out: μ = 1, σ = 3, z = −1/3 and 3.
    given = scored(0, 10, 50, rows=[9, 1, 1_000], askable=[True, True, False])
    chain = RankingChain(threshold=0.0, threshold_quantile=None, cap=5.0, minimum_keys=1)
    assert build_values(chain, given).value.tolist() == pytest.approx([0.0, 3.0, 0.0])


def test_a_score_beyond_the_cap_is_capped_and_counted():
    given = scored(0, 10, rows=[9, 1])
    chain = RankingChain(threshold=0.0, threshold_quantile=None, cap=2.0, minimum_keys=1)
    table = build_values(chain, given)
    assert table.value.tolist() == [0.0, 2.0]
    assert table.figures["reward_table/capped_keys"] == 1
    assert table.figures["reward_table/capped_row_share"] == pytest.approx(0.1)


def test_scores_that_hardly_differ_are_not_blown_up():
    chain = RankingChain(threshold=0.0, threshold_quantile=None, minimum_keys=1, deviation_floor=0.1)
    assert build_values(chain, scored(0.0, 0.02)).value.tolist() == pytest.approx([0.0, 0.1])


@pytest.mark.parametrize(("pairs", "keys"), [(255, 20), (256, 19)])
def test_ranking_pays_nothing_before_256_pairs_and_20_keys_are_judged(pairs, keys):
    compared = np.arange(30) < keys
    given = scored(*range(30), pairs=pairs, compared=compared)
    table = build_values(RankingChain(), given)
    assert not table.value.any()
    assert table.figures["reward_table/waits_for_labels"] == 1
    assert table.columns["score"].any()  # the queue may use them already
    enough = scored(*range(30), pairs=256, compared=np.arange(30) < 20)
    assert build_values(RankingChain(), enough).value.any()
    fitted = scored(*range(30), pairs=0, compared=np.zeros(30, bool), is_fitted=True)
    assert build_values(RankingChain(), fitted).value.any()


def test_classification_pays_nothing_before_20_keys_have_labels():
    labels = [1.0] * 19
    for more, paid in ((NAN, False), (0.0, True)):
        given = plain(*labels, more, members=np.full((1, 20), 3.0, np.float32))
        assert build_values(ClassificationChain(), given).value.any() == paid


def test_a_model_that_has_seen_no_row_pays_nothing():
    given = scored(1, 2, rows=[0, 0])
    assert build_values(RankingChain(minimum_keys=1), given).value.tolist() == [0, 0]
    assert not build_values(RankingChain(minimum_keys=1), plain(NAN, NAN)).value.any()


def test_reference_rows_take_the_place_of_the_run_s():
    # μ = 0 and σ = 2 over the reference, whatever the run's rows are.
    reference = ReferenceRows(np.array([[-2.0, 2.0]], np.float32), np.array([5, 5]))
    chain = RankingChain(threshold=0.0, threshold_quantile=None, minimum_keys=1)
    assert build_values(chain, scored(4.0, 1.0, reference=reference)).value.tolist() == [2.0, 0.5]
    # The median over the reference rows is −1, so both are paid that are above 0.
    assert build_values(RankingChain(minimum_keys=1), scored(4.0, 1.0, reference=reference)).value.all()


def test_the_all_ones_control_pays_every_askable_key_one():
    given = plain(0.0, NAN, 1.0, askable=[True, True, False])
    table = build_values(RetrievalChain(), given, control="all_ones")
    assert table.value.tolist() == [1, 1, 0]
    assert table.labelled.tolist() == [LABELLED, LABELLED, NEVER_ASKED]
    assert build_values(RankingChain(), plain(NAN, NAN), control="all_ones").value.tolist() == [1, 1]


@pytest.mark.parametrize("seed", range(3))
def test_the_permuted_control_keeps_the_labels_and_moves_each_to_another_key(seed):
    values, decided = np.arange(50.0), np.arange(50) % 5 != 0
    moved = permuted(values, decided, seed)
    assert sorted(moved) == sorted(values)
    assert (moved[decided] != values[decided]).all()
    assert (moved[~decided] == values[~decided]).all()
    assert (permuted(values, decided, seed) == moved).all()
    assert (permuted(values, decided, seed + 1) != moved).any()


def test_a_label_that_joins_moves_one_other_label_only():
    values, decided = np.arange(50.0), np.arange(50) != 17
    before, after = permuted(values, decided, 3), permuted(values, np.ones(50, bool), 3)
    changed = np.flatnonzero(before != after)
    assert len(changed) == 2
    assert 17 in changed


@pytest.mark.parametrize("quantile", [0.0, 0.1, 0.5, 0.73, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_quantile_is_that_of_the_rows_written_out(seed, quantile):
    rng = np.random.default_rng(seed)
    score, rows = rng.normal(size=20), rng.integers(0, 6, 20)
    expected = np.quantile(np.repeat(score, rows), quantile, method="inverted_cdf")
    assert row_quantile(score, rows, quantile) == expected


@pytest.mark.parametrize(
    ("chain", "settings", "message"),
    [
        (RankingChain, {"threshold": 0.1}, "set one of them"),
        (RankingChain, {"threshold_quantile": 1.5}, "0 to 1"),
        (RankingChain, {"cap": 0.0}, "above 0"),
        (ClassificationChain, {"threshold": -0.1}, "0 to 1"),
        (ClassificationChain, {"deviation_weight": -1.0}, "0 or more"),
        (ClassificationChain, {"minimum_keys": 0}, "1 or more"),
        (SimilarityChain, {"threshold": 2.0}, "0 to 1"),
    ],
)
def test_settings_out_of_bounds_are_refused(chain, settings, message):
    with pytest.raises(ValueError, match=message):
        chain(**settings)


def test_scores_that_are_not_finite_or_too_many_are_refused():
    with pytest.raises(CaptionError, match="not finite"):
        build_values(RankingChain(), scored(1.0, NAN))
    with pytest.raises(CaptionError, match="at most 1"):
        build_values(RankingChain(), plain(NAN, members=np.zeros((1, 2), np.float32)))
    with pytest.raises(CaptionError, match="one entry a key"):
        build_values(RetrievalChain(), plain(1.0, 0.0, rows=[1]))


def test_the_sections_of_a_run_carry_the_chain_s_settings_and_bounds():
    ranking = RankingSettings(cap=2.5, coefficient=0.2)
    assert ranking.value_bounds == (0.0, 2.5)
    assert RankingSettings(cap=2.5, control="all_ones").value_bounds == (0.0, 1.0)
    assert ClassificationSettings(threshold=0.7).value_bounds == (0.0, 1.0)
    assert build_values(ranking, scored(0, 10, rows=[99, 1])).value.max() == 0  # 20 keys are not there
    for section, wrong in ((RankingSettings, {"cap": -1.0}), (ClassificationSettings, {"count_power": -1.0})):
        with pytest.raises(ValueError, match=str(*wrong)):
            section(**wrong)
