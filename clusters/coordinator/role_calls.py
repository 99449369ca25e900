"""How the coordinator starts and asks roles, and what it says when one does not answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray

from onibi.platform.errors import OnibiError, StoreLostError

TO_RESUME = "What was learnt is in the last checkpoint: `onibi resume` goes on from it."
_NOTES_SECONDS = 2.0
PROCESS_DIED = (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError)
"""What Ray raises where a role's process is gone; another one may do its work."""


def start_actor(shell: Any, options: Mapping[str, Any], *arguments: Any) -> Any:
    """A new Ray actor of the class ``shell``; its handle."""
    return shell.options(**options).remote(*arguments)


def first_line(error: BaseException) -> str:
    """What an error says, without the process that Ray tells of behind it; its name where it says nothing."""
    return next(iter(str(error).splitlines()), repr(error))


def first_answer(reference: Any, who: str) -> Any:
    """An answer of a role that the run cannot go on without.

    Raises: StoreLostError where its process died; the OnibiError that it raised itself.
    """
    try:
        return ray.get(reference)
    except PROCESS_DIED as error:
        raise StoreLostError(f"{who} died: {first_line(error).rstrip('.')}. {TO_RESUME}") from error
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, OnibiError):
            raise error.cause from error
        raise


def last_notes(hub: Any) -> list[str]:
    """What roles warned of since the hub was asked last; nothing where it does not answer soon."""
    told = hub.notes.remote()
    if not ray.wait([told], timeout=_NOTES_SECONDS)[0]:
        return []
    try:
        notes: list[str] = ray.get(told)
    except ray.exceptions.RayError:
        return []
    return notes


def take_due(again_at: dict[str, float]) -> list[str]:
    """Take out the roles whose time (of ``time.monotonic``) to be set to work again has come."""
    now = time.monotonic()
    due = [role for role, at in again_at.items() if at <= now]
    for role in due:
        del again_at[role]
    return due


def is_restarting(cause: BaseException) -> bool:
    """Whether a call came while Ray starts a dead role's process again: nothing new has died, it may be made again."""
    return isinstance(cause, ray.exceptions.ActorUnavailableError) and "is restarting" in str(cause)


@contextmanager
def deaths_told(stores: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
    """Calls of roles that a run cannot go on without; ``stores`` as in ``check_stores_live``, asked for when one fails.

    Raises: StoreLostError where one of them died; anything else as it is.
    """
    try:
        yield
    except PROCESS_DIED as error:
        check_stores_live(error, stores())
        raise


def check_stores_live(cause: BaseException, stores: Mapping[str, Any]) -> None:
    """Tell the death of a role that is never replaced from that of the role which called it.

    Args:
        cause: what a role's call raised.
        stores: actor handles by what they are called in a message.
    Raises: StoreLostError where ``cause`` is the death of one of them.
    """
    dead = getattr(cause, "actor_id", None)
    for name, handle in stores.items():
        if dead == handle._actor_id.hex():  # noqa: SLF001 (Ray has no public name for it)
            raise StoreLostError(f"{name} died. {TO_RESUME}") from cause
