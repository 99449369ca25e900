"""The log of reward tables: what a run was paid by, and paying it again, bit for bit."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from onibi.clusters import resume, train
from onibi.platform.checkpoint import load_checkpoint
from onibi.platform.errors import ConfigError, TrainingError
from onibi.platform.rewards.table import LABELLED, NEVER_ASKED, UNLABELLED, RewardTable
from onibi.platform.rewards.table_log import UNKNOWN_STEPS, RecordedTables, TableLog, read_tables

LOG = "reward_tables/learner-000000.arrows"


def table(version, value, labelled, captions=3):
    keys = np.arange(captions, dtype=np.int32)[:, None] - 1
    return RewardTable(version, keys, np.array(value, np.float32), np.array(labelled, np.uint8))


TABLES = (
    (table(1, [0, 0], [UNLABELLED, NEVER_ASKED]), 0, 10),
    (table(3, [1, 0], [LABELLED, NEVER_ASKED]), 0, 20),
    (table(4, [1, 0, -0.0, 0.1], [LABELLED, NEVER_ASKED, LABELLED, LABELLED], captions=5), 7, 30),
    (table(5, [0, 0, 0.0, 0.1], [LABELLED, NEVER_ASKED, LABELLED, LABELLED], captions=5), 9, 40),
)


@pytest.fixture
def logged(tmp_path):
    written = TableLog(tmp_path / "reward_tables", 0)
    for each in TABLES:
        written.add(*each)
    written.close()
    return written.path


def test_a_log_gives_back_every_table_to_the_bit(logged):
    found = read_tables(logged)
    assert [(each.version, each.updates, each.env_steps) for each in found] == [
        (1, 0, 10), (3, 0, 20), (4, 7, 30), (5, 9, 40)
    ]  # fmt: skip
    for each, (told, _, _) in zip(found, TABLES, strict=True):
        assert each.value.tobytes() == told.value.tobytes()
        assert each.labelled.tobytes() == told.labelled.tobytes()


def test_a_log_holds_what_changed_alone(logged):
    rows = pa.ipc.open_stream(logged.read_bytes()).read_all().to_pylist()
    assert [row["changed_key"] for row in rows] == [[1], [0], [2, 3], [0, 2]]


@pytest.mark.parametrize("lost", [1, 40, 400])
def test_a_torn_tail_costs_the_tables_in_it_alone(logged, lost):
    content = logged.read_bytes()
    end = content.rindex(
        b"\xff\xff\xff\xff\x00\x00\x00\x00"
    )  # the stream's end mark, which a killed writer never wrote
    logged.write_bytes(content[: end - lost])
    found = read_tables(logged)
    assert 1 <= len(found) < len(TABLES)
    assert [each.version for each in found] == [1, 3, 4][: len(found)]


def test_tables_are_due_at_their_moment_and_only_in_the_run_that_met_the_same_captions(logged):
    recorded = RecordedTables(logged)
    keys = [told.caption_keys for told, _, _ in TABLES]
    assert recorded.take(0, 9, keys[0]) is None
    assert recorded.take(0, 10, keys[0]).version == 1
    assert recorded.take(0, 19, keys[0]) is None
    assert recorded.take(0, 20, keys[1]).value.tolist() == [1.0, 0.0]
    with pytest.raises(TrainingError, match="not the recorded one"):
        recorded.take(7, 30, keys[0])
    again = RecordedTables(logged)
    with pytest.raises(TrainingError, match="not the recorded one"):
        again.take(1, 10, keys[0])


def test_a_log_that_cannot_pay_a_run_is_refused_by_name(tmp_path, logged):
    with pytest.raises(ConfigError, match="cannot be read as a log"):
        RecordedTables(tmp_path / "none.arrows")
    other = TableLog(tmp_path / "other", 0)
    other.add(TABLES[0][0], 0, UNKNOWN_STEPS)
    other.close()
    with pytest.raises(ConfigError, match="a process of its own"):
        RecordedTables(other.path)
    assert other.path.name == "learner-000000.arrows"


def test_a_place_that_cannot_be_written_ends_the_log_and_nothing_else(tmp_path, caplog):
    written = TableLog(tmp_path / "no" / "such" / "run", 0)
    written.add(*TABLES[0])
    written.close()
    assert "logged no more" in caplog.text


@pytest.fixture
def played(tmp_path, corridor_settings):
    """A short serial run of the corridor whose labels come one by one: its folder and its parameters."""

    def play(name, **changes):
        told = {"annotation__batch_keys": 1, "annotator__lexicon": "corridor", "budget__max_env_steps": 360} | changes
        settings = corridor_settings(tmp_path, **told)
        settings["environment"]["kwargs"] = {"rooms": 5, "room_length": 2}
        result = train(settings, serial=True, name=name, runs_folder=tmp_path, display=False)
        return result.folder, load_checkpoint(result.folder / "checkpoints").tensors["learner"]

    return play


def same(one, other):
    return one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)


def with_one_label_changed(source, target):
    """The log at ``source`` with the first key that was ever paid worth nothing."""
    rows = pa.ipc.open_stream(source.read_bytes()).read_all()
    paid = next(
        key
        for row in rows.to_pylist()
        for key, value in zip(row["changed_key"], row["value"], strict=True)
        if value > 0
    )
    values = [
        [0.0 if key == paid else value for key, value in zip(row["changed_key"], row["value"], strict=True)]
        for row in rows.to_pylist()
    ]
    column = rows.schema.get_field_index("value")
    changed = rows.set_column(column, rows.schema.field(column), pa.array(values, pa.list_(pa.float32())))
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_stream(sink, rows.schema) as stream:
        for batch in changed.to_batches(max_chunksize=1):
            stream.write_batch(batch)


def test_a_recorded_log_replays_to_equal_parameters_and_one_label_changes_them(tmp_path, played):
    run, recorded = played("recorded")
    tables = read_tables(run / LOG)
    assert len(tables) >= 5  # labels came one by one
    assert sum(each.updates > 0 for each in tables) >= 2  # some of them in the midst of learning
    # Another judge, which would pay everything: nobody asks it.
    again, replayed = played("replayed", annotation__replay_tables=str(run / LOG), annotator__unmatched="helpful")
    assert same(recorded, replayed)
    assert (again / LOG).read_bytes() == (run / LOG).read_bytes()
    other = tmp_path / "other.arrows"
    with_one_label_changed(run / LOG, other)
    _, changed = played("changed", annotation__replay_tables=str(other))
    assert not same(recorded, changed)


def test_a_replay_is_of_one_run_is_serial_and_begins_at_the_beginning(tmp_path, played, corridor_settings):
    run, _ = played("recorded")
    with pytest.raises(TrainingError, match="not the recorded one"):
        played("other", seed=8, annotation__replay_tables=str(run / LOG))
    settings = corridor_settings(tmp_path, annotation__replay_tables=str(run / LOG))
    with pytest.raises(ConfigError, match="--serial"):
        train(settings, name="wide", runs_folder=tmp_path, display=False)
    changes = [f"annotation.replay_tables={run / LOG}", "budget.max_env_steps=800"]
    with pytest.raises(ConfigError, match="cannot be resumed"):
        resume("recorded", overrides=changes, runs_folder=tmp_path, display=False)


@pytest.mark.slow
def test_under_ray_the_learner_logs_by_what_it_was_paid(tmp_path, corridor_settings):
    settings = corridor_settings(tmp_path, budget__max_env_steps=1_500)
    run = train(settings, name="ray", runs_folder=tmp_path, display=False).folder
    (path,) = (run / "reward_tables").iterdir()
    tables = read_tables(path)
    versions, updates = [each.version for each in tables], [each.updates for each in tables]
    assert versions == sorted(set(versions))
    assert updates == sorted(updates)
    assert {each.env_steps for each in tables} == {UNKNOWN_STEPS}
    assert tables[-1].value.any()
