"""What the watch tells of pay, against sums by hand, and through the ledger against a plain loop."""

from __future__ import annotations

import numpy as np
import pytest

from onibi.platform.config import read_settings
from onibi.platform.fragment import EpisodeStatistics, Fragment
from onibi.platform.rewards.episode_ledger import EpisodeLedger
from onibi.platform.rewards.pay_watch import BEST_KEYS, PaidRows, PayFigures, PayWatch, merged_pay
from onibi.platform.rewards.settings import RewardSettings
from onibi.platform.rewards.table import LABELLED, RewardTable

REWARDS = {"extrinsic": {"coefficient": 2.0, "clip": 1.0}, "intrinsic": {"kind": "retrieval", "coefficient": 0.5}}
CAPTION_KEYS = np.array([[-1, -1], [0, -1], [1, 2], [2, 0]], np.int32)
VALUE = np.array([1.0, 0.5, 0.0], np.float32)
TABLE = RewardTable(1, CAPTION_KEYS, VALUE, np.full(3, LABELLED, np.uint8))


def settings(**changes):
    return read_settings(RewardSettings, {**REWARDS, **changes})


def ended(episode, **extra):
    episode_return = extra.pop("episode_return", 0.0)
    return EpisodeStatistics(0, episode, episode_return, 1, terminated=True, extra=extra)


def rows(episodes, steps, rewards, paid=None, new_keys=None, by_key=None):
    return PaidRows(
        np.array(episodes, np.int64),
        np.array(steps, np.int32),
        np.array(rewards, np.float32),
        None if paid is None else np.array(paid, np.float32),
        None if new_keys is None else np.array(new_keys, np.int64),
        None if by_key is None else np.array(by_key, np.float64),
    )


def test_totals_are_discounted_from_the_episodes_start_with_clip_and_coefficients():
    watch = PayWatch(settings(), discount=0.5, half_life_steps=10, env_steps=0, steps_per_row=1)
    watch.book(rows([7, 7, 8], [0, 1, 0], [0.0, 3.0, 1.0], paid=[1.0, 0.5, 0.0], new_keys=[1, 1, 0]))
    watch.book(rows([7], [2], [0.0], paid=[1.0], new_keys=[0]))
    watch.close([ended(7, success=1.0)])
    (episode,) = watch.take().episodes
    # 0.5·1 + ½·(2·clip(3) + 0.5·0.5) + ¼·(0.5·1) = 0.5 + 1.125 + 0.125
    assert episode.discounted_total == pytest.approx(1.75)
    assert (episode.succeeded, episode.new_keys) == (True, 2)
    assert watch.take().episodes == (), "each is told once"
    watch.close([ended(8, success=0.0)])
    assert watch.take().episodes[0].discounted_total == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("episode", "succeeded"),
    [(ended(1, success=1.0), True), (ended(1, success=0.0, episode_return=5.0), False),
     (ended(1, episode_return=0.5), True), (ended(1), False)],
)  # fmt: skip
def test_success_is_the_tasks_figure_else_a_return_above_zero(episode, succeeded):
    watch = PayWatch(settings(), 0.9, 10, env_steps=0, steps_per_row=1)
    watch.close([episode])
    assert watch.take().episodes[0].succeeded is succeeded


def test_of_a_watch_that_sees_one_row_in_three_the_runs_steps_count():
    schedule = {"kind": "retrieval", "coefficient": {"start": 0.0, "end": 1.0, "env_steps": 6}}
    watch = PayWatch(settings(intrinsic=schedule), 1.0, half_life_steps=6, env_steps=0, steps_per_row=3)
    watch.book(rows([1, 1], [0, 1], [0, 0], paid=[1.0, 1.0], new_keys=[0, 0], by_key=[8.0]))
    watch.book(rows([2], [0], [0], paid=[1.0], new_keys=[0], by_key=[0.0]))
    watch.close([ended(1), ended(2)])
    figures = watch.take()
    assert [episode.discounted_total for episode in figures.episodes] == [0.0, 1.0], "after 6 env steps of the run"
    assert figures.total_pay == pytest.approx(8.0 * 0.5**0.5), "half after 6 of them, which are two rows"


