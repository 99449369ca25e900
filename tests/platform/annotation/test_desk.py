from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from onibi.platform.annotation.captions import CaptionTable, text_hash
from onibi.platform.annotation.desk import AnnotationDesk
from onibi.platform.annotation.labels import Judge, Label, LabelValue
from onibi.platform.annotation.settings import AnnotationDeskSettings, AnnotationSettings
from onibi.platform.errors import CaptionError
from onibi.platform.fragment import CaptionText, KeyText
from onibi.platform.rewards.table import LABELLED, NEVER_ASKED, UNLABELLED, caption_rewards


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def caption(*keys, askable=True):
    return CaptionText("  ".join(keys), tuple(KeyText(key, askable) for key in keys))


def label(key, value=LabelValue.HELPFUL, prompt="p1"):
    score = {LabelValue.HELPFUL: 1.0, LabelValue.UNHELPFUL: 0.0, LabelValue.INVALID: math.nan}[value]
    return Label(
        key_hash=text_hash(key),
        key_text=key,
        raw_text=key,
        value=value,
        score=score,
        annotator="lexicon",
        model="m",
        prompt_version=prompt,
        goal="win",
        latency_seconds=0.0,
        tokens=0,
        reply="because",
        time_seconds=0.0,
    )


def desk(clock=None, *, prompt="p1", version="k1", **settings):
    return AnnotationDesk(
        AnnotationSettings(desk=AnnotationDeskSettings(**settings)),
        keys_per_caption=2,
        key_version=version,
        judges=[Judge(prompt, "m", "win")],
        clock=clock or Clock(),
    )


def asked(some_desk, count=99):
    return [request.key_text for request in some_desk.take(count)]


def test_new_askable_keys_are_asked_once_newest_first():
    some = desk()
    assert some.intern([caption("door", "newt"), caption("wall", askable=False), caption("gold")]).tolist() == [1, 2, 3]
    some.intern([caption("gold")])
    assert asked(some) == ["gold", "newt", "door"]
    some.intern([caption("gold")])
    some.see(np.array([1, 1, 3], np.uint32))
    assert asked(some) == []


def test_a_request_carries_the_raw_text_in_which_the_key_was_met():
    some = desk()
    some.intern([CaptionText("g - 3 rocks.", (KeyText("* - # rocks."),))])
    (request,) = some.take(1)
    assert (request.key, request.key_text, request.raw_text) == (0, "* - # rocks.", "g - 3 rocks.")


def test_a_label_makes_a_new_table_that_pays():
    some = desk()
    ids = some.intern([caption("door"), caption("newt")])
    first = some.table(newer_than=-1)
    assert (first.version, first.labelled.tolist()) == (1, [UNLABELLED, UNLABELLED])
    assert some.table(newer_than=1) is None
    some.put([label("door"), label("newt", LabelValue.UNHELPFUL)])
    assert some.table_version == 2
    second = some.table(newer_than=1)
    assert (second.version, second.value.tolist(), second.labelled.tolist()) == (2, [1.0, 0.0], [LABELLED, LABELLED])
    assert first.labelled.tolist() == [UNLABELLED, UNLABELLED], "a published table must not change"
    assert first.value.tolist() == [0.0, 0.0]
    reward, labelled = caption_rewards(second, ids, np.array([[1, 0], [1, 0]], np.uint16), 3.0)
    assert (reward.tolist(), labelled.tolist()) == ([1.0, 0.0], [True, True])


def test_a_label_given_again_makes_no_new_table():
    some = desk()
    some.intern([caption("door")])
    some.put([label("door")])
    version = some.table(newer_than=-1).version
    some.put([label("door")])
    assert some.table_version == version


def test_a_new_caption_of_a_labelled_key_makes_a_new_table_and_is_not_asked():
    some = desk()
    some.intern([caption("door")])
    some.put([label("door")])
    version = some.table(newer_than=-1).version
    ids = some.intern([caption("door", "door!")])
    assert asked(some) == ["door!"]
    table = some.table(newer_than=version)
    reward, labelled = caption_rewards(table, ids, np.array([[1, 1]], np.uint16), 3.0)
    assert (reward.tolist(), labelled.tolist()) == ([1.0], [False])


def test_an_invalid_reply_is_asked_again_and_never_counts_as_unhelpful():
    some = desk(max_attempts=2)
    some.intern([caption("door")])
    for attempt in range(2):
        assert asked(some) == ["door"], attempt
        some.put([label("door", LabelValue.INVALID)])
        assert some.table(newer_than=-1).labelled.tolist() == [UNLABELLED]
    some.intern([caption("door")])
    assert asked(some) == []
    figures = some.statistics()
    assert (figures["annotation/parked_keys"], figures["annotation/invalid_replies"]) == (1, 2)
    some.put([label("door")])  # a late good reply
    assert some.statistics()["annotation/parked_keys"] == 0
    assert some.table(newer_than=-1).labelled.tolist() == [LABELLED]


