"""The sampler that a description of draws asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, assert_never

import numpy as np

from onibi.platform.errors import ReplayError
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.samplers.draws import Draws, SequenceDraws, WindowDraws
from onibi.platform.replay.samplers.fifo_sampler import FifoSampler
from onibi.platform.replay.samplers.frame_stack import FrameStack
from onibi.platform.replay.samplers.newest_first_sampler import NewestFirstSampler, NewestFirstSettings
from onibi.platform.replay.samplers.prioritized_sampler import PrioritizedSampler
from onibi.platform.replay.samplers.sequence_sampler import SequenceSampler
from onibi.platform.replay.samplers.sequences import Tail
from onibi.platform.replay.samplers.trajectory_sampler import TrajectorySettings, TrajectoryWeightedSampler
from onibi.platform.replay.samplers.uniform_sampler import UniformSampler, UniformSettings

Sampler: TypeAlias = (
    UniformSampler | NewestFirstSampler | TrajectoryWeightedSampler | PrioritizedSampler | SequenceSampler | FifoSampler
)


def make_sampler(
    reader: RingReader,
    draws: Draws,
    rng: np.random.Generator,
    *,
    lanes: Sequence[int] | None = None,
    columns: Sequence[str] | None = None,
    gather_threads: int = 1,
    stack: FrameStack | None = None,
) -> Sampler:
    """The sampler that ``draws`` describes.

    Args:
        reader: the ring.
        draws: what to draw.
        rng: all draws come from it; slabs ask for none.
        lanes: to draw from, None for all.
        columns: observation leaves and extra columns to gather, None for all.
        gather_threads: threads that copy rows of windows and sequences.
        stack: which leaves come as frame stacks; None for none.
    Raises: ReplayError where the ring does not allow it, or what is asked for excludes each other.
    """
    if isinstance(draws, WindowDraws):
        if draws.priorities is not None and not isinstance(draws.sampling, UniformSettings):
            raise ReplayError(
                f"{reader.path}: the draws have priorities and {draws.sampling}, and both choose where windows begin; "
                "leave one of them out"
            )
        common: dict[str, Any] = {
            "n_steps": draws.n_steps,
            "batch_size": draws.batch_size,
            "rng": rng,
            "lanes": lanes,
            "columns": columns,
            "gather_threads": gather_threads,
            "stack": stack,
            "each_row": draws.each_row,
        }
        if draws.priorities is not None:
            return PrioritizedSampler(
                reader,
                **common,
                exponent=draws.priorities.exponent,
                importance_exponent=draws.priorities.importance_exponent_at(0),
            )
        sampling = draws.sampling
        if isinstance(sampling, NewestFirstSettings):
            return NewestFirstSampler(reader, **common, half_life_rows=sampling.half_life_rows)
        if isinstance(sampling, TrajectorySettings):
            return TrajectoryWeightedSampler(
                reader,
                **common,
                temperature=sampling.temperature,
                by_length=sampling.by_length,
                uniform_at_first=True,
            )
        if isinstance(sampling, UniformSettings):
            return UniformSampler(reader, **common)
        assert_never(sampling)
    if isinstance(draws, SequenceDraws):
        priorities = draws.priorities
        return SequenceSampler(
            reader,
            length=draws.length,
            burn_in=draws.burn_in,
            period=draws.period,
            tail=Tail(draws.tail),
            batch_size=draws.batch_size,
            rng=rng,
            exponent=0.0 if priorities is None else priorities.exponent,
            importance_exponent=0.0 if priorities is None else priorities.importance_exponent_at(0),
            lanes=lanes,
            columns=columns,
            first_row_columns=draws.first_row_columns,
            gather_threads=gather_threads,
            stack=stack,
        )
    return FifoSampler(
        reader, rows=draws.rows, batch_lanes=draws.batch_lanes, lanes=lanes, columns=columns, stack=stack
    )
