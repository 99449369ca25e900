"""Episodes played to judge a policy: greedy, in environments of their own, a fixed number in every lane."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onibi.actors.rollout import Rollout
from onibi.platform.annotation.captions import CaptionTable
from onibi.platform.config import Settings
from onibi.platform.fragment import EpisodeStatistics, Fragment
from onibi.platform.number_ranges import Count, CountOrNone, Probability
from onibi.platform.policy import Policy, PolicyStep, Weights
from onibi.platform.random_actions import random_actions
from onibi.platform.rewards.episode_ledger import EpisodeLedger
from onibi.platform.rewards.table import RewardTable
from onibi.platform.spec import ReplaySpec

log = logging.getLogger(__name__)

LONG_SECONDS = 300.0  # of an evaluation, after which it is told why it may never end


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(Settings):
    """How often a run judges itself, and by what.

    How many each lane plays is settled before: with "the first N that finish" short episodes would count too often.
    """

    period_env_steps: Count | None = 25_000  # null: only at the end of the run
    episodes: Count = 20
    envs: Count = 4  # lanes that play together
    epsilon: Probability = 0.0  # share of random actions; greedy NetHack players can stand at a wall for ever
    judge: Literal["episode_return", "success", "intrinsic_return"] = "episode_return"  # what "best" means
    film_episodes: CountOrNone = 0  # of the best checkpoint, filmed when the run has finished; 0: none


@dataclass(frozen=True)
class PlayedEpisode:
    """One evaluated episode. ``intrinsic_return`` is undiscounted, by one frozen table, before its coefficient."""

    episode_return: float
    length: int
    intrinsic_return: float
    figures: dict[str, float]

    def judged_by(self, judge: str) -> float:
        """The number that :attr:`EvaluationSettings.judge` names."""
        if judge == "episode_return":
            return self.episode_return
        if judge == "intrinsic_return":
            return self.intrinsic_return
        return self.figures.get("success", 0.0)


@dataclass(frozen=True)
class FrozenRewards:
    """The caption rewards of one moment: by these, and these alone, an evaluation pays captions."""

    captions: CaptionTable
    table: RewardTable
    count_power: float

    def own(self) -> FrozenRewards:
        """The same with captions to intern into; those that came may be shared, or read-only memory of Ray's."""
        return dataclasses.replace(self, captions=CaptionTable.from_arrow(self.captions.to_arrow()))

    def met(self, fragment: Fragment) -> tuple[NDArray[np.uint32], RewardTable]:
        """The caption of each row, [E, R], and what its keys are worth.

        Captions never met in training can have keys that were: they are interned here, and paid by those keys' values.
        """
        self.captions.intern(fragment.new_captions)
        hashes, places = np.unique(fragment.columns["caption_hash"], return_inverse=True)
        ids = np.array([self.captions.caption_index(int(each)) or 0 for each in hashes], np.uint32)
        table = dataclasses.replace(self.table, caption_keys=self.captions.caption_keys)
        return ids[places].reshape(fragment.columns["caption_hash"].shape), table


class MixedWithRandom:
    """A policy that acts at random with probability ``epsilon``; see ``random_actions``."""

    def __init__(self, policy: Policy, epsilon: float, spec: ReplaySpec) -> None:
        self._policy, self._epsilon, self._spec = policy, epsilon, spec
        self.version = policy.version

    def initial_state(self, envs: int) -> Any:
        """The policy's own."""
        return self._policy.initial_state(envs)

    def act(self, observation: Mapping[str, NDArray[Any]], state: Any, rng: np.random.Generator) -> PolicyStep:
        """The policy's actions, some replaced."""
        chosen = self._policy.act(observation, state, rng)
        envs = len(chosen.action)
        at_random = rng.random(envs) < self._epsilon
        others, _ = random_actions(self._spec, observation, rng)
        action = np.where(at_random if others.ndim == 1 else at_random[:, None], others, chosen.action)
        return PolicyStep(action=action, state=chosen.state, extra=chosen.extra)

    def load(self, weights: Weights) -> None:
        """Handed on."""
        self._policy.load(weights)
        self.version = self._policy.version


def play(
    rollout: Rollout,
    envs: int,
    episodes: int,
    rewards: FrozenRewards | None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[PlayedEpisode]:
    """Play so many episodes, shared out over the rollout's lanes before the first one begins.

    Of 100 episodes over 8 lanes the first four play 13 each, the others 12, however long theirs are.

    Args:
        rollout: its policy is the one judged; closed here.
        envs: E, the rollout's lanes.
        episodes: how many over all lanes.
        rewards: pays ``intrinsic_return``; None: it is 0.
        should_stop: asked between fragments; True ends early with what was played.
    Returns: the episodes, lane by lane; what a lane played past its share does not count.
    """
    shares = [episodes // envs + (lane < episodes % envs) for lane in range(envs)]
    played: list[list[PlayedEpisode]] = [[] for _ in range(envs)]
    ledger = EpisodeLedger(rewards.count_power) if rewards else None
    rewards = rewards.own() if rewards else None
    began, is_told = time.monotonic(), False
    try:
        while any(len(lane) < share for lane, share in zip(played, shares, strict=True)) and not should_stop():
            if not is_told and time.monotonic() - began > LONG_SECONDS:
                is_told = True
                told = sum(map(len, played))
                log.warning(
                    "%d episodes of an evaluation took %.0f s so far. A player that stands still in an environment "
                    "without a time limit never ends an episode. environment.max_episode_steps sets a limit, "
                    "evaluation.episodes how many are played",
                    told,
                    LONG_SECONDS,
                )
            fragment = rollout.collect(_no_news)
            paid = _pay(fragment, rewards, ledger)
            for episode in fragment.episodes:
                if len(played[episode.lane]) < shares[episode.lane]:
                    played[episode.lane].append(_played(episode, paid))
    finally:
        rollout.close()
    return [episode for lane in played for episode in lane]


def _no_news(version: int) -> None:
    """A player keeps the weights that it was given."""


def _played(episode: EpisodeStatistics, paid: Mapping[int, float]) -> PlayedEpisode:
    return PlayedEpisode(episode.episode_return, episode.length, paid.get(episode.episode_id, 0.0), dict(episode.extra))


def _pay(fragment: Fragment, rewards: FrozenRewards | None, ledger: EpisodeLedger | None) -> dict[int, float]:
    if rewards is None or ledger is None:
        return {}
    return ledger.add(fragment, *rewards.met(fragment))
