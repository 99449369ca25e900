"""What a session that goes on from a checkpoint writes down before its first step. Both run loops use it."""

from __future__ import annotations

from onibi.clusters.run_journal import RunJournal
from onibi.clusters.run_state import RunState, renewed_parts
from onibi.platform.checkpoint import Checkpoint
from onibi.platform.errors import CheckpointError


def save_begun(journal: RunJournal, checkpoint: Checkpoint, state: RunState) -> None:
    """Save the checkpoint that a session resumed from with the counters that it goes on with.

    Where the disk refuses, a session goes on all the same with a ring that had counted rows before: the checkpoint of
    before fits that ring. A ring that begins to count must not: after a kill its rows would be added to what was
    counted before an older ring, and env steps would fall back.

    Args:
        journal: of the run.
        checkpoint: that the session resumed from.
        state: ``RunState.resumed``.
    Raises: CheckpointError where it is not saved and the ring has counted nothing yet.
    """
    if journal.save(checkpoint.step, renewed_parts(checkpoint, state)) or state.env_steps > state.inserted_base:
        return
    raise CheckpointError(
        f"{checkpoint.path.parent}: the disk refuses to keep that session {state.session} begins, with a new replay "
        "ring (see the error before). Without it env steps would be counted wrongly after a kill, so nothing was begun "
        "and nothing is lost. Free some space, and `onibi resume` goes on."
    )
