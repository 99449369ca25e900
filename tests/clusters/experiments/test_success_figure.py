"""The picture of success curves and differences is drawn from rows alone, where there are any."""

from __future__ import annotations

from matplotlib.image import imread

from onibi.clusters.experiments.success_figure import draw


def row(group, seed, score, **changes):
    curve = f"1000:{score / 2:g} 2000:{score:g}"
    told = {"task": "t", "group": group, "seed": str(seed), "score": f"{score:g}", "curve": curve, "status": "ok"}
    return told | changes


def test_every_task_gets_a_line_of_panels(tmp_path):
    arms = {"extrinsic": 0.1, "lexicon": 0.8, "all-ones": 0.5}
    rows = [row(group, seed, score + seed / 100) for group, score in arms.items() for seed in range(5)]
    assert draw(rows, tmp_path / "one.png", "one")
    assert draw([*rows, *({**each, "task": "u"} for each in rows)], tmp_path / "two.png", "two")
    one, two = (imread(tmp_path / name).shape for name in ("one.png", "two.png"))
    assert two[0] > 1.5 * one[0]
    assert two[1] == one[1]


def test_more_runs_than_the_exact_test_can_look_at_are_drawn_without_it(tmp_path):
    rows = [row(group, seed, seed / 12) for group in ("extrinsic", "lexicon") for seed in range(12)]
    assert draw(rows, tmp_path / "x.png", "x")


def test_a_run_whose_score_is_no_number_is_left_out(tmp_path):
    rows = [row(group, seed, seed / 5) for group in ("extrinsic", "lexicon") for seed in range(5)]
    assert draw([*rows, row("lexicon", 9, float("nan"), curve="1000:0.5")], tmp_path / "nan.png", "x")
    assert draw(rows, tmp_path / "without.png", "x")
    assert (tmp_path / "nan.png").read_bytes() == (tmp_path / "without.png").read_bytes()


def test_without_a_baseline_the_first_arm_is_set_against_the_others(tmp_path):
    rows = [row(group, seed, 0.3) for group in ("gather", "frozen") for seed in range(3)]
    assert draw(rows, tmp_path / "x.png", "x")


def test_runs_that_failed_are_left_out_and_nothing_is_written_without_any(tmp_path):
    rows = [row("lexicon", 1, 0.5, status="failed"), row("lexicon", 2, 0.5, curve="")]
    assert not draw(rows, tmp_path / "x.png", "x")
    assert not (tmp_path / "x.png").exists()
