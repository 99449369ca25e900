"""A run under Ray whose judge is a language model behind a hostile server: real processes, real HTTP."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from onibi.platform.annotation.labels import LabelValue
from onibi.platform.annotation.table import AnnotationTable

NICENESS = 3


def hostile(server, held):
    """Holds every request until ``held`` is set; from then on one in eight is answered as it should be."""
    again = b'{"error": {"message": "later"}}'
    odd = (
        lambda call: call.reply(again, status=429, Retry_After="0"),
        lambda call: call.reply(again, status=500),
        server.drop,
        lambda call: call.reply(b'{"choices": [{"message"'),
        lambda call: call.reply(server.completion("It may well be helpful, who knows?")),
        lambda call: call.reply(server.completion('{"7": "helpful", "8": "helpful"}')),
        lambda call: call.reply(server.completion('{"1": "helpful"}' + " " * 10_000_000)),
    )

    def behave(call):
        while not held.wait(0.1):
            if server.ending.is_set():
                return
        (server.polite, *odd)[call.number % 8](call)

    return behave


def settings(url):
    return {
        "environment": {
            "id": "onibi.actors.environments.listening_corridor:make",
            "vectorization": "native",
            "max_episode_steps": 120,
        },
        "annotator": {
            "kind": "openai",
            "base_url": url,
            "model": "m",
            "prompt": "general",
            "server": {"timeout_seconds": 20.0, "retries": 1, "first_wait_seconds": 0.01, "concurrency": 4},
        },
        "annotation__niceness": NICENESS,
        "annotation__batch_keys": 8,
        "actors__count": 1,
        "actors__rollout": {"envs_per_actor": 8, "fragment_steps": 32, "fragment_steps_max": 32},
        "replay__capacity_rows": 8_000,
        "replay__limiter": {"samples_per_insert": 0.1, "minimum_rows": 500, "tolerance_rows": 1_000},
        "replay__log": {"enabled": False},
        "placement": {"rollout_cpus": 0.2, "learner_cpus": 0.2},
        "budget__max_env_steps": None,
        "budget__max_seconds": 600,
    }


def niceness_of(workshop, process, name):
    """The highest among the threads of the run's processes of one kind."""
    tasks = [task for pid in workshop.ray_pids(process, name) for task in Path(f"/proc/{pid}/task").iterdir()]
    return max(os.getpriority(os.PRIO_PROCESS, int(task.name)) for task in tasks)


@pytest.mark.slow  # test_faulty_annotators.py is its short form
def test_rollouts_go_on_while_no_request_is_answered_and_no_wrong_label_comes_of_what_is(workshop, language_server):
    held = threading.Event()
    language_server.behave = hostile(language_server, held)
    process = workshop.start(serial=False, **settings(language_server.url))
    last = lambda: (workshop.history() or [{}])[-1]  # noqa: E731
    workshop.wait_for(lambda: last().get("annotation/asked_keys", 0) > 0, seconds=120, process=process)
    waiting_since = last()["actors/env_steps"]
    workshop.wait_for(lambda: last()["actors/env_steps"] > waiting_since + 5_000, seconds=120, process=process)
    assert language_server.in_flight >= 1
    assert last()["annotation/keys_labelled"] == 0
    judging, playing = (niceness_of(workshop, process, name) for name in (b"AnnotatorActor", b"RolloutActor"))
    assert judging == min(playing + NICENESS, 19)
    held.set()
    workshop.wait_for(lambda: last()["annotation/keys_labelled"] >= 8, seconds=120, process=process)
    kinds = ("rate_limited", "server_error", "connection", "malformed", "too_long")
    counted = lambda: [last().get(f"annotator/openai/failures_{kind}", 0) for kind in kinds]  # noqa: E731
    workshop.wait_for(lambda: all(counted()), seconds=120, process=process)
    assert last()["annotation/invalid_replies"] > 0
    os.killpg(process.pid, signal.SIGINT)
    process.wait(timeout=90)
    labels = list(AnnotationTable(workshop.runs / "annotations").all_labels())
    valid = [label for label in labels if label.value is not LabelValue.INVALID]
    assert len(valid) >= 8 and len(valid) < len(labels)
    for label in valid:
        assert label.value.name.lower() == language_server.judge(label.key_text), label