def test_keys_of_a_dead_annotator_are_asked_again_after_their_lease():
    clock = Clock()
    some = desk(clock, lease_seconds=5.0)
    some.intern([caption("door")])
    assert asked(some) == ["door"]
    clock.now += 4
    assert asked(some) == []
    clock.now += 1
    assert asked(some) == ["door"]


def test_a_dropped_key_is_asked_when_its_caption_is_met_again():
    some = desk(queue_keys=1)
    some.intern([caption("door"), caption("newt")])
    assert some.statistics()["annotation/dropped_keys"] == 1
    assert asked(some) == ["newt"]
    some.see(np.array([1], np.uint32))
    assert asked(some) == ["door"]


def test_a_run_starts_from_another_runs_labels_and_asks_only_the_rest():
    some = desk()
    some.learn([label("door"), label("newt", prompt="other")])
    some.intern([caption("door"), caption("newt")])
    assert asked(some) == ["newt"]
    assert some.table(newer_than=-1).value.tolist() == [1.0, 0.0]
    lax = desk(reuse="any_prompt")
    lax.learn([label("newt", prompt="other")])
    lax.intern([caption("newt")])
    assert asked(lax) == []


def test_a_label_of_another_prompt_is_kept_and_pays_nothing():
    some = desk()
    some.intern([caption("door")])
    some.put([label("door", prompt="p0")])
    assert some.table(newer_than=-1).labelled.tolist() == [UNLABELLED]
    assert (len(some.labels), some.statistics()["annotation/unusable_labels"]) == (1, 1)


def test_a_never_asked_key_stays_worth_0_whoever_labels_it():
    some = desk()
    some.intern([caption("wall", askable=False)])
    some.put([label("wall")])
    table = some.table(newer_than=-1)
    assert (table.value.tolist(), table.labelled.tolist()) == ([0.0], [NEVER_ASKED])


def test_statistics_tell_how_long_captions_wait_for_their_labels():
    clock = Clock()
    some = desk(clock)
    keys = [f"thing {number}" for number in range(10)]
    some.intern([caption(key) for key in keys])
    assert "annotation/label_delay_p50_seconds" not in some.statistics(), "none has a label"
    for key in keys:
        clock.now += 1
        some.put([label(key)])
    figures = some.statistics()
    assert figures["annotation/label_delay_p50_seconds"] == 5.5
    assert figures["annotation/label_delay_p95_seconds"] == pytest.approx(9.55)


def test_statistics_tell_the_share_of_keys_and_of_sightings_with_a_label():
    clock = Clock()
    some = desk(clock)
    some.intern([caption("door"), caption("newt"), caption("wall", askable=False)])
    some.see(np.array([1, 2, 3], np.uint32), np.array([30, 10, 1000]))
    some.put([label("door")])
    clock.now += 7
    figures = some.statistics()
    assert figures["annotation/labelled_key_share"] == 0.5
    assert figures["annotation/labelled_sighting_share"] == 0.75  # 30 of 40; walls have nothing to ask
    assert figures["annotation/oldest_unlabelled_seconds"] == 7
    assert (figures["annotation/keys"], figures["annotation/keys_askable"], figures["annotation/keys_helpful"]) == (
        3,
        2,
        1,
    )


def test_the_report_has_a_row_for_each_key_in_order():
    some = desk()
    some.intern([caption("door"), caption("newt"), caption("wall", askable=False)])
    some.see(np.array([1, 1], np.uint32))
    some.put([label("door")])
    rows = some.caption_report()
    assert [(row.key, row.label, row.sightings, row.reply) for row in rows] == [
        ("door", "helpful", 2, "because"),
        ("newt", "", 0, ""),
        ("wall", "never asked", 0, ""),
    ]


def through_arrow(state, folder):
    """State as a checkpoint keeps it: Arrow IPC files."""
    back = {}
    for name, table in state.items():
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        with pa.OSFile(str(folder / name)) as file:
            back[name] = pa.ipc.open_file(file).read_all()
    return back


