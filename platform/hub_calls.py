"""What a failed call of the hub means: whether the hub raised it, or could not be reached."""

from __future__ import annotations


def raised_there(error: Exception) -> Exception | None:
    """What the called method raised; None where the call did not come through, as it may when it is made again.

    Args:
        error: Ray's.
    """
    import ray  # here, as the core imports without it

    if isinstance(error, ray.exceptions.RayTaskError) and not isinstance(error.cause, ray.exceptions.RayError):
        cause: Exception = error.cause
        return cause
    return None
