"""Rollouts: a policy stepping E environments, and the fragments it fills. Runs without Ray (serial mode, tests)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from onibi.actors.action_fitting import ActionFit, action_fitting
from onibi.actors.bonuses.row_bonus import Arrival
from onibi.actors.bonuses.row_bonuses import RowBonuses
from onibi.actors.caption_counter import CaptionCounter
from onibi.actors.captioners.captioner import Captioner
from onibi.actors.environments.factory import autoreset_mode
from onibi.actors.environments.process_exit import is_by_signal
from onibi.actors.episodes import EpisodeBook
from onibi.actors.final_observations import with_finals
from onibi.actors.fragment_buffer import FragmentBuffer
from onibi.actors.views.view import View
from onibi.platform.annotation.captions import text_hash
from onibi.platform.config import Settings
from onibi.platform.errors import EnvironmentFault, SpecError
from onibi.platform.fragment import CaptionText, Fragment
from onibi.platform.policy import Policy, Weights
from onibi.platform.spec import ACTION_MASK, NUMBERS, ROLE_FINAL, ROLE_STEP, ReplaySpec
from onibi.platform.user_code import raised_at, raised_in_own_code

log = logging.getLogger(__name__)

_RETURNS = (
    ". Where the environment itself raised nothing, look at what it returns: reset() gives (observation, info), step() "
    "gives (observation, reward, terminated, truncated, info); the observation has the shape and dtype of its space, "
    "the reward is a number, the info a dict. gymnasium.utils.env_checker.check_env tells more."
)

PollWeights = Callable[[int], Weights | None]
"""Given the version in use, newer weights or None; must not wait."""


@dataclass(frozen=True, kw_only=True)
class RolloutSettings(Settings):
    """How one actor collects."""

    envs_per_actor: int = 8  # E: environments (lanes) of one actor
    fragment_steps: int = 16  # T: env steps of each environment in a fragment
    fragment_steps_max: int = 128  # a fragment grows to this while less than fragment_seconds have passed
    fragment_seconds: float = 0.05  # at most 20 fragments a second per actor; 0: always fragment_steps
    weights_period_steps: int = 4  # vector steps between two looks for newer weights
    action_fit: ActionFit = "rescale"  # how a policy's continuous actions become the environment's
    caption_counts: bool = True  # episodic caption counts as an observation: they make count rewards Markov

    def __post_init__(self) -> None:
        for name in ("envs_per_actor", "fragment_steps", "weights_period_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: 1 or more")
        if self.fragment_steps_max < self.fragment_steps:
            raise ValueError(
                f"fragment_steps_max is {self.fragment_steps_max}; allowed: fragment_steps ({self.fragment_steps}) "
                "or more"
            )
        if self.fragment_seconds < 0:
            raise ValueError(f"fragment_seconds is {self.fragment_seconds}; allowed: 0 or more")


@dataclass(frozen=True, kw_only=True)
class RolloutIdentity:
    """Whose fragments these are: the lease that the shard gave, and the seed of this incarnation."""

    actor: int
    incarnation: int
    next_sequence: int
    seed: int
    before: int = 0  # actors of the shards before its own
    session: int = 0  # of the run: a new ring begins its incarnations anew, episode ids go on


class Rollout:
    """Steps a vector environment with a policy and cuts what happens into fragments.

    Row k holds o_k, a_k and what a_k caused, the caption of o_{k+1} included (docs/replay.md). In NEXT_STEP
    environments the reset step becomes the final row of the episode that ended; in SAME_STEP and DISABLED ones the
    final observation gets a row of its own, so lanes may bring different numbers of rows.

    Args:
        vector_env: E environments; closed by :meth:`close`.
        view, captioner: what is stored of an observation, and its caption.
        policy: acts; random while it has no weights.
        spec: row layout; ``observation.caption_counts`` in it is filled here.
        settings, identity: as above.
        env_id: named in errors.
        clock: seconds; only for fragment pacing and figures.
        bonuses: of these E lanes; None for none.
    """

    def __init__(
        self,
        vector_env: VectorEnv[Any, Any, Any],
        view: View,
        captioner: Captioner,
        policy: Policy,
        spec: ReplaySpec,
        settings: RolloutSettings,
        identity: RolloutIdentity,
        env_id: str,
        clock: Callable[[], float] = time.perf_counter,
        bonuses: RowBonuses | None = None,
    ) -> None:
        self._env, self._view, self._captioner, self._policy = vector_env, view, captioner, policy
        self._settings, self._identity, self._env_id, self._clock = settings, identity, env_id, clock
        self._envs = vector_env.num_envs
        self._mode = autoreset_mode(vector_env, env_id)
        self._fit = action_fitting(vector_env.single_action_space, settings.action_fit, env_id)
        self._counter = CaptionCounter(self._envs, spec.keys_per_caption)
        rows_per_step = 1 if self._mode is AutoresetMode.NEXT_STEP else 2
        self._buffer = FragmentBuffer(spec, self._envs, settings.fragment_steps_max * rows_per_step + 1)
        self._states = tuple(state.name for state in spec.states)
        self._bonuses = bonuses if bonuses else None
        self._heard: list[CaptionText] | None = None
        self._floats = [column.name for column in spec.observation if column.dtype.startswith("float")]
        self._classes = [
            (column.name, column.low, column.high)
            for column in spec.observation
            if column.shape == () and column.dtype.startswith(("int", "uint")) and column.content == NUMBERS
            if column.low is not None and column.high is not None
        ]
        _check_mask(spec, env_id)
        self._kept_in_final_rows = ("episode_id", "step", *(column.name for column in spec.observation))
        self._captions_begin = getattr(captioner, "begin", None)  # of an EpisodicCaptioner
        self._speaks = captioner.keys_per_caption > 0  # else captions cost nothing: their columns stay 0
        self._counts_column = any(column.name == "observation.caption_counts" for column in spec.observation)
        number = identity.before + identity.actor
        self._episodes = EpisodeBook(self._envs, number, identity.incarnation, identity.session)
        self._sequence = identity.next_sequence
        self._sent: set[str] = set()
        self._new_captions: list[CaptionText] = []
        env_seed, policy_seed = np.random.SeedSequence(identity.seed).spawn(2)
        self._rng = np.random.default_rng(policy_seed)
        self._state = policy.initial_state(self._envs)
        self.stepping_since: float | None = None
        """When the environments were called that have not returned, by ``time.perf_counter``."""
        # One number: environments with a vector_entry_point of their own take no list of seeds.
        first_seed = int(env_seed.generate_state(1)[0])
        raw, infos = self._guard(lambda: vector_env.reset(seed=first_seed))
        self._resetting: NDArray[np.bool_] | None = None  # NEXT_STEP: lanes whose next step is a reset, None for none
        self._reset_rows = False  # the buffer holds final rows that were put as steps
        everybody: NDArray[np.bool_] = np.ones(self._envs, np.bool_)
        self._observation = self._observe({}, raw, infos, fresh=everybody, heard=everybody)
        self._begin_bonuses(self._observation, everybody)

    @property
    def weights_version(self) -> int:
        """Version of the weights that act now."""
        return int(self._policy.version)

    def collect(self, poll: PollWeights) -> Fragment:
        """Step until the fragment is full: ``fragment_steps``, or more while ``fragment_seconds`` have not passed.

        The arrays belong to this rollout and are overwritten by the next call.

        Raises:
            EnvironmentFault: the environment raised, or gave a reward or observation that is not finite, or a class
                that its space lacks.
        """
        settings, started, taken = self._settings, self._clock(), 0
        self._buffer.clear()
        while taken < settings.fragment_steps or (
            taken < settings.fragment_steps_max and self._clock() - started < settings.fragment_seconds
        ):
            if taken % settings.weights_period_steps == 0:
                weights = poll(self.weights_version)
                if weights is not None:
                    self._policy.load(weights)
                    if self._bonuses is not None:
                        self._bonuses.load(weights.bonuses)
            self._step()
            taken += 1
        if self._reset_rows:
            self._buffer.zero_final_rows(self._kept_in_final_rows)
            self._reset_rows = False
        columns, rows_per_lane = self._buffer.cut(
            self._observation, {"episode_id": self._episodes.episode_id, "step": self._episodes.step}
        )
        captions, self._new_captions = self._new_captions, []
        texts = [] if self._view.texts is None else self._view.texts.take_new()["text"].to_pylist()
        roles = columns["role"]
        committed = np.arange(roles.shape[1]) < rows_per_lane[:, None]
        fragment = Fragment(
            actor=self._identity.actor,
            incarnation=self._identity.incarnation,
            sequence=self._sequence,
            rows_per_lane=rows_per_lane,
            columns=columns,
            states=self._buffer.cut_states(),
            new_captions=captions,
            new_texts=texts,
            episodes=self._episodes.take(),
            env_steps=int(((roles == ROLE_STEP) & committed).sum()),
        )
        self._sequence += 1
        return fragment

    def close(self) -> None:
        """Close the environments."""
        self._env.close()

    def _step(self) -> None:
        episodes = self._episodes
        acted = self._policy.act(self._observation, self._state, self._rng)
        self._state = acted.state
        self._buffer.put(self._observation)
        played = acted.action if self._fit is None else self._fit(acted.action)
        raw, reward, terminated, truncated, infos = self._guard(lambda: self._env.step(played))
        reward = np.asarray(reward, np.float32)
        if reward.shape != (self._envs,) or np.shape(terminated) != reward.shape or np.shape(truncated) != reward.shape:
            raise EnvironmentFault(
                f"{self._env_id}: rewards, terminated and truncated have the shapes {reward.shape}, "
                f"{np.shape(terminated)} and {np.shape(truncated)}; allowed: ({self._envs},), one for each environment."
            )
        if not np.isfinite(reward).all():
            lane = int(np.flatnonzero(~np.isfinite(reward))[0])
            raise EnvironmentFault(
                f"{self._env_id}: environment {lane} gave the reward {reward[lane]}; rewards must be finite."
            )
        terminated, truncated = np.asarray(terminated, np.bool_), np.asarray(truncated, np.bool_)
        row: dict[str, Any] = {
            "action": acted.action,
            "reward": reward,
            "terminated": terminated,
            "truncated": truncated & ~terminated,
            "role": ROLE_STEP,
            "episode_id": episodes.episode_id,
            "step": episodes.step,
            "policy_version": self.weights_version,
            **acted.extra,
        }
        if self._states:
            self._buffer.put_states({name: row.pop(name) for name in self._states}, episodes.step)
        if self._mode is AutoresetMode.NEXT_STEP:
            self._step_then_reset(row, raw, infos, terminated | truncated)
        else:
            self._step_and_reset(row, raw, infos, terminated | truncated)

    def _step_then_reset(self, row: dict[str, Any], raw: Any, infos: dict[str, Any], ended: NDArray[np.bool_]) -> None:
        """NEXT_STEP: a lane that ended at the last step has only been reset in this one.

        Its row is put as that of the others; ``collect`` sets the columns that a final row lacks to 0, all at once.
        """
        resetting = self._resetting
        after = self._observe(row, raw, infos, fresh=resetting)
        self._pay_bonuses(row, after, resetting)
        if resetting is not None:
            row["role"] = np.where(resetting, ROLE_FINAL, ROLE_STEP)
            self._reset_rows = True
            ended &= ~resetting
        self._buffer.put(row)
        self._buffer.end_row()
        self._episodes.record(row["reward"])
        lanes = np.flatnonzero(ended)
        if len(lanes):
            self._episodes.end(lanes, row["terminated"], infos, self._bonus_returns())
        if resetting is not None:
            self._begin_bonuses(after, resetting)
            self._episodes.begin(np.flatnonzero(resetting))
            self._state = _reset_state(self._state, self._policy, resetting)
        self._resetting = ended if len(lanes) else None
        self._observation = after

    def _step_and_reset(self, row: dict[str, Any], raw: Any, infos: dict[str, Any], ended: NDArray[np.bool_]) -> None:
        """SAME_STEP and DISABLED: a lane that ended brings its step row and its final row at once."""
        lanes = np.flatnonzero(ended)
        final_raw, final_infos = raw, infos
        if len(lanes) and self._mode is AutoresetMode.SAME_STEP:
            final_raw, final_infos = with_finals(raw, infos, ended, self._env_id)
        after = self._observe(row, final_raw, final_infos)
        self._pay_bonuses(row, after, None)
        self._buffer.put(row)
        self._buffer.end_row()
        self._episodes.record(row["reward"])
        if len(lanes):
            self._episodes.end(lanes, row["terminated"], final_infos, self._bonus_returns())
            final = {**after, "role": ROLE_FINAL, "episode_id": self._episodes.episode_id, "step": self._episodes.step}
            self._buffer.append_final(final, lanes)
            if self._mode is AutoresetMode.DISABLED:
                raw, infos = self._guard(lambda: self._env.reset(options={"reset_mask": ended}))
            self._episodes.begin(lanes)
            self._state = _reset_state(self._state, self._policy, ended)
            first = self._observe({}, raw, infos, fresh=ended, heard=ended)
            after = {
                name: np.where(ended.reshape(-1, *[1] * (value.ndim - 1)), first[name], value)
                for name, value in after.items()
            }
            self._begin_bonuses(after, ended)
        self._observation = after

    def _pay_bonuses(
        self, row: dict[str, Any], after: dict[str, NDArray[Any]], resetting: NDArray[np.bool_] | None
    ) -> None:
        """Add the bonus columns of the step that led to ``after``; what ``resetting`` lanes get is set to 0 later."""
        if self._bonuses is not None:
            lanes: NDArray[np.bool_] = np.ones(self._envs, np.bool_) if resetting is None else ~resetting
            row.update(self._bonuses.pay(Arrival(after, self._heard, row.get("caption_count")), lanes))

    def _begin_bonuses(self, observation: dict[str, NDArray[Any]], lanes: NDArray[np.bool_]) -> None:
        if self._bonuses is not None:
            self._bonuses.begin(Arrival(observation, self._heard), lanes)

    def _bonus_returns(self) -> Mapping[str, NDArray[np.float64]]:
        return {} if self._bonuses is None else self._bonuses.episode_returns()

    def _observe(
        self,
        row: dict[str, Any],
        raw: Any,
        infos: dict[str, Any],
        fresh: NDArray[np.bool_] | None = None,
        heard: NDArray[np.bool_] | None = None,
    ) -> dict[str, NDArray[Any]]:
        """The columns of an observation, [E, ...] each; its captions and their counts are added to ``row``.

        In ``fresh`` lanes (None: in none) it is an episode's first, so counts start anew; only ``heard`` lanes (None:
        all) count their caption: the others' has been counted with the step that they are still in.
        """
        observation = self._view(raw)
        for name in self._floats:
            if name in observation and not np.isfinite(observation[name]).all():
                raise EnvironmentFault(f"{self._env_id}: {name} holds NaN or infinity; observations must be finite.")
        for name, low, high in self._classes:  # a network would take it for another class, or for one of another leaf
            values = observation[name]
            if values.min() < low or values.max() > high:
                raise EnvironmentFault(
                    f"{self._env_id}: {name} is {values.tolist()} in {self._envs} environments; its space allows "
                    f"{low:g} to {high:g}."
                )
        if self._speaks:
            self._hear(row, raw, infos, fresh, heard)
        if self._counts_column:
            observation["observation.caption_counts"] = self._counter.feature()
        return observation

    def _hear(
        self,
        row: dict[str, Any],
        raw: Any,
        infos: dict[str, Any],
        fresh: NDArray[np.bool_] | None,
        heard: NDArray[np.bool_] | None,
    ) -> None:
        if fresh is not None and self._captions_begin is not None:
            self._captions_begin(fresh)
        captions = self._heard = self._captioner.captions(raw, infos)
        if fresh is not None:
            for lane in np.flatnonzero(fresh).tolist():
                self._counter.reset(lane)
        row["caption_count"] = self._counter.count(captions, heard)
        row["caption_hash"] = np.fromiter((text_hash(caption.text) for caption in captions), np.uint64, self._envs)
        for caption in captions:
            if caption.text and caption.text not in self._sent:
                self._sent.add(caption.text)
                self._new_captions.append(caption)

    def _guard(self, call: Callable[[], Any]) -> Any:
        self.stepping_since = time.perf_counter()
        try:
            return call()
        except (Exception, SystemExit) as error:  # sys.exit() in a step would end the run, or its actor, without a word
            if isinstance(error, EnvironmentFault) or is_by_signal(error):
                raise
            told = (
                f"{self._env_id} raised in actor {self._identity.actor}: {type(error).__name__}: {error}"
                f"{raised_at(error)}"
            )
            if not raised_in_own_code(error):  # Gymnasium and NumPy stumble over what was returned without saying so
                told = told.rstrip(".") + _RETURNS
            raise EnvironmentFault(told) from error
        finally:
            self.stepping_since = None


def _check_mask(spec: ReplaySpec, env_id: str) -> None:
    """Raises: SpecError for an action mask that is not one number for each action."""
    for column in spec.observation:
        if column.name == ACTION_MASK and spec.actions and column.shape != (spec.actions,):
            raise SpecError(
                f"{env_id}: {ACTION_MASK} has the shape {column.shape}; allowed: ({spec.actions},), one number for "
                "each action, 0 where it is not allowed. Give it this shape or another name."
            )


def _reset_state(state: Any, policy: Policy, lanes: NDArray[np.bool_]) -> Any:
    """``state`` [E, ...] with that of fresh episodes in ``lanes``; None where the policy has none."""
    if state is None:
        return None
    initial = policy.initial_state(len(lanes))
    return np.where(lanes.reshape(-1, *[1] * (np.ndim(state) - 1)), initial, state)
