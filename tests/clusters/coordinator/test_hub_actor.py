"""The hub as a Ray actor: who waits for a reward table hears of it at once; what a resumed run pays from its start."""

from __future__ import annotations

import asyncio
import functools
import time
from types import SimpleNamespace

import numpy as np
import pytest
import ray

from onibi.clusters.coordinator import hub_actor
from onibi.clusters.coordinator.hub_actor import HubActor
from onibi.clusters.coordinator.label_team import tell_learnt_scores
from onibi.clusters.coordinator.role_calls import first_answer
from onibi.clusters.reward_model_plan import make_reward_learner
from onibi.clusters.run_plan import plan_run
from onibi.clusters.run_settings import RunSettings
from onibi.clusters.run_state import make_desk
from onibi.learners import learner_actor
from onibi.learners.learner import Update
from onibi.learners.learner_actor import LearnerParts
from onibi.learners.learner_loop import LearnerLoop
from onibi.platform.annotation.worker_requests import Worker
from onibi.platform.config import read_settings
from onibi.platform.errors import CaptionError
from onibi.platform.fragment import CaptionText, KeyText
from onibi.platform.rewards.table import caption_rewards

SOON_SECONDS = 5.0
COINS = KeyText(text="You have N coins.", askable=True)


def coins(number: int) -> CaptionText:
    """A new caption for each number, all of the same key."""
    return CaptionText(text=f"You have {number} coins.", keys=(COINS,))


class Hub:
    """A hub in a Ray actor and all that a run asks of it here."""

    def __init__(self, settings, annotation_table=None, desk_state=None):
        self.stores = plan_run(read_settings(RunSettings, settings)).for_stores()
        self.handle = HubActor.options(max_concurrency=100).remote(
            functools.partial(make_desk, self.stores), self.stores.judges(), [], annotation_table, desk_state, False
        )

    def ask(self, method, *arguments):
        return ray.get(getattr(self.handle, method).remote(*arguments))

    def label(self, *captions):
        """Captions of new keys, and the annotator's answers about them."""
        (name,) = self.stores.judges()
        self.ask("intern", list(captions))
        annotator = self.stores.make_annotator(name)
        self.ask("begin_work", Worker(name, 0), "a")
        requests = self.ask("take", Worker(name, 0), "a", len(captions), 0.0)
        self.ask("put", name, list(annotator.annotate(requests, annotator.goal)), False)


def pays(table, captions):
    """What each caption of ``captions`` pays when it is heard first."""
    counts = np.ones((len(captions), table.keys_per_caption), np.uint16)
    return caption_rewards(table, np.array(captions), counts, 3.0)[0].tolist()


@pytest.fixture
def make_hub(small_ray, workshop):
    hubs = []

    def make(annotation_table=None, desk_state=None, **changes):
        hubs.append(Hub(workshop.settings(**changes), annotation_table, desk_state))
        return hubs[-1]

    yield make
    for hub in hubs:
        ray.kill(hub.handle)


def test_a_new_caption_of_a_labelled_key_is_told_to_who_waits_for_a_table(make_hub):
    hub = make_hub()
    hub.label(coins(1))
    table = hub.ask("table_after", -1, 0.0)
    poll = hub.handle.table_after.remote(table.version, 30.0)
    time.sleep(0.5)  # it waits
    began = time.monotonic()
    (new,) = hub.ask("intern", [coins(2)]).tolist()
    newer = ray.get(poll)
    assert time.monotonic() - began < SOON_SECONDS
    assert newer.version == table.version + 1
    assert pays(newer, [new]) == [1.0]


def test_a_caption_that_changes_no_reward_makes_no_table(make_hub):
    hub = make_hub()
    hub.label(coins(1))
    table = hub.ask("table_after", -1, 0.0)
    hub.ask("intern", [CaptionText(text="A door.", keys=(KeyText(text="A door.", askable=True),))])
    hub.ask("see", np.array([1], np.uint32), np.array([3]))
    assert hub.ask("table_after", table.version, 0.2) is None


def test_who_has_a_table_gets_the_next_one_after_a_pause_as_long_as_it_is_large(workshop, monkeypatch):
    """As the plain class that it is: 3 captions of K = 1 and int32 are 12 bytes, at 20 bytes a second 0.6 s."""
    monkeypatch.setattr(hub_actor, "_TABLE_BYTES_PER_SECOND", 20.0)
    stores = plan_run(read_settings(RunSettings, workshop.settings())).for_stores()
    hub = HubActor.__ray_actor_class__(functools.partial(make_desk, stores), stores.judges(), [], None, None, False)

    async def ask():
        await hub.intern([coins(1), coins(2)])
        began = time.monotonic()
        table = await hub.table_after(-1, 0.0)
        first = time.monotonic() - began
        hub._desk._changed = True
        newer = await hub.table_after(table.version, 30.0)
        return table, newer, first, time.monotonic() - began

    table, newer, first, second = asyncio.run(ask())
    assert table.caption_keys.nbytes == 12
    assert newer.version == table.version + 1
    assert first < 0.3 <= 0.6 <= second


