"""What a run is made of, worked out once from its settings and handed to every role (picklable, no Ray)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from gymnasium.vector import VectorEnv

from onibi.actors.action_fitting import action_fitting
from onibi.actors.annotators.registry import ANNOTATORS
from onibi.actors.bonuses.row_bonuses import RowBonuses
from onibi.actors.caption_counter import BAG_BITS
from onibi.actors.captioners.captioner import Captioner
from onibi.actors.captioners.registry import CAPTIONERS
from onibi.actors.environments.factory import make_vector_env
from onibi.actors.evaluation import MixedWithRandom
from onibi.actors.rollout import Rollout, RolloutIdentity
from onibi.actors.views.registry import VIEWS
from onibi.actors.views.view import View
from onibi.clusters.bonus_plan import bonus_features, check_bonuses, needs_with_bonuses
from onibi.clusters.run_settings import RunSettings, judges_chosen
from onibi.learners.learner import Learner, ReplayNeeds
from onibi.learners.registry import LEARNERS
from onibi.platform.annotation.annotator import Annotator, judge_of
from onibi.platform.annotation.labels import Judge
from onibi.platform.config import Settings, load_class
from onibi.platform.errors import ConfigError, EnvironmentFault, SpecError
from onibi.platform.features import FeaturesFactory
from onibi.platform.policy import LaneRange, Policy, PolicyFactory, Weights
from onibi.platform.remote_policy import Ask, remote_policy
from onibi.platform.replay.samplers.frame_stack import FrameStack, frame_stack
from onibi.platform.rewards.mixer import RewardMixer
from onibi.platform.spec import TEXT_HASH, ArraySpec, ReplaySpec
from onibi.platform.stacked_policy import StackedPolicyFactory

if TYPE_CHECKING:
    from onibi.actors.filming.camera import FilmedEnvironment

_FIRST_INCARNATION = 1
_FILMED_STEPS = 8
ROLE_ROLLOUT, ROLE_EVALUATION, ROLE_LEARNER, ROLE_SAMPLER, ROLE_ANNOTATION, ROLE_BONUSES = range(6)


def role_seed(settings: RunSettings, role: int, *numbers: int) -> int:
    """A seed for one role's generator, different for every (role, numbers), the same in every run of this seed."""
    return int(np.random.SeedSequence([settings.seed, role, *numbers]).generate_state(1, np.uint64)[0] >> 1)


@dataclass(frozen=True, kw_only=True)
class NoLearner(Settings):
    """Stands in a plan for the learner's settings, where nobody learns."""

    kind: Literal["no learner here"] = "no learner here"


