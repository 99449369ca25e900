"""Central inference as a Ray actor, and how rollout actors ask it (Ray shell, computes nothing)."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from typing import Any

import ray

from onibi.actors.joined_inference import InferenceSettings, JoinedInference
from onibi.platform.errors import OnibiError
from onibi.platform.forward_policy import Forward, Rows
from onibi.platform.hub_log import tell_warnings
from onibi.platform.policy import Weights
from onibi.platform.process_usage import ProcessUsage, process_usage
from onibi.platform.remote_policy import Answer

_NEWS_WAIT_SECONDS = 30.0
_RETRY_SECONDS = 0.2

INFERENCE_OPTIONS: dict[str, Any] = {"max_restarts": -1, "max_task_retries": 0, "max_concurrency": 10_000}


@ray.remote
class InferenceActor:
    """Keeps the newest weights and answers requests for forward passes.

    Args:
        make_forward: device → the network without weights.
        settings: see above.
    """

    def __init__(self, make_forward: Callable[[str], Forward], settings: InferenceSettings) -> None:
        forward = make_forward("cuda" if settings.gpus > 0 else "cpu")
        if "torch" in sys.modules:  # small networks act in NumPy
            sys.modules["torch"].set_num_threads(settings.threads)
        self._inference = JoinedInference(forward, settings)
        self._may_act = asyncio.Event()  # where something was learnt already, by no other weights
        self._stopping = False

    async def run(self, hub: Any) -> None:
        """Take each newer version of the weights from ``hub``, until :meth:`stop`."""
        tell_warnings("inference", hub.note.remote)
        if await hub.is_untrained.remote():
            self._may_act.set()
        while not self._stopping:
            references = await hub.weights_after.remote(int(self._inference.version), _NEWS_WAIT_SECONDS)
            if not references:
                continue
            try:
                weights: Weights = await references[0]
            except ray.exceptions.RayError:
                # Their owner died before they were fetched. Those in use will do until the next learner publishes; till
                # then the hub answers at once with the same ones.
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            await self._inference.load(weights)
            self._may_act.set()

    async def infer(self, inputs: Rows) -> Answer:
        """One caller's rows, computed together with those of others."""
        await self._may_act.wait()
        return await self._inference(inputs)

    async def figures(self) -> dict[str, float]:
        """Metrics: forward passes, and the callers and rows in one of them on average."""
        figures = self._inference.figures
        passes = max(1, figures.passes)
        return {
            "inference/passes": float(figures.passes),
            "inference/requests_per_pass": figures.requests / passes,
            "inference/rows_per_pass": figures.rows / passes,
            "inference/pass_seconds": figures.seconds / passes,
        }

    async def usage(self) -> ProcessUsage:
        """Processor time."""
        return process_usage()

    async def stop(self) -> None:
        """End ``run`` when the hub answers next."""
        self._stopping = True
        self._may_act.set()  # whoever waits is to be stopped, too


class StoppedAskingError(OnibiError):
    """The caller was told to stop while no inference process answered."""


class InferenceCalls:
    """Asks an ``InferenceActor``; while its process is being replaced, waits for the next one.

    Args:
        actor: its handle.
        should_stop: whether to give up waiting.
    """

    def __init__(self, actor: Any, should_stop: Callable[[], bool]) -> None:
        self._actor, self._should_stop = actor, should_stop

    def __call__(self, inputs: Rows) -> Answer:
        """See ``remote_policy.Ask``. Raises: what the forward pass raised; StoppedAskingError."""
        while True:
            try:
                answer: Answer = ray.get(self._actor.infer.remote(dict(inputs)))
            except ray.exceptions.RayActorError as error:
                if self._should_stop():
                    raise StoppedAskingError from error
                time.sleep(_RETRY_SECONDS)
                continue
            return answer
