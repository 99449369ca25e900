"""Minari both ways: what Onibi exports Minari reads, what Minari's users recorded Onibi draws from."""

from __future__ import annotations

import os
import sys
import warnings

import gymnasium
import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer

from onibi.platform.errors import ConfigError, SegmentError, SpecError
from onibi.platform.fragment import CaptionText
from onibi.platform.replay.datasets.minari_export import dataset_id, export_minari, nest, spaces_of
from onibi.platform.replay.datasets.minari_import import _Source, find_minari, import_minari
from onibi.platform.replay.datasets.row_columns import row_columns
from onibi.platform.replay.log.log_reader import ReplayLog
from onibi.platform.replay.schema import observation_specs
from onibi.platform.spec import ReplaySpec

CARTPOLE_SEEDS = range(3)


@pytest.fixture(autouse=True)
def minari_root(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def played(env, seed: int) -> EpisodeBuffer:
    """One episode of random actions, as Minari's users record them."""
    observation, _ = env.reset(seed=seed)
    env.action_space.seed(seed)
    observations, actions, rewards, terminations, truncations = [observation], [], [], [], []
    while not (terminations and (terminations[-1] or truncations[-1])):
        actions.append(env.action_space.sample())
        observation, reward, terminated, truncated, _ = env.step(actions[-1])
        observations.append(observation)
        rewards.append(reward)
        terminations.append(terminated)
        truncations.append(truncated)
    if isinstance(env.observation_space, spaces.Dict):
        observations = {key: np.stack([each[key] for each in observations]) for key in observations[0]}
    else:
        observations = np.stack(observations)
    return EpisodeBuffer(
        observations=observations,
        actions=np.array(actions),
        rewards=np.array(rewards),
        terminations=np.array(terminations),
        truncations=np.array(truncations),
    )


def recorded(env, name: str, **changes) -> list[EpisodeBuffer]:
    episodes = [played(env, seed) for seed in CARTPOLE_SEEDS]
    given = {"observation_space": env.observation_space, "action_space": env.action_space} | changes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that nobody named an author, a permalink…
        minari.create_dataset_from_buffers(dataset_id=name, buffer=episodes, **given)
    return episodes


def test_minari_reads_every_whole_episode_of_a_log(log, logs, tmp_path):
    transfer = export_minari(log, str(tmp_path / "corridor-v2"), pieces="ended")
    dataset = minari.MinariDataset(tmp_path / "corridor-v2" / "data")
    lanes = logs.two_lanes()
    assert dataset.id == "corridor-v2"
    assert (transfer.episodes, dataset.total_episodes, dataset.total_steps) == (3, 3, 7 + 4 + 9)
    expected = {1: lanes[0].rows[:8], 2: lanes[0].rows[8:13], 12: lanes[1].rows[7:17]}
    for episode, said in zip(dataset, dataset.storage.get_episode_metadata(range(3)), strict=True):
        rows = expected[said["onibi_episode_id"]]
        for key, name in (("image", "observation.inner.image"), ("compass", "observation.inner.compass")):
            np.testing.assert_array_equal(episode.observations["inner"][key], [row[name] for row in rows])
        vector = np.stack([row["observation.vector"] for row in rows])
        assert episode.observations["vector"].tobytes() == vector.tobytes()
        np.testing.assert_array_equal(episode.actions, [row["action"] for row in rows[:-1]])
        np.testing.assert_array_equal(episode.rewards, [row["reward"] for row in rows[:-1]])
        np.testing.assert_array_equal(episode.terminations, [row["terminated"] for row in rows[:-1]])
        np.testing.assert_array_equal(episode.truncations, [row["truncated"] for row in rows[:-1]])
        texts = ["", *(logs.CAPTIONS[int(row["caption_id"])].text if row["caption_id"] else "" for row in rows[:-1])]
        assert [text.decode() for text in episode.infos["caption"]] == texts
        np.testing.assert_array_equal(episode.infos["logits"][1:], [row["logits"] for row in rows[:-1]])
        assert dataset.observation_space["inner"]["image"].contains(episode.observations["inner"]["image"][0])


def test_episodes_that_were_cut_are_marked_truncated_or_left_out(log, logs, tmp_path):
    begun = export_minari(log, str(tmp_path / "begun"), pieces="begun")
    dataset = minari.MinariDataset(tmp_path / "begun" / "data")
    lengths = {
        said["onibi_episode_id"]: (len(episode), bool(episode.truncations[-1]), bool(said["onibi_cut"]))
        for episode, said in zip(dataset, dataset.storage.get_episode_metadata(range(5)), strict=True)
    }
    # Episode 3 has 5 step rows and no observation after the fifth; episode 11 has a final row and no flag.
    assert lengths == {
        1: (7, False, False),
        2: (4, True, False),
        3: (4, True, True),
        11: (6, True, True),
        12: (9, False, False),
    }
    assert dataset.id == "begun-v0"
    assert any(note.startswith("2 episodes were cut off") for note in begun.notes)
    assert any(note.startswith("1 steps left out") for note in begun.notes)


def test_an_episode_without_its_beginning_is_exported_only_when_asked_for(logs, tmp_path):
    lane = logs.Lane(0, np.random.default_rng(1))
    lane.episode(5, 6, first_step=30)
    lane.episode(6, 3)
    logs.seal(str(tmp_path / "log"), [lane], segments=2)
    log = ReplayLog(tmp_path / "log")
    some = export_minari(log, str(tmp_path / "some"), pieces="begun")
    every = export_minari(log, str(tmp_path / "every"), pieces="all")
    assert (some.episodes, every.episodes) == (1, 2)
    assert some.notes[0].startswith("1 episodes left out: their beginning is not in the log")


@pytest.mark.parametrize("segments", [1, 3, 11])
def test_a_log_comes_back_from_minari_in_all_but_its_places(logs, tmp_path, segments):
    logs.seal(str(tmp_path / "log"), logs.two_lanes(), segments=segments)
    log = ReplayLog(tmp_path / "log")
    export_minari(log, str(tmp_path / "minari-v0"), pieces="begun")
    transfer = import_minari(find_minari(str(tmp_path / "minari-v0")), str(tmp_path / "again"), lanes=2)
    again = ReplayLog(tmp_path / "again")
    assert again.verify() == []
    assert again.spec == log.spec
    assert again.captions().equals(log.captions())
    before, after = row_columns(log.spec, logs.rows(log)), row_columns(log.spec, logs.rows(again))
    order = {}
    for name, columns in (("before", before), ("after", after)):
        order[name] = np.lexsort((columns["step"], columns["episode_id"]))
    # The one row that cannot come back: episode 3's last, whose step leads to no observation, is now its final row.
    last = (before["episode_id"] == 3) & (before["step"] == 4)
    for name in before:
        kept, found = before[name].copy(), after[name]
        if not name.startswith("observation") and name not in ("episode_id", "step"):
            kept[last] = 1 if name == "role" else 0
        assert kept[order["before"]].tobytes() == found[order["after"]].tobytes(), name
    assert transfer.rows == again.rows == 35
    figures = {row["episode_id"]: row for row in again.episodes().to_pylist()}
    for row in log.episodes().to_pylist():
        assert {**row, "extra": None, "lane": None} == {**figures[row["episode_id"]], "extra": None, "lane": None}


def test_a_dataset_recorded_with_minari_becomes_a_log(tmp_path):
    env = gymnasium.make("CartPole-v1")
    episodes = recorded(env, "cartpole/random-v0")
    import_minari(find_minari("cartpole/random-v0"), str(tmp_path / "log"), lanes=1)
    log = ReplayLog(tmp_path / "log")
    columns = row_columns(log.spec, log.read(log.segments[0]))
    assert log.verify() == []
    assert log.spec.actions == 2
    begin = 0
    for number, episode in enumerate(episodes):
        steps = len(episode.rewards)
        rows = slice(begin, begin + steps + 1)
        np.testing.assert_array_equal(columns["observation"][rows], episode.observations)
        np.testing.assert_array_equal(columns["action"][rows], [*episode.actions, 0])
        np.testing.assert_array_equal(columns["reward"][rows], [*episode.rewards, 0])
        np.testing.assert_array_equal(columns["terminated"][rows], [*episode.terminations, 0])
        np.testing.assert_array_equal(columns["role"][rows], [0] * steps + [1])
        np.testing.assert_array_equal(columns["step"][rows], range(steps + 1))
        np.testing.assert_array_equal(columns["episode_id"][rows], number)
        begin += steps + 1
    assert begin == log.rows
    assert log.episodes().column("length").to_pylist() == [len(episode.rewards) for episode in episodes]


class Rooms(gymnasium.Env):
    """A Dict observation, actions that begin at 3."""

    observation_space = spaces.Dict(
        {"place": spaces.Discrete(9), "view": spaces.Box(0, 255, (4, 4), np.uint8), "sound": spaces.Box(-1, 1, (2,))}
    )
    action_space = spaces.Discrete(2, start=3)

    def seen(self):
        return {
            "place": np.int64(self.place),
            "view": np.full((4, 4), self.place, np.uint8),
            "sound": np.array([self.place / 9, -1], np.float32),
        }

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = 0
        return self.seen(), {}

    def step(self, action):
        self.place += int(action) - 2
        return self.seen(), float(action), self.place >= 7, False, {}


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_dict_observations_and_shifted_actions_are_taken_in(tmp_path, data_format):
    env = Rooms()
    episodes = recorded(env, "rooms-v0", data_format=data_format)
    transfer = import_minari(find_minari("rooms-v0"), str(tmp_path / "log"), lanes=2)
    log = ReplayLog(tmp_path / "log")
    table = log.read(log.segments[0])
    columns = row_columns(log.spec, table)
    assert transfer.notes == ("actions shifted by -3, so that they begin at 0",)
    assert table.column("lane").to_pylist() == [
        number % 2 for number, episode in enumerate(episodes) for _ in range(len(episode.rewards) + 1)
    ]
    for key in ("place", "view", "sound"):
        stacked = np.concatenate([episode.observations[key] for episode in episodes])
        np.testing.assert_array_equal(columns[f"observation.{key}"], stacked)
    np.testing.assert_array_equal(
        columns["action"], np.concatenate([[*(action - 3 for action in episode.actions), 0] for episode in episodes])
    )


def test_continuous_actions_go_in_and_out_again(tmp_path):
    env = gymnasium.make("Pendulum-v1", max_episode_steps=5)
    episodes = recorded(env, "pendulum-v0")
    import_minari(find_minari("pendulum-v0"), str(tmp_path / "log"), lanes=1)
    log = ReplayLog(tmp_path / "log")
    assert (log.spec.actions, log.spec.action.shape) == (0, (1,))
    assert (log.spec.action_low, log.spec.action_high) == ((-2.0,), (2.0,))
    expected = np.concatenate([[*episode.actions[:, 0], 0.0] for episode in episodes]).astype(np.float32)
    stored = [row_columns(log.spec, log.read(segment))["action"] for segment in log.segments]
    assert np.array_equal(np.concatenate(stored)[:, 0], expected), "the final row's is 0"
    export_minari(log, str(tmp_path / "again-v0"), pieces="ended")
    again = minari.MinariDataset(tmp_path / "again-v0" / "data")
    assert again.spec.action_space == spaces.Box(-np.inf, np.inf, (1,), np.float32)
    for mine, theirs in zip(again.iterate_episodes(), episodes, strict=True):
        assert np.array_equal(mine.actions, theirs.actions)
    import_minari(find_minari(str(tmp_path / "again-v0")), str(tmp_path / "log2"), lanes=1)
    assert ReplayLog(tmp_path / "log2").spec == log.spec


class Faulty(gymnasium.Env):
    """Its third step pays what is no number."""

    observation_space, action_space = spaces.Box(-1, 1, (1,)), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(1, np.float32), float("nan") if self.steps == 3 else 0.0, self.steps == 5, False, {}


def test_an_episode_whose_rewards_are_not_finite_is_refused_by_name(tmp_path):
    recorded(Faulty(), "faulty-v0")
    with pytest.raises(ConfigError, match=r"episode 0 has rewards that are not finite .* first at step 2"):
        import_minari(find_minari("faulty-v0"), str(tmp_path / "log"), lanes=1)


def test_an_episode_that_ends_before_its_last_step_is_refused_by_name(tmp_path):
    recorded(gymnasium.make("CartPole-v1", max_episode_steps=5), "early-v0")
    with h5py.File(find_minari("early-v0") / "main_data.hdf5", "r+") as file:
        file["episode_0"]["truncations"][1] = True
    with pytest.raises(ConfigError, match="episode 0 of 5 steps has ended with step 1 by its flags"):
        import_minari(find_minari("early-v0"), str(tmp_path / "log"), lanes=1)


def test_actions_outside_of_the_action_space_are_refused(tmp_path):
    recorded(Rooms(), "outside-v0", action_space=spaces.Discrete(1, start=3))
    with pytest.raises(ConfigError, match=r"episode 0 has actions that are not finite or not in its action space"):
        import_minari(find_minari("outside-v0"), str(tmp_path / "log"), lanes=1)


def test_actions_that_are_neither_discrete_nor_floats_are_refused(tmp_path):
    env = gymnasium.make("CartPole-v1", max_episode_steps=5)
    recorded(env, "odd-v0", action_space=spaces.MultiDiscrete([2]))
    with pytest.raises(SpecError, match="a log holds Discrete ones, or a Box of floats"):
        import_minari(find_minari("odd-v0"), str(tmp_path / "log"), lanes=1)


def test_what_is_no_dataset_is_not_found_or_refused(tmp_path):
    assert find_minari("nothing-v0") is None
    assert find_minari(str(tmp_path)) is None
    env = gymnasium.make("CartPole-v1")
    recorded(env, "broken-v0")
    (find_minari("broken-v0") / "main_data.hdf5").write_bytes(b"no file of HDF5")
    with pytest.raises(ConfigError, match="cannot be read"):
        import_minari(find_minari("broken-v0"), str(tmp_path / "log"), lanes=1)
    (find_minari("broken-v0") / "metadata.json").write_text("{")
    with pytest.raises(ConfigError, match="not readable as a Minari dataset"):
        import_minari(find_minari("broken-v0"), str(tmp_path / "log"), lanes=1)


def test_a_damaged_segment_ends_a_minari_export_and_nothing_is_left(log, tmp_path):
    os.truncate(log.segments[2].rows_path, 100)
    with pytest.raises(SegmentError, match="rows-0000-00000002"):
        export_minari(log, str(tmp_path / "out" / "minari-v0"), pieces="begun")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_missing_package_is_named_with_the_extra_that_brings_it(log, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(ConfigError, match=r"onibi\[datasets\]"):
        export_minari(log, str(tmp_path / "minari-v0"), pieces="begun")


@pytest.mark.parametrize(
    ("name", "expected"), [("a-v3", "a-v3"), ("my run", "my-run-v0"), ("...", "onibi-v0"), ("run.2", "run-2-v0")]
)
def test_a_dataset_is_named_after_its_folder_as_minari_allows_it(name, expected):
    assert dataset_id(name) == expected


def test_a_bare_leaf_is_the_observation_and_beside_others_a_key_of_its_own():
    assert nest({"observation": 1}) == 1
    assert nest({"observation": 1, "observation.caption_counts": 2}) == {"observation": 1, "caption_counts": 2}
    assert nest({"observation.a.b": 1, "observation.a.c": 2}) == {"a": {"b": 1, "c": 2}}
    assert nest({"image": 1, "arm.pose": 2, "base.pose": 3}) == {"image": 1, "arm": {"pose": 2}, "base": {"pose": 3}}
    with pytest.raises(SpecError, match="place of another"):
        nest({"observation": 1, "observation.observation": 2})


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64", "uint64"])
def test_the_whole_range_of_an_integer_stays_the_whole_range(dtype):
    """2**63 - 1 and 2**64 - 1 are no floats: the column's bound is the next one above, which the type does not hold."""
    whole = spaces.Box(np.iinfo(dtype).min, np.iinfo(dtype).max, (2,), np.dtype(dtype))
    spec = ReplaySpec(observation=observation_specs(whole), actions=2)
    assert spaces_of(spec, {})[0] == whole


def test_captions_that_a_dataset_brings_are_numbered_without_a_look_at_all_of_them():
    class Captions(dict):
        looks = 0

        def __iter__(self):
            self.looks += 1
            return super().__iter__()

    captions = Captions({3: CaptionText("a key", ())})
    source = _Source(None, None, None, 0, None, captions)
    looks = captions.looks
    assert source.caption_ids(["a door", "", "a key", b"a wall", "a door"]).tolist() == [4, 0, 3, 5, 4]
    assert [captions[number].text for number in (3, 4, 5)] == ["a key", "a door", "a wall"]
    assert captions.looks == looks