@dataclass(frozen=True)
class RunPlan:
    """Settings and the row layout that follows from the environment, and makers of every role's plain part."""

    settings: RunSettings
    spec: ReplaySpec
    key_version: str  # of the captioner
    needs: ReplayNeeds  # what the learner reads from replay
    policy_factory: PolicyFactory
    session: int = 0  # how often the run was resumed: each session draws its own random numbers
    log_location: str | None = None  # of the replay log, as the shard's node sees it; None: no rows are logged
    annotation_table: str | None = None  # folder of the labels on disk; None: there are none
    spending: str | None = None  # folder in which annotators count what they spend; None: in memory
    faults: str | None = None  # folder for a batch that could not be learned from
    table_log: str | None = None  # folder in which it is told which reward table took effect when; None: nowhere
    features: Mapping[str, FeaturesFactory] = field(default_factory=dict)  # of bonuses whose encoder actors get
    steps_before: tuple[int, ...] = ()  # by shard: env steps of the run that its ring's rows do not tell; (): none
    shard: int = 0  # whose share of a run with several these settings are: see shard_plan.py

    def for_actors(self) -> RunPlan:
        """The plan without the learner's settings, whose class would load torch (200 MB, 1.3 s) in every process."""
        return replace(self, settings=replace(self.settings, learner=NoLearner()))

    def for_stores(self) -> RunPlan:
        """The plan for roles that do not act either: a policy's factory may need torch, too."""
        return replace(self.for_actors(), policy_factory=_no_policy, features={})

    @property
    def groups(self) -> int:
        """G: actors that the ring has lanes for at once."""
        return self.settings.replay.max_actors or self.settings.actors.count

    @property
    def lanes(self) -> int:
        """L: lanes of the ring, over all actors that it has room for."""
        return self.groups * self.settings.actors.rollout.envs_per_actor

    @property
    def stack(self) -> FrameStack | None:
        """Which leaves networks see as frame stacks."""
        return frame_stack(self.settings.frame_stack, self.spec)

    def make_rollout(self, actor: int, incarnation: int, next_sequence: int, ask: Ask | None = None) -> Rollout:
        """The rollout of the actor that has a group; environments and random numbers follow from (seed, group,
        incarnation). ``ask`` computes its forward passes; None: it does so itself.
        """
        envs = self.settings.actors.rollout.envs_per_actor
        before = self.shard * self.groups
        lanes = LaneRange(first=(before + actor) * envs, count=envs, total=self.lanes * self.settings.placement.shards)
        policy = self.policy_factory(lanes) if ask is None else remote_policy(self.policy_factory, lanes, ask)
        seed = role_seed(self.settings, ROLE_ROLLOUT, before + actor, incarnation, self.session)
        identity = RolloutIdentity(
            actor=actor,
            incarnation=incarnation,
            next_sequence=next_sequence,
            seed=seed,
            session=self.session,
            before=before,
        )
        # One that replaces another may begin with a player that has learnt to be silent.
        is_patient = incarnation > _FIRST_INCARNATION or self.session > 0
        return self._rollout(policy, self._make_env(envs), identity, patient=is_patient)

    def make_evaluation(self, weights: Weights | None, envs: int, seed: int) -> Rollout:
        """A rollout that plays greedily with ``weights``, or uniformly at random without; its seeds train nobody."""
        return self._playing(self._make_env(envs), weights, seed)

    def make_filmed_evaluation(self, weights: Weights, seed: int) -> tuple[Rollout, FilmedEnvironment]:
        """The same in one environment, which keeps its pictures; a few steps a fragment, as pictures are large.

        Raises: EnvironmentFault where it draws none.
        """
        from onibi.actors.filming.camera import make_filmed_env

        actors = self.settings.actors
        rollout = replace(actors.rollout, fragment_steps=_FILMED_STEPS, fragment_steps_max=_FILMED_STEPS)
        filmed = replace(self, settings=replace(self.settings, actors=replace(actors, rollout=rollout)))
        camera = make_filmed_env(self.settings.environment, raw_keys(self.settings))
        return filmed._playing(camera, weights, seed), camera  # noqa: SLF001 - its own kind

    def _playing(self, env: VectorEnv[Any, Any, Any], weights: Weights | None, seed: int) -> Rollout:
        with _closed_where_raised(env):
            policy = self.policy_factory(None)
            if weights is not None:
                policy.load(weights)
                if self.settings.evaluation.epsilon > 0:
                    policy = MixedWithRandom(policy, self.settings.evaluation.epsilon, self.spec)
        games = role_seed(self.settings, ROLE_EVALUATION, seed)
        identity = RolloutIdentity(actor=0, incarnation=0, next_sequence=0, seed=games)
        return self._rollout(policy, env, identity, weights, patient=True)

    def make_learner(self) -> Learner:
        """The learner, untrained; deterministic under the run's seed.

        Raises: ConfigError where its settings do not fit the run, or a GPU is asked for that is not there.
        """
        import torch

        gpus = self.settings.placement.learner_gpus
        if gpus > 0 and not torch.cuda.is_available():
            raise ConfigError(
                f"placement.learner_gpus is {gpus}, but torch finds no GPU where the learner runs. Set it to 0 to "
                "learn on the CPU."
            )
        return self._make_learner(self.settings.learner, "cuda" if gpus > 0 else "cpu")

    def make_cpu_learner(self) -> Learner:
        """The learner on the CPU, without what only a GPU can do: to play with, or to see whether settings fit.

        Raises: ConfigError, SpecError.
        """
        learner: Any = self.settings.learner
        if self.settings.placement.learner_gpus > 0 and hasattr(learner, "acceleration"):
            eager = replace(learner.acceleration, compile="none", precision="fp32")
            learner = replace(learner, acceleration=eager)
        return self._make_learner(learner, "cpu")

    def _make_learner(self, chosen: Settings, device: str) -> Learner:
        import torch

        from onibi.clusters.value_support import bounds_of_values

        settings = self.settings
        torch.manual_seed(settings.seed)  # a user's network may draw from the global generator (dropout)
        owner = load_class(LEARNERS, chosen.kind)  # type: ignore[attr-defined]
        learner: Learner = owner(
            chosen,
            _learners_spec(settings, self.spec),
            value_bounds=bounds_of_values(settings),
            seed=role_seed(settings, ROLE_LEARNER),
            device=device,
        )
        return learner

    def make_mixer(self) -> RewardMixer:
        """The reward mixer."""
        return RewardMixer(self.settings.rewards)

    @property
    def annotator_settings(self) -> dict[str, Settings]:
        """Settings of all annotators by name, the first one's being its kind; none without captions or workers."""
        settings = self.settings
        if settings.captioner.kind == "none" or settings.annotation.workers == 0:  # type: ignore[attr-defined]
            return {}
        return {settings.annotator.kind: settings.annotator, **settings.annotators}  # type: ignore[attr-defined]

    def make_annotator(self, name: str, processes: int = 1) -> Annotator:
        """One of the annotators, to ask beside others of the same settings in so many ``processes`` in all.

        Raises: ConfigError where it cannot be made as its settings say.
        """
        settings = self.annotator_settings[name]
        annotator: Annotator = load_class(ANNOTATORS, settings.kind)(settings)  # type: ignore[attr-defined]
        keep_spending = getattr(annotator, "keep_spending", None)
        if self.spending is not None and keep_spending is not None:
            keep_spending(Path(self.spending) / f"{name}.json")
        share_limits = getattr(annotator, "share_limits", None)
        if share_limits is not None:
            share_limits(processes)
        return annotator

    def make_annotators(self) -> dict[str, Annotator]:
        """All annotators by name."""
        return {name: self.make_annotator(name) for name in self.annotator_settings}

    def judges(self) -> dict[str, Judge]:
        """Whose labels each annotator's labels are, by its name."""
        return {name: judge_of(annotator) for name, annotator in self.make_annotators().items()}

    def keeps_labels(self, annotator: Annotator) -> bool:
        """Whether an annotator's labels go to the annotation table; with ``auto`` only those that cost something."""
        return self.settings.annotation.table not in ("auto", "none") or not annotator.is_free

    def keeping_judges(self) -> list[Judge]:
        """Whose labels go there."""
        return [judge_of(annotator) for annotator in self.make_annotators().values() if self.keeps_labels(annotator)]

    def with_annotation_table(self, runs_folder: Path) -> RunPlan:
        """The plan with the folder that ``annotation.table`` stands for; ``auto`` is RUNS_FOLDER/annotations."""
        chosen = self.settings.annotation.table
        if chosen == "none" or not self.keeping_judges():
            return self
        folder = runs_folder / "annotations" if chosen == "auto" else Path(chosen).expanduser()
        return replace(self, annotation_table=str(folder.absolute()))

    def _make_env(self, envs: int) -> VectorEnv[Any, Any, Any]:
        return make_vector_env(self.settings.environment, envs, raw_keys(self.settings))

    def _rollout(
        self,
        policy: Any,
        env: VectorEnv[Any, Any, Any],
        identity: RolloutIdentity,
        weights: Weights | None = None,
        *,
        patient: bool,
    ) -> Rollout:
        settings = self.settings
        with _closed_where_raised(env):
            view = _make_view(settings, env.single_observation_space)
            captioner = _make_captioner(settings, patient=patient)
            bonuses = RowBonuses(settings.rewards.bonuses, self.spec, env.num_envs, self.features)
            if weights is not None:
                bonuses.load(weights.bonuses)
            rollout = settings.actors.rollout
            env_id = settings.environment.id
            return Rollout(env, view, captioner, policy, self.spec, rollout, identity, env_id, bonuses=bonuses)