def test_a_restored_desk_goes_on_with_the_same_indices_labels_ages_and_queue(tmp_path):
    clock = Clock()
    some = desk(clock, queue_keys=3, max_attempts=2)
    ids = some.intern([caption("door"), caption("newt"), caption("gold"), caption("wall", askable=False)])
    some.see(ids)
    some.take(1)  # gold in flight
    some.put([label("door"), label("newt", LabelValue.INVALID)])
    clock.now += 5
    before = some.table(newer_than=-1)
    later = Clock()
    later.now = 3.0  # another machine's clock
    fresh = desk(later, queue_keys=3, max_attempts=2)
    fresh.restore(through_arrow(some.state(), tmp_path))
    assert fresh.table(newer_than=before.version) is None, "nothing changed, so no learner has to reload"
    after = fresh.table(newer_than=-1)
    assert after.version == before.version
    assert np.array_equal(after.caption_keys, before.caption_keys)
    assert (after.value.tolist(), after.labelled.tolist()) == (before.value.tolist(), before.labelled.tolist())
    left = {**some.statistics(), "annotation/queue_keys": 2, "annotation/in_flight_keys": 0}
    delays = {name for name in left if name.startswith("annotation/label_delay")}  # of this session alone
    assert fresh.statistics() == {name: left[name] for name in left.keys() - delays}
    assert fresh.intern([caption("gold")]).tolist() == [3]
    assert asked(fresh) == ["gold", "newt"]
    fresh.put([label("newt", LabelValue.INVALID)])  # its second
    assert fresh.statistics()["annotation/parked_keys"] == 1


def test_a_restored_desk_with_another_prompt_asks_everything_anew(tmp_path):
    some = desk(max_attempts=1)
    some.intern([caption("door"), caption("newt")])
    some.put([label("door")])
    some.take(1)
    some.put([label("newt", LabelValue.INVALID)])  # parked under the old prompt
    version = some.table(newer_than=-1).version
    fresh = desk(prompt="p2", max_attempts=1)
    fresh.restore(through_arrow(some.state(), tmp_path))
    assert sorted(asked(fresh)) == ["door", "newt"]
    assert fresh.table(newer_than=version).labelled.tolist() == [UNLABELLED, UNLABELLED]
    assert len(fresh.labels) == 2


def test_state_of_another_captioner_is_refused_and_changes_nothing():
    some, other = desk(), desk(version="k2")
    other.intern([caption("door")])
    with pytest.raises(CaptionError, match="'k1'"):
        some.restore(other.state())
    with pytest.raises(CaptionError, match="'labels', 'queue'"):
        some.restore(CaptionTable(2, "k1").to_arrow())
    assert len(some.captions) == 1


class DeskAgainstBooks(RuleBasedStateMachine):
    """Any order of calls, restores in between: labels decide the table, and an unlabelled met key is somewhere."""

    keys = st.sampled_from([f"key {i}" for i in range(8)])

    def __init__(self):
        super().__init__()
        self.clock = Clock()
        self.desk = desk(self.clock, queue_keys=100, lease_seconds=3.0, max_attempts=100)
        self.met: set[str] = set()
        self.truth: dict[str, LabelValue] = {}
        self.version = -1

    @rule(texts=st.lists(keys, min_size=1, max_size=2, unique=True))
    def meet(self, texts):
        self.desk.see(self.desk.intern([caption(*texts)]))
        self.met |= set(texts)

    @rule(
        count=st.integers(1, 4),
        values=st.lists(st.sampled_from(LabelValue), min_size=4, max_size=4),
        lost=st.booleans(),
    )
    def judge(self, count, values, lost):
        requests = self.desk.take(count)
        assert not {request.key_text for request in requests} & set(self.truth), "asked though labelled"
        if not lost:
            verdicts = {request.key_text: value for request, value in zip(requests, values, strict=False)}
            self.desk.put([label(key, value) for key, value in verdicts.items()])
            self.truth.update({key: value for key, value in verdicts.items() if value != LabelValue.INVALID})

    @rule(seconds=st.integers(1, 4))
    def wait(self, seconds):
        self.clock.now += seconds

    @rule()
    def restart(self):
        state = self.desk.state()
        self.desk = desk(self.clock, queue_keys=100, lease_seconds=3.0, max_attempts=100)
        self.desk.restore(state)

    @invariant()
    def the_table_says_what_the_labels_say(self):
        table = self.desk.table(newer_than=-1)
        assert table.version >= self.version
        self.version = table.version
        for key in self.met:
            index = self.desk.captions.key_index(text_hash(key))
            truth = self.truth.get(key)
            assert table.labelled[index] == (UNLABELLED if truth is None else LABELLED)
            assert table.value[index] == (1.0 if truth == LabelValue.HELPFUL else 0.0)

    @invariant()
    def no_key_is_lost(self):
        figures = self.desk.statistics()
        assert figures["annotation/queue_keys"] + figures["annotation/in_flight_keys"] == len(
            self.met - set(self.truth)
        )


DeskAgainstBooks.TestCase.settings = hypothesis_settings(max_examples=40, stateful_step_count=25, deadline=None)
TestDeskAgainstBooks = DeskAgainstBooks.TestCase
