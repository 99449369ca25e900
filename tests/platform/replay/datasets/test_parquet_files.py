"""Logs to Parquet and back: equal bit for bit, and refused where they are not ours or damaged."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from onibi.platform.errors import ConfigError, SegmentError, SpecError
from onibi.platform.replay.datasets import parquet_files
from onibi.platform.replay.datasets.log_builder import LogBuilder
from onibi.platform.replay.datasets.parquet_files import export_parquet, import_parquet
from onibi.platform.replay.log.log_files import FolderDisk
from onibi.platform.replay.log.log_reader import ReplayLog


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_a_log_comes_back_from_parquet_bit_for_bit(log, logs, tmp_path):
    exported = export_parquet(log, str(tmp_path / "parquet"))
    imported = import_parquet(str(tmp_path / "parquet"), str(tmp_path / "again"))
    again = ReplayLog(tmp_path / "again")
    assert exported.rows == imported.rows == log.rows == 35
    assert exported.episodes == imported.episodes == 3
    assert logs.bits(logs.rows(again)) == logs.bits(logs.rows(log))
    assert again.spec == log.spec == logs.SPEC
    assert again.captions().equals(log.captions())
    assert again.captions().num_rows == 2
    assert again.episodes().equals(log.episodes())
    assert again.verify() == []


@pytest.mark.parametrize("rows", [3, 10, 1000])
def test_a_second_export_has_the_bytes_of_the_first_whatever_its_row_groups(log, tmp_path, monkeypatch, rows):
    monkeypatch.setattr(parquet_files, "group_rows", lambda spec: rows)
    export_parquet(log, str(tmp_path / "first"))
    import_parquet(str(tmp_path / "first"), str(tmp_path / "log-2"))
    export_parquet(ReplayLog(tmp_path / "log-2"), str(tmp_path / "second"))
    assert digests(tmp_path / "first") == digests(tmp_path / "second")
    file = pq.ParquetFile(tmp_path / "first" / "rows-0000.parquet")
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    assert sizes == [min(rows, 35 - begin) for begin in range(0, 35, rows)]
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"


def test_the_units_and_shapes_of_columns_stand_in_the_parquet_schema(log, tmp_path):
    export_parquet(log, str(tmp_path / "parquet"))
    field = pq.read_schema(tmp_path / "parquet" / "rows-0000.parquet").field("observation.vector")
    assert (field.metadata[b"unit"], field.metadata[b"shape"]) == (b"metres", b"3")
    assert field.type.list_size == 3


def test_each_shard_has_a_file_of_its_own(logs, tmp_path):
    lanes = logs.two_lanes()
    for shard in (0, 3):
        logs.seal(str(tmp_path / "log"), [lanes[min(shard, 1)]], segments=2, shard=shard)
    log = ReplayLog(tmp_path / "log")
    export_parquet(log, str(tmp_path / "parquet"))
    import_parquet(str(tmp_path / "parquet"), str(tmp_path / "again"))
    again = ReplayLog(tmp_path / "again")
    assert sorted(path.name for path in (tmp_path / "parquet").glob("rows-*")) == [
        "rows-0000.parquet",
        "rows-0003.parquet",
    ]
    assert [segment.shard for segment in again.segments] == [0, 3]
    assert logs.bits(logs.rows(again)) == logs.bits(logs.rows(log))


def test_parquet_lies_behind_an_address_as_well(log, logs, tmp_path):
    place = f"memory://{tmp_path.name}"
    export_parquet(log, f"{place}/parquet")
    import_parquet(f"{place}/parquet", f"{place}/log")
    import_parquet(f"{place}/parquet", (tmp_path / "local").as_uri())
    for location in (f"{place}/log", (tmp_path / "local").as_uri()):
        assert logs.bits(logs.rows(ReplayLog(location))) == logs.bits(logs.rows(log))


def test_a_damaged_segment_ends_the_export_and_nothing_is_left(log, tmp_path):
    path = Path(log.segments[2].rows_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(SegmentError, match=path.name):
        export_parquet(log, str(tmp_path / "parquet"))
    assert list((tmp_path / "parquet").iterdir()) == []


def test_a_taken_place_is_refused_and_left_as_it_was(log, tmp_path):
    export_parquet(log, str(tmp_path / "parquet"))
    before = digests(tmp_path / "parquet"), digests(tmp_path / "log")
    with pytest.raises(ConfigError, match="something is there already"):
        export_parquet(log, str(tmp_path / "parquet"))
    with pytest.raises(ConfigError, match="a replay log is there already"):
        import_parquet(str(tmp_path / "parquet"), str(tmp_path / "log"))
    assert (digests(tmp_path / "parquet"), digests(tmp_path / "log")) == before


def test_what_is_no_export_is_refused(log, tmp_path):
    with pytest.raises(ConfigError, match="is no folder"):
        import_parquet(str(tmp_path / "nowhere"), str(tmp_path / "again"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no rows"):
        import_parquet(str(tmp_path / "empty"), str(tmp_path / "again"))
    export_parquet(log, str(tmp_path / "parquet"))
    path = tmp_path / "parquet" / "rows-0000.parquet"
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    with pytest.raises(SpecError, match="dropped the schema's metadata"):
        import_parquet(str(tmp_path / "parquet"), str(tmp_path / "again"))


def test_rows_out_of_order_are_refused(log, tmp_path):
    export_parquet(log, str(tmp_path / "parquet"))
    path = tmp_path / "parquet" / "rows-0000.parquet"
    rows = pq.read_table(path)
    pq.write_table(rows.take(list(range(rows.num_rows))[::-1]), path)
    with pytest.raises(ConfigError, match="lane 0 do not come by rising generation"):
        import_parquet(str(tmp_path / "parquet"), str(tmp_path / "again"))


def test_an_import_that_fails_takes_back_what_it_sealed(log, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_files, "group_rows", lambda spec: 10)
    export_parquet(log, str(tmp_path / "parquet"))
    path = tmp_path / "parquet" / "rows-0000.parquet"
    file = pq.ParquetFile(path)
    at = file.metadata.row_group(2).column(3).data_page_offset
    content = bytearray(path.read_bytes())
    content[at : at + 60] = bytes(60)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="row group 2"):
        import_parquet(str(tmp_path / "parquet"), str(tmp_path / "again"))
    assert list((tmp_path / "again").iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet at all", None], ids=["empty", "magic", "text", "cut"])
def test_a_rows_file_that_is_no_parquet_is_told_by_name(log, tmp_path, content):
    export_parquet(log, str(tmp_path / "out"))
    rows = tmp_path / "out" / "rows-0000.parquet"
    rows.write_bytes(rows.read_bytes()[:-9] if content is None else content)
    with pytest.raises(ConfigError, match=r"out.*: not a Parquet file"):
        import_parquet(str(tmp_path / "out"), str(tmp_path / "log2"))
    assert not (tmp_path / "log2").exists()


def test_a_file_in_place_of_the_folder_is_told(log, tmp_path):
    export_parquet(log, str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="Name the folder, not a file in it"):
        import_parquet(str(tmp_path / "out" / "rows-0000.parquet"), str(tmp_path / "log2"))


class Killed(BaseException):
    """Stands for a signal that nobody hears: what is there at this moment stays."""


def test_what_a_killed_export_leaves_is_not_taken_for_rows_without_captions(log, tmp_path, monkeypatch):
    written = []

    def write_until_the_second(table, path, **options):
        if written:
            raise Killed
        written.append(path)
        pq.write_table(table, path, **options)

    monkeypatch.setattr(parquet_files, "_try_delete", lambda filesystem, path: None)
    with monkeypatch.context() as cut:
        cut.setattr("pyarrow.parquet.write_table", write_until_the_second)
        with pytest.raises(Killed):
            export_parquet(log, str(tmp_path / "out"))
    assert written, "it was killed between two files"
    with pytest.raises(ConfigError, match="holds no rows"):
        import_parquet(str(tmp_path / "out"), str(tmp_path / "log2"))


def test_a_killed_import_leaves_no_segment_that_looks_like_a_whole_log(log, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_files, "group_rows", lambda spec: 10)
    export_parquet(log, str(tmp_path / "out"))
    left = {}

    def kill_at_the_third(builder, *arguments, **named):
        if builder.segments == 2:
            left.update(torn=ReplayLog(tmp_path / "log2").torn, segments=ReplayLog(tmp_path / "log2").segments)
            raise Killed
        return seal(builder, *arguments, **named)

    seal = LogBuilder.seal
    monkeypatch.setattr(LogBuilder, "seal", kill_at_the_third)
    with pytest.raises(Killed):
        import_parquet(str(tmp_path / "out"), str(tmp_path / "log2"))
    assert left["segments"] == ()
    assert {name.partition("-")[0] for name in left["torn"]} == {"captions", "episodes", "rows"}


def test_an_import_whose_manifests_are_refused_takes_back_all(log, tmp_path, monkeypatch):
    export_parquet(log, str(tmp_path / "out"))
    monkeypatch.setattr(FolderDisk, "rename", refuse_manifests)
    with pytest.raises(OSError, match="no space"):
        import_parquet(str(tmp_path / "out"), str(tmp_path / "log2"))
    assert list((tmp_path / "log2").iterdir()) == []


def refuse_manifests(disk, name, new):
    if new.startswith("manifest"):
        raise OSError("no space")
    (disk.path / name).rename(disk.path / new)


def test_two_imports_into_one_place_do_not_mix(log, tmp_path):
    export_parquet(log, str(tmp_path / "out"))
    place = str(tmp_path / "log2")
    with LogBuilder(place, log.spec, None), pytest.raises(ConfigError, match="being written by another process"):
        import_parquet(str(tmp_path / "out"), place)
    import_parquet(str(tmp_path / "out"), str(tmp_path / "log2"))
    assert ReplayLog(tmp_path / "log2").verify() == []
