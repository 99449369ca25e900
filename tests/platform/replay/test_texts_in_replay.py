"""Texts beside rows of hashes: no row comes into the ring or the log without them, and they stay with it everywhere."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from gymnasium import spaces

from onibi.platform.annotation.captions import text_hash
from onibi.platform.errors import ReplayError, SpecError
from onibi.platform.fragment import CaptionText, Fragment, KeyText
from onibi.platform.fragment_batch import from_batch, to_batch
from onibi.platform.replay.datasets.minari_export import export_minari
from onibi.platform.replay.datasets.minari_import import find_minari, import_minari
from onibi.platform.replay.datasets.parquet_files import export_parquet, import_parquet
from onibi.platform.replay.datasets.row_check import verify_log
from onibi.platform.replay.limiter import Limiter
from onibi.platform.replay.log.log_files import FolderDisk, LocalFiles, open_files
from onibi.platform.replay.log.log_reader import ReplayLog
from onibi.platform.replay.log.log_settings import LogSettings
from onibi.platform.replay.log.log_writer import LogWriter
from onibi.platform.replay.log.segment_writer import RetentionSettings
from onibi.platform.replay.schema import observation_specs
from onibi.platform.replay.shard import Shard
from onibi.platform.spec import ROLE_FINAL, ReplaySpec

SPACE = spaces.Dict({"told": spaces.Tuple([spaces.Text(30), spaces.Box(-1, 1, (2,))]), "said": spaces.Text(9)})
SPEC = ReplaySpec(observation=observation_specs(SPACE), actions=2)
TOLD, SAID = "observation.told.0", "observation.said"
LIMITER = Limiter(ratio=1.0, minimum_rows=1, tolerance_rows=1_000)
STEPS = 5


class Teller:
    """One actor of one lane; episodes of STEPS steps whose texts name episode and step."""

    def __init__(self, shard: Shard) -> None:
        self.shard, self.lease = shard, shard.register(0, 1)
        self.sequence = self.episode = 0

    def fragment(self, *, send=None) -> Fragment:
        """A whole episode and the head of the next; ``send`` None sends all of its texts."""
        count = STEPS + 1
        columns = {column.name: np.zeros((1, count + 1, *column.shape), column.dtype) for column in SPEC.columns}
        del columns["caption_id"]
        columns["caption_hash"] = np.zeros((1, count + 1), np.uint64)
        told = [told_at(self.episode, step) for step in range(count)] + [told_at(self.episode + 1, 0)]
        columns[TOLD][0] = [text_hash(text) for text in told]
        columns[SAID][0, 1::2] = text_hash("Ω")  # the others are empty
        columns["role"][0, STEPS] = ROLE_FINAL
        columns["terminated"][0, STEPS - 1] = 1
        columns["step"][0] = [*range(count), 0]
        columns["episode_id"][0] = [*[self.episode] * count, self.episode + 1]
        return Fragment(
            actor=0,
            incarnation=self.lease.incarnation,
            sequence=self.sequence,
            rows_per_lane=np.full(1, count, np.int32),
            columns=columns,
            new_texts=[*told, "Ω"] if send is None else list(send),
            env_steps=STEPS,
        )

    def insert(self) -> None:
        self.shard.insert(from_batch(to_batch(self.fragment())))
        self.sequence += 1
        self.episode += 1


def told_at(episode: int, step: int) -> str:
    return f"episode {episode}, step {step}"


class Bench:
    """A shard with a log of small segments."""

    def __init__(self, ring, folder) -> None:
        self.ring, self.folder = ring, folder

    def open(self, *, reopen=False, log=True, **settings) -> Teller:
        given = {"run_id": "run", "limiter": LIMITER, "resolve": lambda captions: np.zeros(len(captions), np.uint32)}
        if reopen:
            self.shard = Shard.reopen(self.ring, **given)
        else:
            sizes = {"max_actors": 1, "envs_per_actor": 1, "capacity_rows": 400, "window_rows": 3}
            self.shard = Shard.create(self.ring, SPEC, **sizes, **given)
        if log:
            files = open_files(self.folder, create=True)
            self.log = LogWriter(LogSettings(**settings), files, self.ring, run_id="run", captions={})
            self.shard.attach_log(self.log)
        return Teller(self.shard)

    def abandon(self) -> None:
        """As kill -9 leaves it."""
        self.log._segments._files = None
        self.log.close()
        self.shard._writer.close()


@pytest.fixture
def bench(ring_path, tmp_path):
    bench = Bench(ring_path, tmp_path / "log")
    yield bench
    bench.shard.close()


def spoken(log: ReplayLog) -> list[tuple[int, int, str | None, str | None]]:
    """(episode, step, told, said) of every row in the order of the log; None for a text that is not there."""
    table = log.texts()
    known = dict(zip(table["text_hash"].to_pylist(), table["text"].to_pylist(), strict=True)) | {0: ""}
    rows = log.dataset().to_table(columns=["episode_id", "step", TOLD, SAID]).to_pylist()
    return [(row["episode_id"], row["step"], known.get(row[TOLD]), known.get(row[SAID])) for row in rows]


def assert_whole(log: ReplayLog, episodes: int) -> None:
    assert log.verify() == []
    rows = spoken(log)
    assert len(rows) >= episodes * (STEPS + 1)
    for episode, step, told, said in rows:
        assert told == told_at(episode, step)
        assert said == ("Ω" if step % 2 else "")


def test_every_row_of_the_log_has_its_texts_in_its_own_segment(bench):
    teller = bench.open(segment_bytes=1 << 10)
    for _ in range(30):
        teller.insert()
    assert len(bench.shard.texts()) == 30 * (STEPS + 1) + 2
    bench.shard.close()
    log = ReplayLog(bench.folder)
    assert_whole(log, 30)
    assert len(log.segments) > 5
    for segment in log.segments:  # so that retention may remove any other
        named = set(log.read(segment)[TOLD].to_pylist())
        table = log._table(segment, "texts")
        assert named <= set(table["text_hash"].to_pylist())
        assert segment.texts_path.endswith(f"texts-0000-{segment.number:08d}.arrow")


def test_retention_removes_texts_with_their_rows_and_leaves_those_of_the_others(bench):
    teller = bench.open(segment_bytes=1 << 10, seal_seconds=0.01, retention=RetentionSettings(rows=60))
    for _ in range(40):
        teller.insert()
    bench.shard.close()
    log = ReplayLog(bench.folder)
    assert log.rows <= 60
    assert all(told is not None for _, _, told, _ in spoken(log))
    assert told_at(0, 0) not in log.texts()["text"].to_pylist()


def test_rows_with_a_hash_whose_text_never_came_are_refused_and_written_nowhere(bench):
    teller = bench.open()
    for send, missing, column in (((), 1, SAID), (("Ω", told_at(0, 0)), STEPS + 1, TOLD)):
        with pytest.raises(ReplayError, match=rf"has {missing} hashes in '{column}' without a text"):
            bench.shard.insert(teller.fragment(send=send))
    assert bench.shard.counters().inserted_rows == 0
    assert bench.shard.counters().refused == 2
    teller.insert()
    assert bench.shard.counters().inserted_rows == STEPS


def test_texts_of_one_hash_are_refused(bench, monkeypatch):
    from onibi.platform.replay import text_table

    teller = bench.open(log=False)
    monkeypatch.setattr(text_table, "text_hash", lambda text: 5 if text in ("Ω", told_at(0, 1)) else text_hash(text))
    with pytest.raises(SpecError, match="have one hash"):
        teller.insert()
    assert bench.shard.counters().inserted_rows == 0


def test_a_killed_session_leaves_hashes_without_texts_and_the_log_says_so(bench, caplog):
    teller = bench.open(seal_seconds=3_600.0)
    teller.insert()
    bench.abandon()  # the ring has the rows, nobody has their texts
    teller = bench.open(reopen=True)
    teller.insert()  # episode 0 again: its texts come again
    teller.insert()
    teller.insert()
    bench.shard.close()
    log = ReplayLog(bench.folder)
    damage, notes = verify_log(log)
    assert damage == []
    assert [told for *_, told, _ in spoken(log)].count(None) == 0, "what is said again has its text again"
    assert notes == []


def test_texts_that_are_lost_for_good_stay_hashes(bench, caplog):
    teller = bench.open(seal_seconds=3_600.0)
    teller.insert()
    bench.abandon()
    bench.open(reopen=True)
    bench.shard.close()
    log = ReplayLog(bench.folder)
    damage, notes = verify_log(log)
    assert damage == []
    assert {told for _, _, told, _ in spoken(log)} == {None}
    lost = f"hashes in {TOLD!r} that have no text in the log, as it died with its process: {STEPS + 2}"
    assert any(lost in note for note in notes)
    assert sum("lost with its process" in record.message for record in caplog.records) == 1


def test_a_session_that_goes_on_knows_the_texts_that_are_sealed(bench):
    teller = bench.open(seal_seconds=0.01)
    teller.insert()
    bench.shard.close()
    teller = bench.open(reopen=True)
    assert told_at(0, 3) in bench.shard.texts()["text"].to_pylist()
    bench.shard.insert(teller.fragment(send=()))  # no text of it is new to the shard


def test_a_text_that_does_not_fit_its_hash_is_damage(bench):
    teller = bench.open()
    teller.insert()
    bench.shard.close()
    log = ReplayLog(bench.folder)
    (name,) = [name for name in log.segments[0].files if name.startswith("texts")]
    from onibi.platform.replay.log.segment_format import Manifest, SealedFile, encode
    from onibi.platform.replay.text_table import texts_table

    content = encode(texts_table({77: "another text"}), None)
    path = bench.folder / "manifest-0000-00000000.json"
    manifest = Manifest.from_json(path.read_bytes(), path.name)
    manifest.files[name] = SealedFile.of(content, 1)
    (bench.folder / name).write_bytes(content)
    path.write_bytes(manifest.to_json())
    found = ReplayLog(bench.folder).verify()
    assert [each.name for each in found] == [name]
    assert "another text" in found[0].fault


@pytest.mark.parametrize("to", ["parquet", "minari"])
def test_an_export_and_its_import_keep_every_text(bench, tmp_path, monkeypatch, to):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    teller = bench.open(segment_bytes=1 << 10)
    for _ in range(12):
        teller.insert()
    bench.shard.close()
    log, out, back = ReplayLog(bench.folder), tmp_path / "out-v0", tmp_path / "back"
    if to == "parquet":
        export_parquet(log, str(out))
        import_parquet(str(out), str(back))
        again = tmp_path / "again"
        export_parquet(ReplayLog(back), str(again))
        assert (again / "texts.parquet").read_bytes() == (out / "texts.parquet").read_bytes()
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            export_minari(log, str(out), pieces="ended")
            import_minari(find_minari(str(out)), str(back), lanes=1)
    assert_whole(ReplayLog(back), 12)
    if to == "minari":
        import minari

        episode = next(iter(minari.MinariDataset(out / "data").iterate_episodes()))
        assert list(episode.observations["told"]["0"]) == [told_at(0, step) for step in range(STEPS + 1)]


def test_a_log_without_text_columns_has_no_texts(log_of_numbers):
    assert log_of_numbers.texts().num_rows == 0
    assert log_of_numbers.segments[0].texts_path is None


@pytest.fixture
def log_of_numbers(rows, ring_path, tmp_path):
    given = {"run_id": "run", "limiter": LIMITER, "resolve": lambda captions: np.zeros(len(captions), np.uint32)}
    shard = Shard.create(
        ring_path, rows.SPEC, max_actors=1, envs_per_actor=1, capacity_rows=100, window_rows=3, **given
    )
    (tmp_path / "numbers").mkdir()
    files = LocalFiles("numbers", FolderDisk(tmp_path / "numbers"))
    shard.attach_log(LogWriter(LogSettings(), files, ring_path, run_id="run", captions={}))
    lease = shard.register(0, 1)
    columns = rows.fragment_columns([[rows.blank_row(1, 0, 0)]], [rows.blank_row(2, 0, 1)])
    columns["caption_hash"] = np.zeros(columns.pop("caption_id").shape, np.uint64)
    fragment = Fragment(0, lease.incarnation, 0, np.ones(1, np.int32), columns)
    shard.insert(fragment)
    shard.close()
    return ReplayLog(tmp_path / "numbers")


def test_a_caption_that_came_with_a_refused_fragment_keeps_its_text_in_the_log(bench):
    teller = bench.open()
    caption = CaptionText("a door opens", (KeyText("a door opens"),))
    bench.shard._captions._resolve = lambda captions: np.array([7], np.uint32)
    for texts in ((), None):  # first without the texts of its Text columns
        fragment = teller.fragment(send=texts)
        fragment.new_captions = [caption]
        fragment.columns["caption_hash"][0, 0] = text_hash(caption.text)
        if texts is None:
            bench.shard.insert(fragment)
        else:
            with pytest.raises(ReplayError, match="without a text"):
                bench.shard.insert(fragment)
    bench.shard.close()
    captions = ReplayLog(bench.folder).captions().to_pylist()
    assert [(each["caption_id"], each["text"]) for each in captions] == [(7, "a door opens")]
