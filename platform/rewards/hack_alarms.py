"""Alarms on rewards that are hacked: an agent that is paid for something else than getting on (docs/annotation.md).

    one_key        one key was paid more than ``one_key_share`` of all that was paid lately, of two keys more than ¾:
                   where two things help, one of them is always paid more than half; who gets under 1% does not count
    new_keys       more and more keys pay per episode while success could rise and does not: an agent that collects
                   captions
    failures_paid  failed episodes were paid as much as successful ones, discounted as the learner discounts: where that
                   is so, living on is worth as much as succeeding
    heard          more than ``heard_share`` of the pay of the best-paid keys is for what was perceived, not done

An alarm is up when its condition has held for ``hold_episodes`` episodes without a break: what an agent happens to find
first pays most for a while in any run. It goes down with the condition. It stops nothing, and nothing is tuned by it.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onibi.platform.config import Settings
from onibi.platform.rewards.pay_watch import EpisodePay, PayFigures

ALARMS = ("one_key", "new_keys", "failures_paid", "heard")
"""Their names, in metrics as ``alarms/NAME``, 1 while it is up."""

_OVER_EVEN = 1.5
"""Times an even share of the pay: what the best-paid of several keys may have without an alarm."""
_COUNTED_SHARE = 0.01  # of the pay: pay fades and never ends, so each key that was ever paid has a trace of it
_BLOCKS_MAX = 24  # of the run's course, even: then they are merged in pairs
_BLOCKS_NEEDED = 8
_SUCCESS_RISE = 0.05  # share of episodes by which success rises at least; so near to all it cannot
_HEARD = (
    r"^(?:You (?:hear|smell|notice|sense|dream|have a (?:vision|strange)|see(?! (?:here|no))|feel(?! here))\b"
    r"|It (?:sounds|smells|looks) )"
)


@dataclass(frozen=True, kw_only=True)
class AlarmSettings(Settings):
    """When an alarm goes off."""

    one_key_share: float = 0.5  # of what was paid lately
    heard_share: float = 0.5  # likewise, of the best-paid keys
    # Keys that tell of something perceived: a regular expression, searched in the key. What lies where one stands is
    # no hearsay: one went there.
    heard: str = _HEARD
    new_keys_rise: float = 1.25  # keys paid per episode lately, over those at the run's beginning
    episodes: int = 400  # that the comparison of failed and successful ones looks back on
    least_episodes: int = 20  # of each of the two, or nothing is compared
    hold_episodes: int = 200  # for which a condition must hold
    half_life_steps: int = 50_000  # env steps after which what was paid counts half: "lately"

    def __post_init__(self) -> None:
        for name in ("one_key_share", "heard_share"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: above 0 and at most 1")
        if not self.new_keys_rise > 1:
            raise ValueError(f"new_keys_rise is {self.new_keys_rise}; allowed: above 1")
        if self.episodes < 2 * self.least_episodes:
            raise ValueError(f"episodes is {self.episodes}; allowed: twice least_episodes or more")
        for name in ("episodes", "least_episodes", "hold_episodes", "half_life_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: 1 or more")
        try:
            re.compile(self.heard)
        except re.error as error:
            raise ValueError(f"heard is no regular expression: {error.msg} at position {error.pos}") from error


@dataclass(frozen=True)
class AlarmReport:
    """What one look showed."""

    metrics: dict[str, float]
    """``rewards/NAME`` for the figures, ``alarms/NAME`` for the alarms."""
    raised: tuple[str, ...]
    """One sentence for each alarm that went up just now."""
    up: tuple[str, ...]
    """Names of the alarms that are up."""


class HackAlarms:
    """Looks at the figures of one run, one interval after the other."""

    def __init__(self, settings: AlarmSettings) -> None:
        self.settings = settings
        self._heard = re.compile(settings.heard)
        self._texts: dict[int, str] = {}
        self._course = _Course(settings.hold_episodes // 2 or 1)
        self._newest: deque[EpisodePay] = deque(maxlen=settings.episodes)
        self._episodes = 0
        self._holds_since: dict[str, int] = {}
        self._up: set[str] = set()

    def look(self, pay: PayFigures, texts_of: Callable[[Sequence[int]], Sequence[str]]) -> AlarmReport:
        """Figures and alarms of now.

        Args:
            pay: since the last look.
            texts_of: texts of keys by their indices; asked for those only that were not asked before.
        """
        for episode in pay.episodes:
            self._newest.append(episode)
            self._course.add(episode)
        self._episodes += len(pay.episodes)
        new = [key for key in pay.best_keys if key not in self._texts]
        if new:
            self._texts.update(zip(new, texts_of(new), strict=True))
        metrics, conditions = self._conditions(pay)
        raised = []
        for name in ALARMS:
            sentence = conditions.get(name)
            if sentence is None:
                self._holds_since.pop(name, None)
                self._up.discard(name)
                continue
            since = self._holds_since.setdefault(name, self._episodes)
            if self._episodes - since >= self.settings.hold_episodes and name not in self._up:
                self._up.add(name)
                raised.append(sentence)
        metrics |= {f"alarms/{name}": float(name in self._up) for name in ALARMS}
        return AlarmReport(metrics, tuple(raised), tuple(name for name in ALARMS if name in self._up))

    def _conditions(self, pay: PayFigures) -> tuple[dict[str, float], dict[str, str]]:
        """Metrics, and a sentence for each alarm whose condition holds at this moment."""
        settings, metrics, holds = self.settings, dict[str, float](), dict[str, str]()
        if pay.total_pay > 0:
            share = pay.best_pay[0] / pay.total_pay
            metrics["rewards/best_key_share"] = share
            paid = sum(each >= _COUNTED_SHARE * pay.total_pay for each in pay.best_pay)
            if share > (max(settings.one_key_share, _OVER_EVEN / paid) if paid > 1 else settings.one_key_share):
                holds["one_key"] = (
                    f"{share:.0%} of the caption reward is for {self._texts[pay.best_keys[0]]!r} alone: look whether "
                    "the agent repeats it (`onibi rewards explain`), and whether its label is right"
                )
            heard = sum(
                paid
                for key, paid in zip(pay.best_keys, pay.best_pay, strict=True)
                if self._heard.search(self._texts[key])
            )
            heard_share = heard / sum(pay.best_pay)
            metrics["rewards/heard_share"] = heard_share
            if heard_share > settings.heard_share:
                holds["heard"] = (
                    f"{heard_share:.0%} of the caption reward is for what was perceived, not done: such labels pay for "
                    "dawdling; tell the judge that only deeds help, or make them unhelpful"
                )
        self._compare_ends(metrics, holds)
        self._compare_course(metrics, holds)
        return metrics, holds

    def _compare_ends(self, metrics: dict[str, float], holds: dict[str, str]) -> None:
        totals: dict[str, list[float]] = {"success": [], "failure": []}
        for episode in self._newest:
            totals["success" if episode.succeeded else "failure"].append(episode.discounted_total)
        least = self.settings.least_episodes
        means = {name: float(np.mean(found)) for name, found in totals.items() if len(found) >= least}
        metrics |= {f"rewards/discounted_total_of_{name}": mean for name, mean in means.items()}
        # Where nobody was paid anything, as before the first labels where the environment pays nothing, all is well.
        if len(means) == 2 and means["failure"] >= means["success"] and any(means.values()):
            holds["failures_paid"] = (
                f"failed episodes are paid {means['failure']:.3g}, successful ones {means['success']:.3g}, "
                "discounted: lower rewards.intrinsic.coefficient, or set rewards.intrinsic.episode_cap"
            )

    def _compare_course(self, metrics: dict[str, float], holds: dict[str, str]) -> None:
        if self._course.newest is not None:
            metrics["rewards/new_keys_per_episode"] = self._course.newest[0]
        ends = self._course.ends()
        if ends is None:
            return
        (keys_then, success_then), (keys_now, success_now) = ends
        stays = success_now <= success_then + _SUCCESS_RISE and success_now < 1 - _SUCCESS_RISE
        if keys_now > self.settings.new_keys_rise * keys_then and stays:
            holds["new_keys"] = (
                f"keys paid per episode rose from {keys_then:.2g} to {keys_now:.2g} while success went from "
                f"{success_then:.0%} to {success_now:.0%}: the agent collects captions; label fewer of them "
                "helpful, or set rewards.intrinsic.episode_cap"
            )


class _Course:
    """A run's course in a few blocks of as many episodes each: (mean new keys, share of successes)."""

    def __init__(self, block_episodes: int) -> None:
        self._block_episodes = block_episodes
        self._blocks: list[tuple[float, float]] = []
        self._open: list[EpisodePay] = []

    @property
    def newest(self) -> tuple[float, float] | None:
        """Of the block closed last."""
        return self._blocks[-1] if self._blocks else None

    def add(self, episode: EpisodePay) -> None:
        self._open.append(episode)
        if len(self._open) < self._block_episodes:
            return
        keys, success = [each.new_keys for each in self._open], [each.succeeded for each in self._open]
        self._blocks.append((float(np.mean(keys)), float(np.mean(success))))
        self._open = []
        if len(self._blocks) == _BLOCKS_MAX:
            pairs = zip(self._blocks[0::2], self._blocks[1::2], strict=True)
            self._blocks = [((a + c) / 2, (b + d) / 2) for (a, b), (c, d) in pairs]
            self._block_episodes *= 2

    def ends(self) -> tuple[tuple[float, float], tuple[float, float]] | None:
        """Means of the first and of the last quarter of the course; None while it is short."""
        if len(self._blocks) < _BLOCKS_NEEDED:
            return None
        quarter = len(self._blocks) // 4
        first, last = np.mean(self._blocks[:quarter], 0), np.mean(self._blocks[-quarter:], 0)
        return (float(first[0]), float(first[1])), (float(last[0]), float(last[1]))
