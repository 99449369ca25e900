"""A rollout as a Ray actor: lease, weights, and fragments in flight (Ray shell, computes nothing)."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import ray

from onibi.actors.inference_actor import InferenceCalls, StoppedAskingError
from onibi.actors.rollout import Rollout
from onibi.platform.fragment_batch import to_batch
from onibi.platform.hub_log import tell_warnings
from onibi.platform.policy import Weights
from onibi.platform.process_usage import ProcessUsage, process_usage
from onibi.platform.remote_policy import Ask

_NEWS_WAIT_SECONDS = 30.0
_FIRST_LOOK_SECONDS = 0.01
_RETRY_SECONDS = 0.2


class WeightsPoll:
    """Keeps one long poll for newer weights open at the hub, and looks at it without waiting.

    Where something was learnt already (in a resumed run, or when a process is replaced) it waits for the first ones:
    else a trained run would collect rows of random actions.

    Args:
        hub: handle.
        should_stop: whether to give up waiting for them.
    """

    def __init__(self, hub: Any, should_stop: Callable[[], bool]) -> None:
        self._hub, self._should_stop = hub, should_stop
        self._answer: Any = None
        self._ask_at = 0.0  # where nothing is asked
        self._waits: bool = not ray.get(hub.is_untrained.remote())

    def __call__(self, version: int) -> Weights | None:
        """Weights newer than ``version`` if the hub has told of some."""
        newer = self._look(version)
        while newer is None and self._waits and not self._should_stop():
            time.sleep(_FIRST_LOOK_SECONDS)
            newer = self._look(version)
        self._waits = False
        return newer

    def _look(self, version: int) -> Weights | None:
        if self._answer is None:
            if time.monotonic() >= self._ask_at:
                self._ask(version)
            return None
        if not self._answer.done():
            return None
        try:
            references = self._answer.result()
            weights: Weights | None = ray.get(references[0]) if references else None
        except ray.exceptions.RayError:
            # Their owner died before they were fetched. The ones in use will do until the next learner publishes; till
            # then the hub answers at once with the same ones.
            self._answer, self._ask_at = None, time.monotonic() + _RETRY_SECONDS
            return None
        newer = weights if weights is not None and weights.version > version else None
        self._ask(int(newer.version) if newer is not None else version)
        return newer

    def _ask(self, version: int) -> None:
        # A future is told by Ray; to ask Ray itself (ray.wait) every few steps costs as much as a step of many lanes.
        self._answer = self._hub.weights_after.remote(version, _NEWS_WAIT_SECONDS).future()


ROLLOUT_OPTIONS: dict[str, Any] = {"max_restarts": -1, "max_task_retries": 0, "max_concurrency": 2}


def _no_weights(_version: int) -> None:
    """They go to the process that computes the forward passes."""


@ray.remote
class RolloutActor:
    """Collects until told to stop. Ray restarts the process when it dies; ``run`` then has to be called again.

    Needs two threads of Ray's: ``run`` keeps one, the others' calls come in on the second (``ROLLOUT_OPTIONS``).

    Args:
        make_rollout: (group in the ring, incarnation, next sequence, who computes forward passes) → Rollout.
        actor: index among those of its shard.
        envs: E.
        fragments_in_flight: sent and not yet answered; the actor waits at this number.
        role: what it is called where its warnings are told; None: by its index.
    """

    def __init__(
        self,
        make_rollout: Callable[[int, int, int, Ask | None], Rollout],
        actor: int,
        envs: int,
        fragments_in_flight: int,
        role: str | None = None,
    ) -> None:
        self._role = role or f"rollout {actor}"
        self._make_rollout, self._actor, self._envs = make_rollout, actor, envs
        self._in_flight = fragments_in_flight
        self._stopping = threading.Event()
        self._seconds = {"collect": 0.0, "send": 0.0, "wait": 0.0}
        self._making_since: float | None = None
        self._rollout: Rollout | None = None

    def run(self, shard: Any, hub: Any, inference: Any = None) -> None:
        """Register, which may have to wait until the ring has lanes for it; then collect and send until :meth:`stop`.

        Args:
            shard, hub: handles; not the constructor's, whose arguments must outlive every restart.
            inference: handle of the ``InferenceActor`` that computes forward passes; None: this process does.

        Raises:
            EnvironmentFault, ReplayError: what no restart would mend.
        """
        tell_warnings(self._role, hub.note.remote)
        lease = self._lease(shard)
        if lease is None:
            return
        ask = None if inference is None else InferenceCalls(inference, self._stopping.is_set)
        self._rollout, self._making_since = None, time.perf_counter()
        rollout = self._make_rollout(lease.actor, lease.incarnation, lease.next_sequence, ask)
        self._rollout, self._making_since = rollout, None
        poll = WeightsPoll(hub, self._stopping.is_set) if ask is None else _no_weights
        pending: deque[Any] = deque()
        try:
            while not self._stopping.is_set():
                began = time.perf_counter()
                fragment = rollout.collect(poll)
                collected = time.perf_counter()
                pending.append(shard.insert.remote(to_batch(fragment)))
                sent = time.perf_counter()
                while len(pending) >= self._in_flight:
                    self._wait_for(pending)
                    if self._stopping.is_set():
                        break
                self._seconds["collect"] += collected - began
                self._seconds["send"] += sent - collected
                self._seconds["wait"] += time.perf_counter() - sent
        except StoppedAskingError:
            return
        finally:
            rollout.close()

    def stop(self) -> None:
        """End ``run`` after the fragment at hand."""
        self._stopping.set()

    def usage(self) -> ProcessUsage:
        """Processor time, and where ``run`` has spent its time: collecting, sending, waiting for the shard."""
        return process_usage(dict(self._seconds))

    def stepping_seconds(self) -> float:
        """For how long the environments have been at one call, or in making; 0 where they are not."""
        since = self._making_since if self._rollout is None else self._rollout.stepping_since
        return 0.0 if since is None else time.perf_counter() - since

    def _lease(self, shard: Any) -> Any:
        """What the shard gives; None where ``stop`` was called before."""
        asked = shard.register.remote(self._actor, self._envs)
        while not self._stopping.is_set():
            if ray.wait([asked], timeout=0.5)[0]:
                return ray.get(asked)
        return None

    def _wait_for(self, pending: deque[Any]) -> None:
        """Until the oldest fragment is taken, or ``stop`` was called: a stopped learner never lets it in."""
        ready, _ = ray.wait([pending[0]], timeout=0.5)
        if ready:
            ray.get(pending.popleft())
