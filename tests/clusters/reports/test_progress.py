"""The display shows what a snapshot says, on a terminal and off it, and leaves the terminal as it was."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from onibi.clusters.reports.progress import _SECTIONS, Budget, ProgressDisplay

SNAPSHOT = {
    "time/seconds": 100.0,
    "actors/env_steps": 50_000,
    "actors/env_steps_per_second": 1_000.0,
    "actors/episode_return": 0.5,
    "actors/success_rate": 0.83,
    "learner/updates": 1_234,
    "learner/labelled_share": 0.9,
    "evaluation/return_mean": 0.75,
}


class Clock:
    """Seconds that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def display(terminal: bool, width: int = 130, budget: Budget | None = None, title: str = "a run") -> ProgressDisplay:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width, height=60, color_system=None)
    return ProgressDisplay(console, title, budget or Budget(env_steps=None, seconds=400), clock=Clock())


def written(shown: ProgressDisplay) -> str:
    assert isinstance(shown.console.file, io.StringIO)
    return shown.console.file.getvalue()


def drawn(shown: ProgressDisplay) -> str:
    with shown.console.capture() as capture:
        shown.console.print(shown.render())
    return capture.get()


def test_off_a_terminal_an_interval_is_one_plain_line_and_each_note_another():
    with display(terminal=False, width=40) as shown:  # narrower than the line, which must not be folded
        plain = {name: figure for name, figure in SNAPSHOT.items() if name != "actors/episode_return"}
        shown.update(plain, ["actor 1 replaced [red]"])
        shown.update({"time/seconds": 110.0, "learner/loss": 0.25})
    assert written(shown).splitlines() == [
        "   1:40  50.0k steps  1.00k/s  1.23k updates  success 83%  labelled 90%  evaluated 0.75  5:00 left",
        "  actor 1 replaced [red]",
        "   1:50  loss 0.25  4:50 left",
    ]


def test_off_a_terminal_lines_come_every_ten_seconds_and_at_once_where_there_is_news():
    figures = {"alarms/heard": 0.0}
    with display(terminal=False) as shown:
        for second in range(1, 26):
            figures |= {"time/seconds": float(second), "learner/updates": second, "alarms/heard": float(second == 5)}
            figures |= {"evaluation/return_mean": 0.5} if second == 3 else {}  # it stays, as in a run's figures
            shown.update(figures, ["actor 1 replaced"] if second == 7 else [])
    lines = written(shown).splitlines()
    assert [line.split()[0] for line in lines] == ["0:01", "0:03", "0:05", "0:06", "0:07", "actor", "0:17", "0:25"]


@pytest.mark.parametrize(
    ("keys", "paid", "told"),
    [
        (0.0, 0.0, set()),
        (0.0, 0.5, {"intrinsic"}),
        (2.0, 0.0, {"intrinsic", "labels", "labelled", "queue"}),
    ],
    ids=["no captions", "a bonus alone", "captions"],
)
def test_a_run_that_hears_nothing_tells_nothing_of_captions(keys, paid, told):
    figures = {
        "time/seconds": 1.0,
        "actors/intrinsic_return": paid,
        "annotation/keys": keys,
        "annotation/keys_labelled": 0.0,
        "annotation/queue_keys": keys,
        "learner/labelled_share": 1.0,
    }
    words = {"intrinsic", "labels", "labelled", "queue"}
    with display(terminal=False) as shown:
        shown.update(figures)
    assert words & set(written(shown).split()) == told
    terminal = display(terminal=True)
    terminal.update(figures)
    panel = drawn(terminal)
    assert ("captions" in panel, "intrinsic return" in panel) == (bool(keys), bool(told))


def test_on_a_terminal_the_panel_names_every_figure_of_the_snapshot():
    shown = display(terminal=True, title="keyroom [bold]")
    shown.update(SNAPSHOT, ["checkpoint saved"])
    text = drawn(shown)
    for expected in (
        "keyroom [bold]",
        "50.0k",
        "1.00k",
        "0.5",
        "83%",
        "1.23k",
        "90%",
        "0.75",
        "checkpoint saved",
        "1:40 gone",
    ):
        assert expected in text
    assert "queue" not in text  # not in the snapshot


@pytest.mark.parametrize("width", [40, 80, 130])
def test_no_line_of_the_panel_is_wider_than_the_terminal(width):
    shown = display(terminal=True, width=width)
    for step in range(40):
        shown.update({**SNAPSHOT, "actors/episode_return": float(step)}, [f"a rather long note number {step} " * 4])
    lines = drawn(shown).splitlines()
    assert max(len(line) for line in lines) == width
    assert sum("a rather long note" in line for line in lines) == 3  # the last three, one line each


EVERYTHING = {figure.key: 1.0 for column in _SECTIONS for _, figures in column for figure in figures} | SNAPSHOT


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 50), (130, 24), (130, 40)])
def test_the_panel_fits_the_terminal_or_tells_the_chief_figures_in_words(width, height):
    """What is cut at the bottom would be the notes, and why a side is held back."""
    shown = display(terminal=True, width=width)
    shown.console.height = height
    shown.update(EVERYTHING, ["checkpoint saved"] * 3, held_back="learner held back: it waits for rows")
    lines = drawn(shown).splitlines()
    text = " ".join(lines)
    assert len(lines) <= height
    assert text.count("checkpoint saved") == 3 and "it waits for rows" in text
    for told in ("50.0k", "1.23k updates" if height < 40 or width == 80 else "1.23k", "83%"):
        assert told in text


