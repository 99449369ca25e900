from __future__ import annotations

import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from onibi.platform.annotation.captions import text_hash
from onibi.platform.annotation.label_journal import frame
from onibi.platform.annotation.labels import (
    Judge,
    Label,
    LabelTable,
    LabelValue,
    Preference,
    PreferenceTable,
    PreferenceValue,
    labels_to_arrow,
)
from onibi.platform.annotation.table import AnnotationTable
from onibi.platform.errors import CaptionError


def label(key, *, prompt="p1", model="m", goal="win", value=LabelValue.HELPFUL, vote=0, time_seconds=1.0):
    return Label(
        key_hash=text_hash(key),
        key_text=key,
        raw_text=f"raw {key}",
        value=value,
        score={LabelValue.HELPFUL: 0.75, LabelValue.UNHELPFUL: 0.25, LabelValue.INVALID: math.nan}[value],
        annotator="test",
        model=model,
        prompt_version=prompt,
        goal=goal,
        latency_seconds=0.5,
        tokens=12,
        reply=f"reply on {key}: é☃",
        time_seconds=time_seconds,
        cost=0.25,
        vote=vote,
    )


def preference(first, second, value=PreferenceValue.FIRST, prompt="p1"):
    return Preference(
        first_hash=text_hash(first),
        second_hash=text_hash(second),
        first_text=first,
        second_text=second,
        value=value,
        annotator="test",
        model="m",
        prompt_version=prompt,
        goal="win",
        latency_seconds=0.5,
        tokens=3,
        reply="the first",
        time_seconds=2.0,
    )


def keys(records):
    return [record.key_text for record in records]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_appended_is_read_back_whole_by_others_while_it_is_written_and_after_it_is_sealed(tmp_path):
    writer, reader = AnnotationTable(tmp_path), AnnotationTable(tmp_path)
    records = [label("door"), preference("door", "newt"), label("newt", value=LabelValue.UNHELPFUL, vote=1)]
    writer.append(records)
    assert reader.refresh() == [records[0], records[2], records[1]]
    assert reader.refresh() == []
    assert writer.refresh() == [], "its own"
    writer.append([label("gold")])
    writer.close()
    assert keys(reader.refresh()) == ["gold"]
    assert reader.refresh() == []
    assert all(name.endswith((".arrow", "table.json")) for name in names(tmp_path))
    assert keys(AnnotationTable(tmp_path).all_labels()) == ["door", "newt", "gold"]
    assert AnnotationTable(tmp_path).all_preferences() == [records[1]]


def test_what_several_wrote_is_read_in_the_order_of_time_whatever_their_files_are_called(tmp_path):
    for order in ((1.0, 2.0, 3.0), (3.0, 1.0, 2.0)) * 3:
        folder = tmp_path / f"{len(names(tmp_path))}"
        for time_seconds in order:
            writer = AnnotationTable(folder)
            writer.append([label("door", time_seconds=time_seconds)])
            writer.close()
        assert [each.time_seconds for each in AnnotationTable(folder).refresh()] == [1.0, 2.0, 3.0]


