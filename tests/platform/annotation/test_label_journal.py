"""Journals of labels: torn at their end, or damaged anywhere."""

from __future__ import annotations

import random

import pyarrow as pa
import pytest

from onibi.platform.annotation.annotator import AnnotationRequest, label_for
from onibi.platform.annotation.captions import KeyIndex
from onibi.platform.annotation.label_journal import JournalWriter, read_journal
from onibi.platform.annotation.labels import LABEL_SCHEMA, Judge, labels_to_arrow


def label(text):
    request = AnnotationRequest(key=KeyIndex(0), key_text=text, raw_text=f"raw {text}")
    return label_for(Judge("p1", "m", "win"), request, 0.75, reply=f"reply on {text}: é☃", tokens=12, cost=0.25)


@pytest.mark.parametrize("cut", range(0, 400, 13))
def test_a_journal_cut_anywhere_gives_its_whole_frames_and_no_more(tmp_path, cut):
    path = tmp_path / "labels-0.journal"
    writer = JournalWriter(path, LABEL_SCHEMA)
    ends = []
    for number in range(3):
        writer.append(labels_to_arrow([label(f"key {number}")]))
        ends.append(writer.size)
    writer.close()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - cut])
    piece = read_journal(path, 0, LABEL_SCHEMA)
    assert sum(batch.num_rows for batch in piece.batches) == sum(end <= len(content) - cut for end in ends)
    assert piece.damaged_bytes == 0
    assert piece.end + piece.torn_bytes == len(content) - cut


@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_byte_costs_one_frame_and_the_rest_is_read(tmp_path, seed):
    path = tmp_path / "labels-0.journal"
    writer = JournalWriter(path, LABEL_SCHEMA)
    begin = writer.size
    for number in range(5):
        writer.append(labels_to_arrow([label(f"key {number}")]))
    writer.close()
    content = bytearray(path.read_bytes())
    rng = random.Random(seed)
    content[rng.randrange(begin, len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    piece = read_journal(path, 0, LABEL_SCHEMA)
    found = pa.Table.from_batches(piece.batches, schema=LABEL_SCHEMA)["key_text"].to_pylist()
    assert len(found) == 4
    assert set(found) < {f"key {number}" for number in range(5)}
    assert piece.damaged_bytes + piece.torn_bytes > 0
