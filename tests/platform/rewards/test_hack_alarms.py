"""Each alarm goes off in a run that is hacked in its way, and all are silent in one that learns what it should."""

from __future__ import annotations

import numpy as np
import pytest

from onibi.platform.config import read_settings
from onibi.platform.errors import ConfigError
from onibi.platform.rewards.hack_alarms import ALARMS, AlarmSettings, HackAlarms
from onibi.platform.rewards.pay_watch import EpisodePay, PayFigures

TEXTS = ["You enter the kitchen.", "You hear a cricket.", "You hear an owl.", "You find a key.", "The door opens."]
SETTINGS = AlarmSettings(hold_episodes=40, episodes=100, least_episodes=10)


def watch(intervals, settings=SETTINGS):
    """Looks at intervals of (pay by key, episodes); which alarms were up at their end, and all that was said."""
    alarms, said, report = HackAlarms(settings), [], None
    for pay, episodes in intervals:
        order = sorted((key for key in pay if pay[key] > 0), key=lambda key: -pay[key])
        figures = PayFigures(
            tuple(order), tuple(float(pay[key]) for key in order), float(sum(pay.values())), tuple(episodes)
        )
        report = alarms.look(figures, lambda keys: [TEXTS[key] for key in keys])
        said += report.raised
    return set(report.up), said, report.metrics


def episodes(count, *, success=0.5, good=1.0, bad=0.2, keys=2, seed=0):
    """``count`` episodes, a share ``success`` of which succeed; discounted totals and new keys of each."""
    rng = np.random.default_rng(seed)
    won = rng.random(count) < success
    return [EpisodePay(bool(each), good if each else bad, keys) for each in won]


EVEN = {0: 1.0, 3: 1.0, 4: 1.0}


def course(of, count=60):
    """An interval of ten episodes for each share of the course that is over."""
    return [of(number / (count - 1), number) for number in range(count)]


def good_run(share, number):
    return EVEN, episodes(10, success=share, keys=round(3 * share), seed=number)


def test_a_run_that_learns_raises_no_alarm():
    up, said, metrics = watch(course(good_run))
    assert (up, said) == (set(), [])
    assert metrics["rewards/best_key_share"] == pytest.approx(1 / 3)
    assert metrics["rewards/discounted_total_of_success"] == pytest.approx(1.0)
    assert metrics["rewards/discounted_total_of_failure"] == pytest.approx(0.2)
    assert metrics["rewards/heard_share"] == 0
    assert [metrics[f"alarms/{name}"] for name in ALARMS] == [0.0] * 4


HACKED = {
    "one_key": lambda share, number: ({0: 5.0, 3: 1.0, 4: 1.0}, good_run(share, number)[1]),
    "new_keys": lambda share, number: (EVEN, episodes(10, success=0.1, keys=1 + round(9 * share), seed=number)),
    "failures_paid": lambda share, number: (
        EVEN,
        episodes(10, good=1.0, bad=1.1, success=max(share, 0.1), seed=number),
    ),
    "heard": lambda share, number: ({1: 2.0, 2: 2.0, 3: 1.0}, good_run(share, number)[1]),
}


@pytest.mark.parametrize("name", ALARMS)
def test_each_hack_raises_its_own_alarm_once_and_no_other(name):
    up, said, metrics = watch(course(HACKED[name]))
    assert up == {name}
    assert len(said) == 1
    assert metrics[f"alarms/{name}"] == 1
    if name == "one_key":
        assert TEXTS[0] in said[0]


@pytest.mark.parametrize("name", ALARMS)
def test_an_alarm_goes_down_when_its_cause_is_gone(name):
    hacked = course(HACKED[name])
    up, said, _ = watch([*hacked, *course(lambda share, number: good_run(1.0, number))])
    assert up == set()
    assert len(said) == 1


@pytest.mark.parametrize("name", ["one_key", "heard"])
def test_what_holds_for_a_while_only_is_no_alarm(name):
    intervals = course(good_run)
    for number in range(20, 23):  # 30 episodes; 40 are needed
        intervals[number] = (HACKED[name](0.5, number)[0], intervals[number][1])
    assert watch(intervals)[:2] == (set(), [])