def test_before_the_first_figures_the_panel_says_that_it_waits():
    assert "waiting for the first figures" in drawn(display(terminal=True))


def test_a_figure_that_a_later_snapshot_lacks_keeps_its_last_value():
    shown = display(terminal=True)
    shown.update(SNAPSHOT)
    shown.update({"actors/env_steps": 60_000, "evaluation/return_mean": float("nan")})
    text = drawn(shown)
    assert "60.0k" in text and "83%" in text


def test_the_course_of_a_figure_is_drawn_from_its_least_to_its_greatest_value():
    shown = display(terminal=True)
    for value in (0.0, 0.5, 1.0, float("nan"), 0.0):
        shown.update({"actors/episode_return": value})
    assert "▁▅█▁" in drawn(shown)  # 7 × ½ rounds to block 4 of 0 to 7


def test_the_live_panel_is_left_on_the_terminal_and_the_cursor_comes_back():
    with display(terminal=True) as shown:
        shown.update(SNAPSHOT)
        with pytest.raises(KeyboardInterrupt), shown:
            raise KeyboardInterrupt
    text = written(shown)
    assert text.count("\x1b[?25l") >= 1 and text.rstrip().endswith("\x1b[?25h")
    assert "50.0k" in text


@pytest.mark.parametrize(
    ("budget", "env_steps", "seconds", "speed", "share", "left"),
    [
        (Budget(1000, None), 250, 10, 50.0, 0.25, 15.0),  # 750 steps at 50/s
        (Budget(None, 100.0), 250, 10, 50.0, 0.1, 90.0),
        (Budget(1000, 100.0), 250, 10, 50.0, 0.25, 15.0),  # the nearer one
        (Budget(1000, 100.0), 250, 90, 50.0, 0.9, 10.0),
        (Budget(1000, None), 0, 10, None, 0.0, None),  # speed not known yet
        (Budget(1000, None), 1200, 10, 50.0, 1.0, 0.0),  # past the end
        (Budget(None, None), 1200, 10, 50.0, 0.0, None),
    ],
)
def test_the_budget_tells_the_share_used_and_the_time_left(budget, env_steps, seconds, speed, share, left):
    assert budget.share(env_steps, seconds) == share
    assert budget.seconds_left(env_steps, seconds, speed) == left


def test_between_snapshots_the_clock_moves_on():
    shown = display(terminal=True)
    shown.update(SNAPSHOT)
    shown._clock.now += 7
    assert "1:47 gone" in drawn(shown) and "4:53 left" in drawn(shown)


LOGGED = {
    "replay/log_segments": 12.0,
    "replay/log_bytes": 3.5 * 2**20,
    "replay/log_lag_seconds": 2.25,
    "replay/log_dropped_rows": 0.0,
    "replay/log_failed": 0.0,
    "replay/actors_stalled": 0.0,
    "replay/learner_stalled": 1.0,
}


def test_the_panel_tells_what_the_log_holds_and_who_is_held_back_and_why():
    shown = display(terminal=True)
    shown.update({**SNAPSHOT, **LOGGED}, held_back="learner held back: 8 rows are readable, drawing needs 16")
    text = drawn(shown)
    for expected in ("replay log", "segments 12", "on disk 3.5 MiB", "not sealed for 2.2 s", "rows dropped 0"):
        assert expected in " ".join(text.split()), expected
    assert "‖ learner held back: 8 rows are readable, drawing needs 16" in text
    assert "the log is" not in text and "actors waited" not in text
    shown.update({**LOGGED, "replay/learner_stalled": 0.0, "replay/log_failed": 1.0, "replay/log_dropped_rows": 7.0})
    text = " ".join(drawn(shown).split())
    assert "‖" not in text
    assert "learner held back 50%" in text, "the share of the intervals shown"
    assert "the log is off" in text and "rows dropped 7" in text


def test_off_a_terminal_a_line_tells_the_log_and_the_side_that_waits():
    with display(terminal=False) as shown:
        shown.update({"time/seconds": 1.0, **LOGGED}, held_back="actors held back: with 8 more rows …")
        shown.update({"time/seconds": 12.0, "replay/log_dropped_rows": 3.0, "replay/log_failed": 1.0})
    first, second = written(shown).splitlines()
    assert "log 3.5 MiB" in first and "actors held back" in first and "dropped" not in first
    assert "rows dropped by the log: 3" in second and "log off" in second and "held back" not in second


def test_a_small_share_is_told_and_what_would_be_written_as_nothing_is_not():
    figures = {"annotation/parse_failure_share": 0.03, "replay/log_waited_seconds": 0.04, "annotation/keys": 5.0}
    with display(terminal=True) as shown:
        shown.update({"time/seconds": 1.0, **LOGGED, **figures})
        text = " ".join(drawn(shown).split())
        assert "unreadable 3%" in text
        assert "actors waited" not in text, "it would say 0.0 s"
        shown.update({"annotation/parse_failure_share": 0.0})
        assert "unreadable" not in drawn(shown)


@pytest.mark.parametrize("terminal", [True, False])
def test_notes_hold_nothing_that_a_terminal_obeys(terminal):
    shown = display(terminal)
    with shown:
        shown.update(SNAPSHOT, notes=["heard \x1b]0;mine\x07 a door"], held_back="the \x9b2Jlearner: waits")
    text = written(shown)
    assert "heard ]0;mine a door" in text and "the 2Jlearner" in text
    assert not {"\x07", "\x9b"} & set(text) and "\x1b]" not in text