class Slabs:
    """Gives each row out once, as soon as it is there: a step of a new caption. Is what a learner's loop needs besides,
    too, and notes what the caption pays by the table that it was drawn with.
    """

    components = ("intrinsic",)
    drawn_rows = updates = 0

    def __init__(self, hub, captions):
        self._hub, self._captions, self.paid, self.versions = hub, captions, [], []

    def may_draw(self):
        return bool(self._captions)

    def draw(self):
        return SimpleNamespace(caption_id=self._hub.ask("intern", [self._captions.pop(0)]).reshape(1, 1))

    def mix(self, batch, table, _sources):
        self.versions.append(table.version)
        self.paid += pays(table, batch.caption_id.ravel().tolist())
        return SimpleNamespace(total=None, terms={})

    def update(self, _batch, _total):
        return Update({}, None)

    def figures(self):
        return {}


def learn(hub, captions, monkeypatch, seconds):
    """What a learner that draws such rows pays for them."""
    monkeypatch.setattr(learner_actor, "tell_warnings", lambda _role, _tell: None)  # this process's log is pytest's
    rows = Slabs(hub, captions)
    actor = learner_actor.LearnerActor.__ray_actor_class__(hub.handle, 1)
    actor.build(lambda _publish: LearnerParts(rows, rows, LearnerLoop(rows, rows, rows, 0, None, 1)))
    actor.train(seconds)
    return rows


def test_a_new_caption_of_a_labelled_key_is_paid_in_the_very_batch_that_brings_it(make_hub, monkeypatch):
    monkeypatch.setattr(learner_actor, "_ASKING_SHARE", 1.0)
    hub = make_hub()
    hub.label(coins(0))
    rows = learn(hub, [coins(number) for number in range(1, 21)], monkeypatch, 3.0)
    assert rows.paid == [1.0] * 20


def test_tables_that_updates_wait_for_take_a_share_of_the_learners_time_and_no_more(make_hub, monkeypatch):
    monkeypatch.setattr(learner_actor, "_ASKING_SHARE", 1e-6)  # of any time: the first one, and what is told anyway
    monkeypatch.setattr(learner_actor, "_TABLE_PAUSE_SECONDS", 60.0)
    hub = make_hub()
    hub.label(coins(0))
    rows = learn(hub, [coins(number) for number in range(1, 21)], monkeypatch, 3.0)
    assert rows.paid[0] == 1.0
    assert len(rows.paid) == 20 and sum(rows.paid) <= 2.0, "by the first wait, and by the poll under way"


def test_what_making_a_hub_raised_is_raised_by_its_start(make_hub, workshop):
    file = workshop.runs.parent / "file"
    file.touch()
    hub = make_hub(annotation_table=str(file / "labels"))
    with pytest.raises(CaptionError, match="cannot be opened"):
        first_answer(hub.handle.start.remote(0), "the hub")
    assert hub.ask("notes") == [], "its warnings can still be asked for"


def test_labels_pay_from_the_start_where_a_resumed_run_has_its_delay_behind_it(make_hub):
    hub = make_hub(annotation__delay_steps=200)
    hub.label(coins(1))
    assert pays(hub.ask("table_after", -1, 0.0), [1]) == [0.0]
    state = hub.ask("state")
    for env_steps, paid in ((199, 0.0), (200, 1.0)):
        resumed = make_hub(desk_state=state, annotation__delay_steps=200)
        resumed.ask("start", env_steps)
        assert pays(resumed.ask("table_after", -1, 0.0), [1]) == [paid]


def test_a_resumed_hub_pays_by_the_reward_model_of_the_checkpoint_before_that_has_begun(make_hub):
    changes = {
        "rewards__intrinsic": {"kind": "classification", "coefficient": 0.1, "minimum_keys": 1},
        "reward_model": {"members": 1, "hidden": [16], "held_out_share": 0.0, "label_batch": 1},
    }
    hub = make_hub(**changes)
    hub.label(*(CaptionText(text=text, keys=(KeyText(text=text, askable=True),)) for text in ("A door.", "A wall.")))
    learner = make_reward_learner(hub.stores)
    learner.learn(hub.ask("training_data", -1, 0.0))
    model = {name: tensor.numpy() for name, tensor in learner.state_dict().items()}
    resumed = make_hub(desk_state=hub.ask("state"), **changes)
    resumed.ask("start", 0)
    before = resumed.ask("table_after", -1, 0.0)
    assert pays(before, [1, 2]) == [0.0, 0.0], "without scores"
    tell_learnt_scores(resumed.stores, resumed.handle, SimpleNamespace(tensors={"reward_model": model}))
    table = resumed.ask("table_after", before.version, 0.0)
    assert table is not None and max(pays(table, [1, 2])) > 0.0
    tell_learnt_scores(resumed.stores, resumed.handle, SimpleNamespace(tensors={}))  # a model that has learnt nothing
    assert resumed.ask("table_after", table.version, 0.0) is None
