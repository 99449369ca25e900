"""What a run shows while it trains: a live panel on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TypeAlias

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from onibi.clusters.reports.figures import UNKNOWN, bytes_text, count_text, duration_text, share_text, value_text
from onibi.platform.annotation.captions import printable

Show: TypeAlias = Callable[[float | None], str]

_REFRESHES_PER_SECOND = 2  # only the clock moves between intervals
_LINE_SECONDS = 10.0
"""Of the run between two lines off a terminal; notes, evaluations and alarms have their line at once."""
_AT_ONCE = ("evaluation/", "alarms/")
_PAID = "actors/intrinsic_return"
_NOTES = 3
_SPARK_POINTS = 24
_SPARK_BLOCKS = "▁▂▃▄▅▆▇█"
_BAR_CHARACTERS = 40
_TWO_COLUMNS_WIDTH = 112
_BORDERS = 2


@dataclass(frozen=True)
class Budget:
    """When a run ends: at so many env steps, after so many seconds, or whichever comes first. None is no limit."""

    env_steps: int | None
    seconds: float | None

    def share(self, env_steps: float, seconds: float) -> float:
        """How much of the budget is used, in [0, 1]; 0 where there is no limit."""
        steps = env_steps / self.env_steps if self.env_steps else 0.0
        clock = seconds / self.seconds if self.seconds else 0.0
        return min(1.0, max(steps, clock))

    def seconds_left(self, env_steps: float, seconds: float, env_steps_per_second: float | None) -> float | None:
        """Seconds to the nearer limit at the present speed; None where that is unknown."""
        left = []
        if self.seconds is not None:
            left.append(self.seconds - seconds)
        if self.env_steps is not None and env_steps_per_second:
            left.append((self.env_steps - env_steps) / env_steps_per_second)
        return max(0.0, min(left)) if left else None


@dataclass(frozen=True)
class _Figure:
    """One line of the panel: ``key`` of the snapshot, its label, how it is written, and whether its course is drawn.

    ``mean``: of the last intervals that the course shows. ``nonzero``: left out where it is 0. ``heard``: of captions,
    left out before the run has heard any, as it never does where the environment has none.
    """

    key: str
    label: str
    show: Show
    course: bool = False
    mean: bool = False
    nonzero: bool = False
    heard: bool = False

    def told(self, snapshot: Mapping[str, float]) -> bool:
        """Whether the snapshot has it, and it is worth telling."""
        if self.key not in snapshot:
            return False
        if self.heard and snapshot.get("annotation/keys") == 0 and not (self.key == _PAID and snapshot[self.key]):
            return False  # bonuses pay without captions
        if not self.nonzero:
            return True
        text = self.show(snapshot[self.key])  # 0.04 s is written as 0 s is, and 4% is not
        return snapshot[self.key] != 0 and (not text or text != self.show(0.0))


def _bytes_text(size: float | None) -> str:
    return UNKNOWN if size is None or not math.isfinite(size) else bytes_text(size)


def _seconds_text(seconds: float | None) -> str:
    return UNKNOWN if seconds is None or not math.isfinite(seconds) else f"{seconds:.1f} s"


def _failed_text(failed: float | None) -> str:
    return "off: see the error above" if failed else "on"


def _nothing(_: float | None) -> str:
    return ""


ALARM_TEXTS = {
    "one_key": "most pay for one key",
    "new_keys": "keys paid rise, success does not",
    "failures_paid": "failures paid as much as success",
    "heard": "most pay for what is heard, not done",
}
"""What each of ``hack_alarms.ALARMS`` says, in a few words."""


# Left column, then right.
_SECTIONS: tuple[tuple[tuple[str, tuple[_Figure, ...]], ...], ...] = (
    (
        (
            "actors",
            (
                _Figure("actors/env_steps", "env steps", count_text),
                _Figure("actors/env_steps_per_second", "steps/s", count_text),
                _Figure("actors/episode_return", "return", value_text, course=True),
                _Figure(_PAID, "intrinsic return", value_text, course=True, heard=True),
                _Figure("actors/success_rate", "success", share_text, course=True),
                _Figure("actors/episode_length", "length", value_text),
                _Figure("actors/policy_lag_mean", "policy lag, mean", value_text),
                _Figure("actors/policy_lag_max", "policy lag, max", value_text),
            ),
        ),
        (
            "evaluation",
            (
                _Figure("evaluation/return_mean", "return", value_text, course=True),
                _Figure("evaluation/success_rate", "success", share_text, course=True),
                _Figure("evaluation/intrinsic_return_mean", "intrinsic return", value_text, course=True),
            ),
        ),
        (
            "replay log",
            (
                _Figure("replay/log_segments", "segments", count_text),
                _Figure("replay/log_bytes", "on disk", _bytes_text),
                _Figure("replay/log_lag_seconds", "not sealed for", _seconds_text, course=True),
                _Figure("replay/log_dropped_rows", "rows dropped", count_text),
                _Figure("replay/log_waited_seconds", "actors waited", _seconds_text, nonzero=True),
                _Figure("replay/log_failed", "the log is", _failed_text, nonzero=True),
            ),
        ),
    ),
    (
        (
            "learner",
            (
                _Figure("learner/updates", "updates", count_text),
                _Figure("learner/updates_per_second", "updates/s", count_text),
                _Figure("learner/loss", "loss", value_text, course=True),
                _Figure("learner/q_mean", "mean Q", value_text, course=True),
                _Figure("learner/clipped_share", "targets clipped", share_text),
            ),
        ),
        (
            "replay",
            (
                _Figure("replay/readable_rows", "rows", count_text),
                _Figure("replay/samples_per_insert", "samples per insert", value_text),
                _Figure("replay/overtaken_draws", "overtaken draws", count_text),
                _Figure("replay/lost_rows", "lost rows", count_text, nonzero=True),
                _Figure("replay/actors_stalled", "actors held back", share_text, course=True, mean=True),
                _Figure("replay/learner_stalled", "learner held back", share_text, course=True, mean=True),
                _Figure("actors/waiting_for_lanes", "actors wait for lanes", count_text, nonzero=True),
            ),
        ),
        (
            "captions",
            (
                _Figure("annotation/keys_labelled", "labels", count_text, heard=True),
                _Figure("annotation/keys", "keys", count_text, heard=True),
                _Figure("annotation/queue_keys", "queue", count_text, heard=True),
                _Figure("annotation/latency_p95_seconds", "answers within", _seconds_text),
                _Figure("annotation/label_delay_p50_seconds", "labelled after", _seconds_text),
                _Figure("annotation/parse_failure_share", "unreadable", share_text, nonzero=True),
                _Figure("annotation/annotators_failing", "annotators failing", count_text, nonzero=True),
                _Figure("annotation/annotators_spent", "budgets used up", count_text, nonzero=True),
                _Figure("learner/labelled_share", "rows labelled", share_text, course=True, heard=True),
                *(
                    _Figure(f"alarms/{name}", f"ALARM: {text}", _nothing, nonzero=True)
                    for name, text in ALARM_TEXTS.items()
                ),
            ),
        ),
    ),
)

_LINE = (
    _Figure("actors/env_steps", "{} steps", count_text),
    _Figure("actors/env_steps_per_second", "{}/s", count_text),
    _Figure("learner/updates", "{} updates", count_text),
    _Figure("learner/updates_per_second", "{}/s", count_text),
    _Figure("actors/episode_return", "return {}", value_text),
    _Figure("actors/success_rate", "success {}", share_text),
    _Figure(_PAID, "intrinsic {}", value_text, heard=True),
    _Figure("annotation/keys_labelled", "{} labels", count_text, heard=True),
    _Figure("learner/labelled_share", "labelled {}", share_text, heard=True),
    _Figure("annotation/queue_keys", "queue {}", count_text, heard=True),
    _Figure("annotation/annotators_failing", "annotators failing: {}", count_text, nonzero=True),
    _Figure("annotation/annotators_spent", "budgets used up: {}", count_text, nonzero=True),
    _Figure("actors/policy_lag_mean", "lag {}", value_text),
    _Figure("replay/samples_per_insert", "{} samples/insert", value_text),
    _Figure("replay/log_bytes", "log {}", _bytes_text),
    _Figure("replay/log_dropped_rows", "rows dropped by the log: {}", count_text, nonzero=True),
    _Figure("replay/log_failed", "log {}", _failed_text, nonzero=True),
    *(_Figure(f"alarms/{name}", f"ALARM: {text}{{}}", _nothing, nonzero=True) for name, text in ALARM_TEXTS.items()),
    _Figure("learner/loss", "loss {}", value_text),
    _Figure("evaluation/return_mean", "evaluated {}", value_text),
    _Figure("evaluation/success_rate", "evaluated success {}", share_text),
)


def _in_words(snapshot: Mapping[str, float]) -> list[str]:
    return [figure.label.format(figure.show(snapshot[figure.key])) for figure in _LINE if figure.told(snapshot)]


class ProgressDisplay:
    """Shows snapshots of a run; a context manager. Figures that a snapshot lacks keep their last value.

    While it is live, whatever else goes to the terminal must go through ``console``, else it tears the panel (for
    logging: ``rich.logging.RichHandler(console=display.console)``).
    """

    def __init__(
        self, console: Console, title: str, budget: Budget, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.console = console
        self._title = title
        self._budget = budget
        self._clock = clock
        self._figures: dict[str, float] = {}
        self._courses: dict[str, deque[float]] = {}
        self._notes: deque[str] = deque(maxlen=_NOTES)
        self._held_back = ""
        self._line_at = -math.inf
        self._untold = ""
        self._seconds = 0.0
        self._updated_at = clock()
        self._live = (
            Live(
                console=console,
                get_renderable=self.render,
                refresh_per_second=_REFRESHES_PER_SECOND,
                vertical_overflow="crop",
            )
            if console.is_terminal and not console.is_dumb_terminal
            else None
        )

    def __enter__(self) -> ProgressDisplay:
        """Start drawing."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the last state on the terminal and give the cursor back."""
        if self._live is not None:
            self._live.stop()
        elif self._untold:
            self._print(self._untold)

    def update(self, snapshot: Mapping[str, float], notes: Sequence[str] = (), held_back: str = "") -> None:
        """Show one interval.

        Args:
            snapshot: figures by their history key; ``time/seconds`` is the run's age, without it the clock counts.
            notes: events worth a line (an actor restarted, a checkpoint saved).
            held_back: which side of the limiter waits at this moment, and why; empty where none does.
        """
        now = self._clock()
        self._seconds = snapshot.get("time/seconds", self._seconds + now - self._updated_at)
        self._updated_at = now
        news = bool(notes) or any(
            math.isfinite(value) and value != self._figures.get(key, 0.0)
            for key, value in snapshot.items()
            if key.startswith(_AT_ONCE)
        )
        self._figures.update(snapshot)
        for key, value in snapshot.items():
            if math.isfinite(value):
                self._courses.setdefault(key, deque(maxlen=_SPARK_POINTS)).append(value)
        notes = [printable(note) for note in notes]  # they may hold what an environment or a server said
        self._notes.extend(notes)
        self._held_back = printable(held_back)
        if self._live is not None:
            self._live.refresh()
            return
        self._untold = self.line(snapshot)
        if news or self._seconds - self._line_at >= _LINE_SECONDS:
            self._print(self._untold)
            self._line_at, self._untold = self._seconds, ""
        for note in notes:
            self._print(f"  {note}")

    def line(self, snapshot: Mapping[str, float]) -> str:
        """The snapshot as one line of text."""
        parts = [duration_text(self._seconds).rjust(7), *_in_words(snapshot)]
        if self._held_back:
            parts.append(self._held_back.partition(":")[0])
        left = self._seconds_left()
        if left is not None:
            parts.append(f"{duration_text(left)} left")
        return "  ".join(parts)

    def render(self) -> RenderableType:
        """The panel of the present state."""
        columns = [[part for section in column for part in self._section(*section)] for column in _SECTIONS]
        body: list[RenderableType] = [self._head(), Text()]
        figures: RenderableType
        if not any(columns):
            figures = Text("waiting for the first figures …", "dim")
        elif self.console.width >= _TWO_COLUMNS_WIDTH:
            grid = Table.grid(padding=(0, 6))
            grid.add_row(*(Group(*column) for column in columns))
            figures = grid
        else:
            figures = Group(*(part for column in columns for part in column))
        others = _BORDERS + len(body) + bool(self._held_back) + len(self._notes)
        if others + len(self.console.render_lines(figures, pad=False)) > self.console.height:
            figures = Text("   ".join(_in_words(self._figures)))
        body.append(figures)
        if self._held_back:
            body.append(Text(f"‖ {self._held_back}", style="dim", overflow="ellipsis", no_wrap=True))
        body += [Text(f"· {note}", style="yellow", overflow="ellipsis", no_wrap=True) for note in self._notes]
        return Panel(Group(*body), title=Text(f" {self._title} "), title_align="left", border_style="cyan")

    def _print(self, line: str) -> None:
        self.console.print(Text(line), soft_wrap=True)

    def _head(self) -> RenderableType:
        head = Table.grid(padding=(0, 2))
        seconds = self._seconds + self._clock() - self._updated_at
        used = self._budget.share(self._figures.get("actors/env_steps", 0.0), seconds)
        left = self._seconds_left()
        head.add_row(
            ProgressBar(
                total=1.0, completed=used, width=_BAR_CHARACTERS, complete_style="cyan", finished_style="green"
            ),
            Text(share_text(used), style="bold"),
            Text(f"{duration_text(seconds)} gone"),
            Text(f"{UNKNOWN if left is None else duration_text(left)} left"),
        )
        return head

    def _section(self, name: str, figures: tuple[_Figure, ...]) -> Iterator[RenderableType]:
        known = [figure for figure in figures if figure.told(self._figures)]
        if not known:
            return
        table = Table.grid(padding=(0, 1))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(justify="right", style="bold", no_wrap=True)
        table.add_column(style="cyan", no_wrap=True)
        table.add_row(Text(name, style="bold cyan"))
        for figure in known:
            values = self._courses.get(figure.key, ())
            course = _sparkline(values) if figure.course else ""
            value = sum(values) / len(values) if figure.mean and values else self._figures[figure.key]
            table.add_row(figure.label, Text(figure.show(value)), course)
        yield table
        yield Text()

    def _seconds_left(self) -> float | None:
        seconds = self._seconds + self._clock() - self._updated_at
        return self._budget.seconds_left(
            self._figures.get("actors/env_steps", 0.0), seconds, self._figures.get("actors/env_steps_per_second")
        )


def _sparkline(values: Sequence[float] | deque[float]) -> str:
    """The course of a figure in block characters, scaled from its least to its greatest value."""
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    if high == low:
        return _SPARK_BLOCKS[0] * len(values)
    top = len(_SPARK_BLOCKS) - 1
    return "".join(_SPARK_BLOCKS[round(top * (value - low) / (high - low))] for value in values)
