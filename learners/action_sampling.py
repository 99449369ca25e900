"""Sampling of actions in NumPy, with the log-probabilities of what was sampled. No torch: actors import this.

The numbers are those of ``action_distributions.py``; a test compares them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LOG_STD_BOUNDS = (-5.0, 2.0)  # as action_distributions.py
_LOG_TAU = math.log(2.0 * math.pi)

Chosen = tuple[NDArray[Any], NDArray[np.float32]]
"""Actions [E] int64 or [E, D] float32, and their log-probabilities [E]."""


def sample_categorical(logits: NDArray[np.float32], rng: np.random.Generator) -> Chosen:
    """Samples by the inverse distribution function: one uniform number for each row.

    Args:
        logits: [E, A] float32, −∞ where an action is not allowed; overwritten.
        rng: one call, whatever the logits are, so that a run's random numbers do not hang on its weights.
    Returns: actions [E] int64, log π [E] float32. A masked action is never among them.
    """
    logits -= logits.max(axis=1, keepdims=True)
    weights = np.exp(logits)
    cumulated = weights.cumsum(axis=1, dtype=np.float32)
    total = cumulated[:, -1]
    # The number is below 1 by 2^-24 at least, so the product stays below the total: the last action with any
    # probability is found at the latest.
    below = cumulated <= (rng.random(len(logits), np.float32) * total)[:, None]
    action = np.minimum(below.sum(axis=1), logits.shape[1] - 1)
    return action, logits[np.arange(len(logits)), action] - np.log(total)


def likeliest_categorical(logits: NDArray[np.float32]) -> Chosen:
    """The likeliest actions.

    Args:
        logits: [E, A] float32, −∞ where an action is not allowed; overwritten.
    Returns: as ``sample_categorical``.
    """
    logits -= logits.max(axis=1, keepdims=True)
    return logits.argmax(axis=1), -np.log(np.exp(logits).sum(axis=1))


def mask_logits(logits: NDArray[np.float32], mask: NDArray[Any]) -> None:
    """Put −∞ where an action is not allowed; a row that allows none is left as it is.

    Args:
        logits: [E, A] float32, written to.
        mask: [E, A], 0 where an action is not allowed.
    """
    refused = mask == 0
    refused &= ~refused.all(axis=1, keepdims=True)
    logits[refused] = -np.inf


def sample_gaussian(mean: NDArray[np.float32], log_std: NDArray[np.float32], rng: np.random.Generator) -> Chosen:
    """Samples of a Gaussian with independent dimensions.

    Args:
        mean: [E, D] float32.
        log_std: [D] float32, log σ before its bounds.
        rng: one call.
    Returns: actions [E, D] float32, log π [E] float32.
    """
    held = np.clip(log_std, *_LOG_STD_BOUNDS)
    noise = rng.standard_normal(mean.shape, np.float32)
    action = mean + np.exp(held) * noise
    constant = np.float32(held.sum() + 0.5 * _LOG_TAU * mean.shape[1])
    return action, np.float32(-0.5) * np.einsum("ed,ed->e", noise, noise) - constant


def likeliest_gaussian(mean: NDArray[np.float32], log_std: NDArray[np.float32]) -> Chosen:
    """The means, and the log-density there; arguments and results as ``sample_gaussian``."""
    held = np.clip(log_std, *_LOG_STD_BOUNDS)
    constant = np.float32(-held.sum() - 0.5 * _LOG_TAU * mean.shape[1])
    return mean.copy(), np.full(len(mean), constant, np.float32)
