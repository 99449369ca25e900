"""An annotator as a Ray actor: takes requests from the hub, brings labels back (Ray shell)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray

from onibi.platform.annotator import Annotator
from onibi.platform.process_usage import ProcessUsage, process_usage

_WAIT_SECONDS = 2.0


ANNOTATOR_OPTIONS: dict[str, Any] = {"max_restarts": -1, "max_task_retries": 0, "max_concurrency": 2}


@ray.remote(num_cpus=0.05)
class AnnotatorActor:
    """Annotates until told to stop; slow or down, it stops nobody else.

    Args:
        make_annotator: makes the annotator in this process.
        batch_keys: most keys asked at once.
    """

    def __init__(self, make_annotator: Callable[[], Annotator | None], batch_keys: int) -> None:
        self._annotator = make_annotator()
        self._batch_keys = batch_keys
        self._stopping = False

    def run(self, hub: Any) -> None:
        """Take from ``hub``, judge, put, until :meth:`stop`.

        Raises:
            OnibiError: the annotator cannot judge at all.
        """
        if self._annotator is None:
            return
        while not self._stopping:
            requests = ray.get(hub.take.remote(self._batch_keys, _WAIT_SECONDS))
            if requests:
                hub.put.remote(list(self._annotator.annotate(requests, self._annotator.goal)))

    def usage(self) -> ProcessUsage:
        """Processor time."""
        return process_usage()

    def stop(self) -> None:
        """End ``run`` after the batch at hand."""
        self._stopping = True
