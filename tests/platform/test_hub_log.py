"""Warnings of a process are handed on once each, whatever becomes of them there."""

from __future__ import annotations

import logging

import pytest

from onibi.platform.hub_log import HubLog, tell_warnings


@pytest.fixture(autouse=True)
def handlers_kept():
    logger = logging.getLogger("onibi")
    before = logger.handlers[:]
    yield
    logger.handlers[:] = before


def test_warnings_and_errors_are_handed_on_with_the_role_and_once():
    told = []
    tell_warnings("shard", told.append)
    log = logging.getLogger("onibi.platform.somewhere")
    log.info("nothing")
    for count in (1, 1, 2):
        log.warning("%d rows are lost", count)
    log.error("the disk is full")
    logging.getLogger("elsewhere").warning("not ours")
    assert told == [["shard: 1 rows are lost"], ["shard: 2 rows are lost"], ["shard: the disk is full"]]


def test_a_process_that_is_set_to_work_again_tells_nothing_twice():
    told = []
    tell_warnings("rollout 0", told.append)
    tell_warnings("rollout 0", told.append)
    logging.getLogger("onibi").warning("slow")
    assert told == [["rollout 0: slow"]]


def test_a_fault_that_words_itself_anew_each_time_does_not_flood_the_run():
    told = []
    tell_warnings("shard", told.append)
    for count in range(1_000):
        logging.getLogger("onibi").warning("row %d", count)
    assert len(told) == 100


def test_a_hub_that_is_gone_stops_nobody(capsys):
    def gone(_texts):
        raise ConnectionError("gone")

    HubLog("learner", gone).emit(logging.LogRecord("onibi", logging.WARNING, "", 0, "slow", None, None))
    assert "gone" in capsys.readouterr().err
