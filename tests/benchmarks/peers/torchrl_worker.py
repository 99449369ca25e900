"""TorchRL: ``TensorDictReplayBuffer`` on ``LazyTensorStorage``, batched ``extend``."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

import torch
from peers.rows import (
    FRAGMENT_ROWS,
    LANES,
    WIDTHS,
    Width,
    fill_steps,
    newest_observation,
    transitions,
    wrong_transitions,
)
from peers.worker import BATCH, Case, Contender
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

PREFETCH = 2


def tensordict(width: Width, number) -> TensorDict:
    """[LANES × T] steps as TorchRL's collectors lay them out, without the columns that no DQN loss reads."""
    columns = {
        name: torch.from_numpy(column.reshape(-1, *column.shape[2:]))
        for name, column in transitions(width, number).items()
    }
    terminated = columns["terminated"].bool()[:, None]
    after = {"observation": columns["next_observation"], "reward": columns["reward"][:, None]}
    after |= {"terminated": terminated, "done": terminated.clone()}
    steps = {"observation": columns["observation"], "action": columns["action"], "next": after}
    return TensorDict(steps, [number.size])


def wrong_in(width: Width, newest: int, batch: TensorDict) -> list[str]:
    """See ``wrong_transitions``."""
    after = batch["next"]
    columns = batch["observation"], after["observation"], batch["action"], after["reward"], after["terminated"]
    return wrong_transitions(width, 1, newest, *(column.numpy() for column in columns))


def prepare(rows: int, folder: Path) -> Contender:
    """Fill the buffers and check one batch of each."""
    logging.disable(logging.INFO)
    cases, wrong = {}, {}
    for width in WIDTHS.values():
        storage = LazyTensorStorage(rows)
        plain = TensorDictReplayBuffer(storage=storage, batch_size=BATCH)
        numbers = fill_steps(rows)
        newest = newest_observation(numbers)
        for number in numbers:
            plain.extend(tensordict(width, number))
        prefetching = TensorDictReplayBuffer(storage=storage, batch_size=BATCH, prefetch=PREFETCH)
        sources = itertools.cycle([tensordict(width, number) for number in fill_steps(rows)[:4]])

        def draw(buffer) -> int:
            buffer.sample()
            return BATCH

        def insert(buffer=plain, sources=sources) -> int:
            buffer.extend(next(sources))
            return LANES * FRAGMENT_ROWS

        one, two = (lambda: torch.set_num_threads(1)), (lambda: torch.set_num_threads(2))
        cases |= {
            f"{width.name} uniform": Case(lambda buffer=plain: draw(buffer), before=one),
            f"{width.name} uniform threads": Case(lambda buffer=plain: draw(buffer), before=two),
            f"{width.name} uniform prefetch": Case(
                lambda buffer=prefetching: draw(buffer), before=one, warm_calls=2 + PREFETCH, settle_seconds=0.05
            ),
            f"{width.name} insert": Case(insert, before=one),
        }
        wrong[f"{width.name} uniform"] = wrong_in(width, newest, plain.sample())
        wrong[f"{width.name} uniform prefetch"] = wrong_in(width, newest, prefetching.sample())
    return Contender(cases=cases, wrong=wrong)