@contextmanager
def _closed_where_raised(env: VectorEnv[Any, Any, Any]) -> Iterator[None]:
    """A first reset that raises is tried again, in evaluations for the whole run: no try may leave its processes."""
    try:
        yield
    except BaseException:
        with suppress(Exception):  # the first error is the one to tell
            env.close()
        raise


def _no_policy(lanes: LaneRange | None) -> Policy:
    raise AssertionError(f"a plan for stores acts for nobody, not for {lanes}")


def plan_run(settings: RunSettings) -> RunPlan:
    """Make one environment, look at its spaces, and check that everything fits together.

    Raises:
        ConfigError: the environment cannot be made, has no fixed-width observation or actions that the learner can
            choose among, or lacks the captions that the run asks for.
    """
    try:
        return _planned(judges_chosen(settings))
    except (EnvironmentFault, SpecError) as error:  # nothing runs yet: a setting is wrong, or does not fit the others
        raise ConfigError(str(error)) from error


def _planned(settings: RunSettings) -> RunPlan:
    env = make_vector_env(settings.environment, 1, raw_keys(settings))
    try:
        view = _make_view(settings, env.single_observation_space)
        captioner = _make_captioner(settings)
        space = env.single_action_space
        fitting = action_fitting(space, settings.actors.rollout.action_fit, settings.environment.id)
        _check_captions(settings, captioner, env)
    finally:
        env.close()
    owner = load_class(LEARNERS, settings.learner.kind)  # type: ignore[attr-defined]
    if fitting is not None and not getattr(owner, "continuous_actions", False):
        raise ConfigError(
            f"{settings.environment.id}: its actions are continuous ({space}), but learner.kind="
            f"{settings.learner.kind} values Discrete actions from 0. Set learner.kind to appo or impala, or "  # type: ignore[attr-defined]
            "choose an environment with Discrete actions."
        )
    needs: ReplayNeeds = owner.needs(settings.learner)
    observation = list(view.specs)
    has_captions = settings.captioner.kind != "none"  # type: ignore[attr-defined]
    if settings.rewards.intrinsic is not None and not has_captions:
        raise ConfigError(
            "rewards.intrinsic pays for captions, but captioner.kind is none. Choose a captioner (nethack, info), or "
            "set rewards.intrinsic to null."
        )
    if settings.actors.rollout.caption_counts and has_captions:
        width = captioner.keys_per_caption + BAG_BITS
        observation.append(ArraySpec(name="observation.caption_counts", dtype="float32", shape=(width,)))
    check_bonuses(settings, has_captions=has_captions)
    spec = ReplaySpec(
        observation=tuple(observation),
        actions=0 if fitting else int(space.n),  # type: ignore[attr-defined]
        keys_per_caption=max(1, captioner.keys_per_caption),
        action=ArraySpec(name="action", dtype="float32", shape=(fitting.dimensions,)) if fitting else None,
        action_low=fitting.policy_bounds[0] if fitting else (),
        action_high=fitting.policy_bounds[1] if fitting else (),
    )
    bonuses = settings.rewards.bonuses
    needs = needs_with_bonuses(needs, bonuses, spec)
    spec = replace(spec, extra=needs.extra, states=needs.states)
    policy_factory: PolicyFactory = owner.policy_factory(settings.learner, _learners_spec(settings, spec))
    stack = frame_stack(settings.frame_stack, spec)
    if stack is not None:
        policy_factory = StackedPolicyFactory(policy_factory, stack)
    features = bonus_features(bonuses, spec)
    return RunPlan(settings, spec, captioner.key_version, needs, policy_factory, features=features)


