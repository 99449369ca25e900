"""Forward passes for many callers: what waits is computed together. Runs without Ray (tests); one event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from onibi.platform.config import Settings
from onibi.platform.forward_policy import Forward, Rows
from onibi.platform.policy import NO_WEIGHTS, Weights, WeightsVersion
from onibi.platform.remote_policy import Answer


@dataclass(frozen=True, kw_only=True)
class InferenceSettings(Settings):
    """One process that computes the forward passes of all rollout actors, so that a large network runs on one GPU."""

    cpus: float = 0.5  # asked of Ray
    gpus: float = 0.0  # above 0 the network runs on CUDA
    threads: int = 1  # of torch, on the CPU
    max_rows: int = 4_096  # environments in one forward pass
    wait_seconds: float = 0.0  # for more requests before each pass; they gather while one runs, anyway

    def __post_init__(self) -> None:
        if self.cpus < 0 or self.gpus < 0 or self.threads < 1 or self.max_rows < 1:
            raise ValueError(
                f"cpus {self.cpus} and gpus {self.gpus} must be 0 or more, threads {self.threads} and max_rows "
                f"{self.max_rows} 1 or more"
            )
        if not 0 <= self.wait_seconds <= 1:
            raise ValueError(f"wait_seconds is {self.wait_seconds}; allowed: 0 to 1")


@dataclass
class InferenceFigures:
    """What was computed so far."""

    passes: int = 0
    requests: int = 0
    rows: int = 0
    seconds: float = 0.0  # in forward passes


class JoinedInference:
    """While a forward pass runs, requests gather; the next pass takes all of them, up to ``max_rows``.

    So nobody waits on purpose: a lone caller is answered at once, and the more callers there are, the larger the
    batches. ``wait_seconds`` above 0 lets requests gather for so long first, which pays where a pass of many rows takes
    no longer than one of few (a GPU).

    Args:
        forward: without weights yet.
        settings: ``max_rows`` and ``wait_seconds`` are read; a request of more rows makes a pass alone.
    """

    def __init__(self, forward: Forward, settings: InferenceSettings) -> None:
        self._forward, self._max_rows, self._wait_seconds = forward, settings.max_rows, settings.wait_seconds
        self._version: WeightsVersion = NO_WEIGHTS
        self._waiting: deque[tuple[Rows, int, asyncio.Future[Answer]]] = deque()
        self._serving: asyncio.Task[None] | None = None
        # One thread: weights change between passes, never in one.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="onibi-inference")
        self.figures = InferenceFigures()

    @property
    def version(self) -> WeightsVersion:
        """Of the weights in use."""
        return self._version

    async def load(self, weights: Weights) -> None:
        """Take newer weights, after the pass at hand; older ones are left out."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._load, weights)

    async def __call__(self, inputs: Rows) -> Answer:
        """Outputs for inputs [N, ...].

        Raises: ValueError for inputs without rows; what the forward pass raises, for all whose rows were in it.
        """
        rows = {len(each) for each in inputs.values()}
        if len(rows) != 1 or not min(rows):
            shapes = {name: each.shape for name, each in inputs.items()}
            raise ValueError(f"inputs of a forward pass need one and the same number of rows, above 0; got {shapes}")
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((inputs, rows.pop(), answer))
        if self._serving is None:
            self._serving = asyncio.get_running_loop().create_task(self._serve())
        return await answer

    def close(self) -> None:
        """End the thread after the pass at hand."""
        self._thread.shutdown(wait=True)

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                if self._wait_seconds > 0:
                    await asyncio.sleep(self._wait_seconds)
                batch = self._next_batch()
                began = loop.time()
                try:
                    answers = await loop.run_in_executor(self._thread, self._compute, [each[0] for each in batch])
                except Exception as error:  # noqa: BLE001 - told to those who asked
                    for _, _, waiting in batch:
                        if not waiting.done():
                            waiting.set_exception(error)
                    continue
                self.figures.passes += 1
                self.figures.requests += len(batch)
                self.figures.rows += sum(rows for _, rows, _ in batch)
                self.figures.seconds += loop.time() - began
                for (_, _, waiting), answer in zip(batch, answers, strict=True):
                    if not waiting.done():  # an actor that died asks no more
                        waiting.set_result(answer)
        finally:
            self._serving = None

    def _next_batch(self) -> list[tuple[Rows, int, asyncio.Future[Answer]]]:
        """As many of the oldest requests as fit; those of the same inputs, as all of one run are."""
        batch = [self._waiting.popleft()]
        rows = batch[0][1]
        names = batch[0][0].keys()
        while self._waiting and rows + self._waiting[0][1] <= self._max_rows and self._waiting[0][0].keys() == names:
            batch.append(self._waiting.popleft())
            rows += batch[-1][1]
        return batch

    def _load(self, weights: Weights) -> None:
        if weights.version > self._version:
            self._forward.load(weights.arrays)
            self._version = weights.version

    def _compute(self, requests: list[Rows]) -> list[Answer]:
        if self._version == NO_WEIGHTS:
            return [Answer(NO_WEIGHTS, None)] * len(requests)
        if len(requests) == 1:
            return [Answer(self._version, self._forward(requests[0]))]
        joined = {name: np.concatenate([request[name] for request in requests]) for name in requests[0]}
        outputs = self._forward(joined)
        ends = np.cumsum([len(next(iter(request.values()))) for request in requests])
        # Copies: an answer is sent alone, and a caller may write to it.
        parts = {name: [part.copy() for part in np.split(rows, ends[:-1])] for name, rows in outputs.items()}
        return [Answer(self._version, {name: parts[name][number] for name in parts}) for number in range(len(requests))]