def test_a_sealed_file_that_could_not_be_read_once_is_read_later(tmp_path, monkeypatch):
    writer, reader = AnnotationTable(tmp_path), AnnotationTable(tmp_path)
    writer.append([label("door")])
    writer.close()
    with monkeypatch.context() as broken:
        broken.setattr(Path, "read_bytes", lambda path: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        assert reader.refresh() == []
    assert "Input/output error" in reader.damage[0]
    assert keys(reader.refresh()) == ["door"]


def test_labels_are_found_by_prompt_model_and_goal(tmp_path):
    table = AnnotationTable(tmp_path)
    table.append([label("a"), label("b", prompt="p2"), label("c", model="other"), label("d", goal="lose")])
    table.close()
    assert keys(table.labels(prompt_version="p1", model="m", goal="win")) == ["a"]
    assert keys(table.labels(goal="lose")) == ["d"]
    reader = AnnotationTable(tmp_path)
    assert keys(reader.refresh([Judge("p2", "m", "win"), Judge("p1", "other", "win")])) == ["b", "c"]
    assert reader.refresh() == [], "what another judge said was passed over, for good"


def test_an_invalid_reply_is_kept_with_its_text(tmp_path):
    AnnotationTable(tmp_path).append([label("?", value=LabelValue.INVALID)])
    (back,) = AnnotationTable(tmp_path).all_labels()
    assert (back.value, back.reply, math.isnan(back.score)) == (LabelValue.INVALID, "reply on ?: é☃", True)


def test_the_table_keeps_its_name_and_a_folder_without_one_is_told_from_it(tmp_path):
    assert not AnnotationTable.is_at(tmp_path)
    first = AnnotationTable(tmp_path / "a")
    assert AnnotationTable.is_at(tmp_path / "a")
    assert AnnotationTable(tmp_path / "a").table_id == first.table_id != AnnotationTable(tmp_path / "b").table_id


def test_what_is_no_table_is_refused_with_its_place(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CaptionError, match=r"file cannot be opened"):
        AnnotationTable(tmp_path / "file")
    (tmp_path / "table.json").write_text('{"format": 99, "table_id": "x"}')
    with pytest.raises(CaptionError, match="format is 99"):
        AnnotationTable(tmp_path)
    for damaged in ("not json", '{"format": 1}', "[]"):
        (tmp_path / "table.json").write_text(damaged)
        with pytest.raises(CaptionError, match=r"table\.json is damaged .* delete .*table\.json, and it is made anew"):
            AnnotationTable(tmp_path)


def test_it_exports_to_parquet(tmp_path):
    table = AnnotationTable(tmp_path / "table")
    table.append([label("door"), label("newt")])
    assert [path.name for path in table.to_parquet(tmp_path / "out")] == ["labels.parquet"]
    table.append([preference("door", "newt")])
    labels, preferences = table.to_parquet(tmp_path / "out")
    assert keys(LabelTable.from_arrow(parquet.read_table(labels))) == ["door", "newt"]
    assert len(PreferenceTable.from_arrow(parquet.read_table(preferences))) == 1


def write_and_wait(folder, ready):
    table = AnnotationTable(folder)
    table.append([label(f"key {number}") for number in range(3)])
    Path(ready).touch()
    time.sleep(60)


def killed_writer(folder, tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=write_and_wait, args=(folder, tmp_path / "ready"))
    process.start()
    deadline = time.monotonic() + 30
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return process


def test_the_journal_of_a_killed_writer_is_sealed_by_the_next_one_and_not_that_of_a_living_one(tmp_path):
    folder = tmp_path / "table"
    process = killed_writer(folder, tmp_path)
    try:
        (journal,) = folder.glob("*.journal")
        other = AnnotationTable(folder)
        other.append([label("mine")])
        assert journal.exists(), "its writer lives"
        assert sorted(keys(other.all_labels())) == ["key 0", "key 1", "key 2", "mine"]
    finally:
        process.kill()
        process.join()
    with journal.open("ab") as file:
        file.write(frame(labels_to_arrow([label("torn")]).to_batches()[0].serialize())[:-5])
    third = AnnotationTable(folder)
    third.append([label("later")])
    assert not journal.exists()
    (told,) = third.damage
    assert "3 rows kept" in told
    assert "torn bytes" in told
    assert sorted(keys(AnnotationTable(folder).refresh())) == ["key 0", "key 1", "key 2", "later", "mine"]


def test_a_reader_goes_on_behind_what_it_read_when_a_journal_is_sealed_by_another(tmp_path):
    folder = tmp_path / "table"
    process = killed_writer(folder, tmp_path)
    reader = AnnotationTable(folder)
    assert len(reader.refresh()) == 3
    process.kill()
    process.join()
    AnnotationTable(folder).recover()
    assert not list(folder.glob("*.journal"))
    assert reader.refresh() == []


def test_a_journal_that_is_sealed_before_its_reader_comes_to_it_is_found_at_once(tmp_path, monkeypatch):
    writer, reader = AnnotationTable(tmp_path), AnnotationTable(tmp_path)
    writer.append([label("door")])
    listed = AnnotationTable._files

    def list_and_seal(self):
        files = listed(self)
        writer.close()
        return files

    monkeypatch.setattr(AnnotationTable, "_files", list_and_seal)
    assert [each.key_text for each in reader.refresh()] == ["door"]
    writer.append([label("newt")])
    assert {each.key_text for each in reader.labels()} == {"door", "newt"}
    assert reader.damage == []


def test_a_name_without_a_file_ends_no_reading(tmp_path):
    table = AnnotationTable(tmp_path)
    table.append([label("door")])
    (tmp_path / f"labels-{'0' * 16}.journal").symlink_to(tmp_path / "nowhere")
    assert [each.key_text for each in table.labels()] == ["door"]


def test_a_journal_that_cannot_be_opened_keeps_no_answer_out_of_the_table(tmp_path):
    name = f"labels-{'0' * 16}.journal"
    AnnotationTable(tmp_path).folder.joinpath(name).symlink_to(name)  # to itself; another user's is alike, but for root
    table = AnnotationTable(tmp_path)
    table.append([label("door")])
    assert [each.key_text for each in table.labels()] == ["door"]
    assert any(name in told for told in table.damage)


def test_a_damaged_sealed_file_is_told_and_the_others_are_read(tmp_path):
    first, second = AnnotationTable(tmp_path), AnnotationTable(tmp_path)
    first.append([label("door")])
    second.append([label("newt")])
    first.close()
    (sealed,) = tmp_path.glob("*.arrow")
    second.close()
    content = bytearray(sealed.read_bytes())
    content[len(content) // 2] ^= 1
    sealed.write_bytes(content)
    reader = AnnotationTable(tmp_path)
    assert keys(reader.refresh()) == ["newt"]
    assert "checksum" in reader.damage[0]
    assert reader.refresh() == []
    assert len(reader.damage) == 1


class FullDisk:
    """The disk takes so many bytes, then half of a write, then nothing."""

    def __init__(self, room):
        self.room = room
        self.write = os.write

    def __call__(self, descriptor, content):
        if self.room <= 0:
            raise OSError(28, "No space left on device")
        taken = self.write(descriptor, content[: min(self.room, len(content))])
        self.room -= taken
        return taken


def test_a_full_disk_is_told_and_costs_nothing_that_was_appended(tmp_path, monkeypatch):
    table = AnnotationTable(tmp_path)
    table.append([label("door")])
    monkeypatch.setattr(os, "write", FullDisk(room=100))
    with pytest.raises(OSError, match="No space"):
        table.append([label("newt")])
    monkeypatch.undo()
    table.append([label("gold")])
    reader = AnnotationTable(tmp_path)
    assert keys(reader.refresh()) == ["door", "gold"]
    assert reader.damage == []


TWO_WRITERS = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_table import label
from onibi.platform.annotation.table import AnnotationTable
table, name = AnnotationTable(Path({folder!r})), sys.argv[1]
for number in range(300):
    table.append([label(f"{{name}} {{number}}")])
    print(f"{{name}} {{number}}", flush=True)
    if number == 150 and name == "b":
        table.close()
"""


def test_two_processes_write_one_table_and_one_is_killed_and_nothing_is_lost(tmp_path):
    script = tmp_path / "write.py"
    script.write_text(TWO_WRITERS.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "table")))
    processes = [
        subprocess.Popen([sys.executable, str(script), name], stdout=subprocess.PIPE, text=True) for name in "ab"
    ]
    told = [processes[0].stdout.readline().strip() for _ in range(120)]
    processes[0].send_signal(signal.SIGKILL)
    for process in processes:
        told += process.communicate()[0].split("\n")
    reader = AnnotationTable(tmp_path / "table")
    found = keys(reader.all_labels())
    assert processes[1].returncode == 0
    assert {line for line in told if line} <= set(found), "what was said to be appended is there"
    assert len(found) == len(set(found)) >= 420
    reader.recover()
    assert sorted(keys(reader.all_labels())) == sorted(found)


def put_file(folder, table, number):
    """A sealed file of another program, whose checksum fits."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    content = sink.getvalue().to_pybytes()
    (folder / f"labels-{number:016x}-{len(table)}-{zlib.crc32(content):08x}.arrow").write_bytes(content)


def test_files_of_other_programs_are_read_as_far_as_they_can_be_and_the_others_count(tmp_path):
    own = AnnotationTable(tmp_path)
    own.append([label("door")])
    own.close()
    other = labels_to_arrow([label("newt")])
    scores = pa.array([math.nan], pa.float32())
    put_file(tmp_path, labels_to_arrow([label("gold")]).drop_columns(["vote", "cost"]), 1)  # as they once were
    put_file(tmp_path, labels_to_arrow([label("rat")]).append_column("mood", pa.array(["good"])), 2)
    put_file(tmp_path, other.drop_columns(["prompt_version"]), 3)
    put_file(tmp_path, other.set_column(other.column_names.index("score"), "score", scores), 4)
    reads = (
        lambda table: table.refresh(),
        lambda table: table.refresh([Judge("p1", "m", "win")]),
        lambda table: table.labels("p1", "m", "win"),
    )
    for read in reads:
        reader = AnnotationTable(tmp_path)
        assert sorted(keys(read(reader))) == ["door", "gold", "rat"]
        assert len(reader.damage) == 2
        assert "columns ['prompt_version'] are missing" in reader.damage[0]
        assert "row 0: label of 'newt' by 'test': score nan" in reader.damage[1]
        assert "labels-0000000000000004-" in reader.damage[1], "the file that is to be looked at"
        read(reader)
        assert len(reader.damage) == 2, "told once"
    (written,) = AnnotationTable(tmp_path).to_parquet(tmp_path / "out")
    assert parquet.read_table(written).num_rows == 4, "all but the one that lacks a column"


def test_what_is_kept_is_not_refused_where_its_journal_cannot_be_sealed(tmp_path, monkeypatch, caplog):
    def refuse(path, content):
        raise OSError(28, "No space left on device", str(path))

    table = AnnotationTable(tmp_path)
    with monkeypatch.context() as full:
        full.setattr("onibi.platform.annotation.table._SEAL_BYTES", 1)
        full.setattr("onibi.platform.annotation.table.write_durably", refuse)
        table.append([label("door")])
    assert "cannot be sealed: [Errno 28] No space left" in caplog.text
    table.append([label("newt")])
    table.close()
    assert sorted(keys(AnnotationTable(tmp_path).all_labels())) == ["door", "newt"]