@pytest.mark.parametrize(
    ("pay", "expected"),
    [
        ({0: 51.0, 3: 49.0}, set()),  # two things help
        ({0: 76.0, 3: 24.0}, {"one_key"}),
        ({0: 51.0, 3: 25.0, 4: 24.0}, {"one_key"}),
        ({0: 1.0}, {"one_key"}),
        ({0: 60.0, 3: 39.9, 4: 0.1}, set()),  # two things help; the third was paid long ago
        ({0: 74.0, 3: 13.0, 4: 13.0}, {"one_key"}),
        ({0: 99.9, 3: 0.1}, {"one_key"}),
    ],
)
def test_the_share_of_one_key_is_judged_by_how_many_are_paid(pay, expected):
    assert watch(course(lambda share, number: (pay, good_run(share, number)[1])))[0] == expected


def test_new_keys_that_come_with_success_are_no_alarm():
    rising = course(lambda share, number: (EVEN, episodes(10, success=share, keys=1 + round(9 * share), seed=number)))
    assert watch(rising)[0] == set()


@pytest.mark.parametrize("success", [0.97, 1.0])  # as where each return is above 0 and nothing else tells of success
def test_new_keys_are_no_alarm_where_all_episodes_succeed_already(success):
    rising = course(lambda share, number: (EVEN, episodes(10, success=success, keys=1 + round(9 * share), seed=number)))
    assert watch(rising)[:2] == (set(), [])


def test_a_long_run_remembers_how_it_began():
    # 4,000 episodes are merged into blocks several times over; the first ones still count.
    up, _, _ = watch(course(HACKED["new_keys"], count=400))
    assert up == {"new_keys"}


def test_few_failures_are_not_compared():
    rare = [(EVEN, [EpisodePay(True, 0.5, 2)] * 50), (EVEN, [EpisodePay(False, 9.0, 2)] * 9)]
    up, _, metrics = watch([*rare, *[(EVEN, [EpisodePay(True, 0.5, 2)] * 60)]])
    assert up == set()
    assert "rewards/discounted_total_of_failure" not in metrics


def test_episodes_that_were_paid_nothing_at_all_are_not_called_paid():
    nothing = course(lambda share, number: ({}, episodes(10, good=0.0, bad=0.0, seed=number)))
    assert watch(nothing)[:2] == (set(), [])
    punished = course(lambda share, number: ({}, episodes(10, good=-1.0, bad=0.0, seed=number)))
    assert watch(punished)[0] == {"failures_paid"}


def test_a_run_that_paid_nothing_yet_tells_no_shares():
    up, _, metrics = watch([({}, [])] * 3)
    assert up == set()
    assert set(metrics) == {f"alarms/{name}" for name in ALARMS}


def test_texts_are_asked_for_once():
    asked, alarms = [], HackAlarms(SETTINGS)
    for _ in range(3):
        alarms.look(
            PayFigures((0, 1), (1.0, 1.0), 2.0, ()), lambda keys: asked.extend(keys) or [TEXTS[k] for k in keys]
        )
    assert asked == [0, 1]


@pytest.mark.parametrize(
    "text",
    ["You hear a door open.", "You see a flash.", "You smell smoke.", "You feel hot.", "It sounds like a bell."],
)
def test_what_is_perceived_counts_as_heard(text):
    alarms = HackAlarms(SETTINGS)
    assert alarms.look(PayFigures((0,), (1.0,), 1.0, ()), lambda keys: [text]).metrics["rewards/heard_share"] == 1


@pytest.mark.parametrize(
    "text", ["You see here a key.", "You feel here a key.", "* - a key.", "The door opens.", "You kill the newt!"]
)
def test_what_is_done_or_lies_underfoot_does_not(text):
    alarms = HackAlarms(SETTINGS)
    assert alarms.look(PayFigures((0,), (1.0,), 1.0, ()), lambda keys: [text]).metrics["rewards/heard_share"] == 0


@pytest.mark.parametrize(
    ("setting", "value", "found"),
    [("heard", "(", "position 0"), ("one_key_share", 0.0, "above 0"), ("hold_episodes", 0, "1 or more"),
     ("new_keys_rise", 1.0, "above 1")],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(setting, value, found):
    with pytest.raises(ConfigError, match=found):
        read_settings(AlarmSettings, {setting: value})