def _learners_spec(settings: RunSettings, spec: ReplaySpec) -> ReplaySpec:
    """The row layout as networks see it: with frame stacks; a hash of a text is no number, so only a network of the
    user's own reads it.

    Raises: SpecError where nothing is left to read.
    """
    stack = frame_stack(settings.frame_stack, spec)
    if stack is not None:
        spec = stack.seen(spec)
    if getattr(getattr(settings.learner, "network", None), "kind", None) == "custom":
        return spec
    readable = tuple(column for column in spec.observation if column.content != TEXT_HASH)
    if not readable:
        raise SpecError(
            f"{settings.environment.id}: its observation is Text alone, which is stored as hashes, and "
            "learner.network reads numbers. Set learner.network.kind to custom and path to an encoder that reads "
            "them, or let the environment give numbers as well."
        )
    return replace(spec, observation=readable)


def raw_keys(settings: RunSettings) -> tuple[str, ...]:
    """Raw NetHack keys to ask NLE for, no more than are read: fewer keys step faster."""
    if settings.view.kind != "nethack":  # type: ignore[attr-defined]
        return ()
    keys: tuple[str, ...] = ("chars", "colors", "blstats", "inv_oclasses", "message")
    if settings.view.inventory_items:  # type: ignore[attr-defined]
        keys = (*keys, "inv_glyphs")
    return (*keys, *(key for key in _make_captioner(settings).observation_keys if key not in keys))


def _make_view(settings: RunSettings, space: Any) -> View:
    view: View = load_class(VIEWS, settings.view.kind)(settings.view, space)  # type: ignore[attr-defined]
    return view


def _make_captioner(settings: RunSettings, *, patient: bool = False) -> Captioner:
    """The captioner; a patient one takes silence for a player's choice, not for a fault of the settings."""
    chosen: Any = settings.captioner
    if patient and hasattr(chosen, "give_up_calls"):
        chosen = replace(chosen, give_up_calls=None)
    captioner: Captioner = load_class(CAPTIONERS, chosen.kind)(chosen)
    return captioner


def _check_captions(settings: RunSettings, captioner: Captioner, env: Any) -> None:
    leaves = getattr(env.single_observation_space, "spaces", {})
    missing = sorted(set(captioner.observation_keys) - set(leaves if isinstance(leaves, Mapping) else {}))
    if missing:
        raise ConfigError(
            f"captioner.kind={settings.captioner.kind} reads {missing}, which the observation of "  # type: ignore[attr-defined]
            f"{settings.environment.id} does not have. Set captioner.kind to info or none (and rewards.intrinsic to "
            "null with none), or use an environment that has them: NetHack and MiniHack for nethack, MiniGrid and "
            "BabyAI for minigrid."
        )
