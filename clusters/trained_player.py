"""What a run's checkpoint plays with: its weights, and what captions pay it."""

from __future__ import annotations

from dataclasses import dataclass

from onibi.actors.evaluation import FrozenRewards
from onibi.clusters.reward_model_plan import reward_learner_of
from onibi.clusters.run_plan import RunPlan
from onibi.clusters.run_state import make_desk, restore_learner, state_of
from onibi.platform.checkpoint import Checkpoint, list_checkpoints, load_checkpoint
from onibi.platform.errors import ConfigError
from onibi.platform.policy import Weights, weights_version
from onibi.platform.run_folder import RunFolder


@dataclass(frozen=True)
class TrainedPlayer:
    """The weights of the checkpoint of ``env_steps``; ``rewards`` are the run's last ones, None without captions."""

    env_steps: int
    weights: Weights
    rewards: FrozenRewards | None


def check_checkpoint_name(folder: RunFolder, which: str) -> None:
    """Raises: ConfigError where ``which`` is neither best, nor last, nor the env steps of a checkpoint of the run."""
    if which not in ("best", "last") and not which.isdigit():
        raise ConfigError(f"--checkpoint is {which!r}; allowed: best, last, or a checkpoint's number of env steps.")
    steps = sorted({entry.step for entry in list_checkpoints(folder.checkpoints)})
    if which.isdigit() and int(which) not in steps:
        raise ConfigError(
            f"--checkpoint {which}: {folder.name} has no checkpoint of that many env steps; there are "
            f"{', '.join(map(str, steps)) or 'none'}. Allowed: one of these, best or last."
        )


def trained_player(folder: RunFolder, plan: RunPlan, which: str) -> TrainedPlayer:
    """The player of the checkpoint ``which``: ``best``, ``last`` or a number of env steps. Raises: CheckpointError."""
    checkpoint = load_checkpoint(folder.checkpoints, int(which) if which.isdigit() else which)  # type: ignore[arg-type]
    learner = plan.make_cpu_learner()  # games take longer than a GPU could save, and this machine may have none
    restore_learner(learner, checkpoint)
    weights = learner.weights(weights_version(state_of(checkpoint).session, learner.updates))
    # All players are paid by one table, and that is the last one of the run: later labels would favour none, but hide
    # less.
    newest = load_checkpoint(folder.checkpoints, "last")
    return TrainedPlayer(checkpoint.step, weights, _frozen_rewards(plan, newest))


def _frozen_rewards(plan: RunPlan, checkpoint: Checkpoint) -> FrozenRewards | None:
    """What captions paid when the checkpoint was saved."""
    intrinsic = plan.settings.rewards.intrinsic
    if intrinsic is None:
        return None
    desk = make_desk(plan, clock=lambda: 0.0)
    desk.restore(dict(checkpoint.tables))
    desk.advance(state_of(checkpoint).env_steps)
    reward_learner_of(plan, desk, checkpoint)
    table = desk.table(newer_than=-1)
    assert table is not None, "a desk's first table is version 1"
    return FrozenRewards(desk.captions, table, intrinsic.count_power)