def test_figures_of_several_watches_are_summed_and_sorted_anew():
    parts = []
    for paid in ([8.0, 0.0, 3.0], [1.0, 10.0]):
        watch = PayWatch(settings(), 0.9, half_life_steps=10**9, env_steps=0, steps_per_row=1)
        watch.book(rows([1], [0], [0], by_key=paid))
        watch.close([ended(1)])
        parts.append(watch.take())
    merged = merged_pay(parts)
    assert merged.best_keys == (1, 0, 2)
    assert merged.best_pay == pytest.approx((10.0, 9.0, 3.0))
    assert merged.total_pay == pytest.approx(22.0)
    assert len(merged.episodes) == 2
    many = PayFigures(tuple(range(BEST_KEYS)), (1.0,) * BEST_KEYS, float(BEST_KEYS), ())
    assert len(merged_pay([many, merged]).best_keys) == BEST_KEYS
    assert merged_pay([]) == PayFigures((), (), 0, ())


def test_what_was_paid_long_ago_counts_less():
    watch = PayWatch(settings(), 0.9, half_life_steps=4, env_steps=0, steps_per_row=1)
    watch.book(rows([1, 1], [0, 1], [0, 0], by_key=[8.0, 0.0]))
    watch.book(rows([1] * 4, range(4), [0] * 4, by_key=[0.0, 3.0, 2.0]))
    figures = watch.take()
    assert figures.best_keys == (0, 1, 2)
    assert figures.best_pay == pytest.approx((4.0, 3.0, 2.0))
    watch.book(rows([1] * 8, range(8), [0] * 8))
    assert watch.take().total_pay == pytest.approx(9.0 / 4)


def test_only_the_best_paid_keys_are_told_and_all_are_summed():
    watch = PayWatch(settings(), 0.9, 1_000, env_steps=0, steps_per_row=1)
    watch.book(rows([1], [0], [0], by_key=np.arange(2 * BEST_KEYS)))
    figures = watch.take()
    assert len(figures.best_keys) == BEST_KEYS
    assert figures.best_keys[0] == 2 * BEST_KEYS - 1
    assert figures.total_pay == pytest.approx(sum(range(2 * BEST_KEYS)))


def test_a_run_without_captions_is_watched_for_its_ends_alone():
    watch = PayWatch(settings(intrinsic=None), 0.5, 10, env_steps=0, steps_per_row=1)
    watch.book(rows([1, 1], [0, 1], [0.5, 1.0]))
    watch.close([ended(1, episode_return=1.5)])
    figures = watch.take()
    assert (figures.best_keys, figures.total_pay) == ((), 0.0)
    assert figures.episodes[0].discounted_total == pytest.approx(2.0)


@pytest.mark.parametrize("seed", range(10))
def test_totals_hold_no_more_than_the_cap_however_an_episode_is_cut(seed):
    rng, cap = np.random.default_rng(seed), 2.0
    watch = PayWatch(
        settings(intrinsic={"kind": "retrieval", "coefficient": 0.5, "episode_cap": cap}),
        0.9,
        10,
        env_steps=0,
        steps_per_row=1,
    )
    paid = {7: rng.random(12), 8: rng.random(12) / 8}  # the second stays below the cap
    for begin, end in ((0, 5), (5, 6), (6, 12)):
        part = [(episode, step, paid[episode][step]) for episode in paid for step in range(begin, end)]
        order = rng.permutation(len(part))
        episodes, steps, pays = zip(*(part[place] for place in order), strict=True)
        watch.book(rows(episodes, steps, [0.0] * len(part), paid=pays))
    watch.close([ended(7), ended(8)])
    for each, told in zip(paid.values(), watch.take().episodes, strict=True):
        capped = [min(p, max(0.0, cap - each[:step].sum())) for step, p in enumerate(each)]
        assert sum(capped) == pytest.approx(min(cap, each.sum()))
        assert told.discounted_total == pytest.approx(
            0.5 * sum(0.9**step * p for step, p in enumerate(capped)), abs=1e-5
        )


@pytest.mark.parametrize(
    ("products", "expected"),
    [
        ([], 2.5),
        ([["intrinsic", "rare"]], 2.0),
        ([["intrinsic", "rare"], ["intrinsic"]], 2.5),
        ([["extrinsic", "rare"]], 0.5),
    ],
)
def test_what_is_multiplied_with_a_bonus_is_not_counted_as_if_it_were_added(products, expected):
    chosen = settings(bonuses={"rare": {"kind": "observation_counts"}}, products=products)
    watch = PayWatch(chosen, 0.9, 10, env_steps=0, steps_per_row=1)
    watch.book(rows([1], [0], [1.0], paid=[1.0]))  # 2·1 + 0.5·1
    watch.close([ended(1)])
    assert watch.take().episodes[0].discounted_total == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_the_ledger_books_what_a_plain_loop_finds(seed):
    rng = np.random.default_rng(seed)
    watch = PayWatch(settings(), 0.9, 1_000_000, env_steps=0, steps_per_row=1)
    ledger = EpisodeLedger(3.0, watch)
    totals, keys, by_key, step = {1: 0.0, 2: 0.0}, {1: 0, 2: 0}, np.zeros(3), [0, 0]
    for number in range(6):
        width = 5
        columns = {
            "role": np.zeros((2, width + 1), np.uint8),
            "episode_id": np.repeat([[1], [2]], width + 1, 1).astype(np.int64),
            "step": np.zeros((2, width + 1), np.int32),
            "reward": rng.integers(-3, 4, (2, width + 1)).astype(np.float32),
            "caption_count": rng.integers(1, 4, (2, width + 1, 2)).astype(np.uint16),
        }
        ids = rng.integers(0, 4, (2, width + 1)).astype(np.uint32)
        if number == 3:
            ids[:] = 0  # nothing was said in a whole fragment
        for lane, episode in enumerate((1, 2)):
            for row in range(width):
                columns["step"][lane, row] = step[lane]
                paid = [(0.0, 0)]
                for place, key in enumerate(CAPTION_KEYS[ids[lane, row]]):
                    count = int(columns["caption_count"][lane, row, place])
                    if key >= 0:
                        paid.append((VALUE[key] / count**3, key))
                        keys[episode] += int(VALUE[key] > 0 and count == 1)
                best = max(paid, key=lambda each: each[0])
                by_key[best[1]] += best[0]
                reward = 2.0 * min(max(float(columns["reward"][lane, row]), -1), 1) + 0.5 * best[0]
                totals[episode] += 0.9 ** step[lane] * reward
                step[lane] += 1
        over = [ended(1, success=1.0), ended(2)] if number == 5 else []
        ledger.add(Fragment(0, 0, number, np.array([width, width], np.int32), columns, episodes=over), ids, TABLE)
    figures = ledger.take_pay()
    for episode, told in zip((1, 2), figures.episodes, strict=True):
        assert told.discounted_total == pytest.approx(totals[episode], abs=1e-5)
        assert told.new_keys == keys[episode]
    assert figures.total_pay == pytest.approx(by_key.sum(), rel=1e-3)
    assert ledger.paid_by_key == pytest.approx(by_key, abs=1e-4)


def test_a_ledger_goes_on_from_what_was_paid_before():
    ledger = EpisodeLedger(0.0)
    ledger.restore(np.array([5.0]))
    columns = {
        "role": np.zeros((1, 2), np.uint8),
        "episode_id": np.ones((1, 2), np.int64),
        "caption_count": np.ones((1, 2, 2), np.uint16),
    }
    ledger.add(Fragment(0, 0, 0, np.array([1], np.int32), columns), np.full((1, 2), 1, np.uint32), TABLE)
    assert ledger.paid_by_key.tolist() == [6.0, 0.0, 0.0]
    assert ledger.take_pay().best_keys == (), "nobody watches"


def test_where_won_episodes_alone_tell_success_the_others_count_as_lost_whatever_they_return():
    watch = PayWatch(settings(), discount=0.5, half_life_steps=10, env_steps=0, steps_per_row=1)
    watch.close([ended(1, success=1.0), ended(2, episode_return=5.0)])
    assert [episode.succeeded for episode in watch.take().episodes] == [True, False]


def test_a_resumed_watch_goes_on_with_its_schedules():
    schedule = {"start": 1.0, "end": 0.0, "env_steps": 100}
    falling = settings(extrinsic={"coefficient": schedule, "clip": 1.0}, intrinsic=None)
    totals = []
    for env_steps in (0, 100):
        watch = PayWatch(falling, discount=0.5, half_life_steps=10, env_steps=env_steps, steps_per_row=1)
        watch.book(rows([7], [0], [1.0]))
        watch.close([ended(7)])
        totals.append(watch.take().episodes[0].discounted_total)
    assert totals[0] > 0
    assert totals[1] == 0
