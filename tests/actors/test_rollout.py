"""Rollouts against a plain reference that steps single environments one after the other."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from onibi.platform.annotation.captions import text_hash
from onibi.platform.errors import EnvironmentFault
from onibi.platform.policy import Weights, WeightsVersion
from onibi.platform.spec import ROLE_FINAL, ROLE_STEP

ENVS, STEPS = 3, 60
MODES = list(AutoresetMode)
NOBODY = lambda version: None  # noqa: E731


def reference(scripted, lane: int, vector_steps: int, mode: AutoresetMode):
    """Rows of one lane and its finished episodes, as docs/replay.md tells them."""
    env_class, _, choose = scripted
    env = env_class(lane)
    rows, episodes = [], []
    observation, info = env.reset()
    observation = observation.copy()
    episode, step, total = 0, 0, 0.0
    heard = Counter([info["caption"]] if "caption" in info else [])
    resetting = False

    def final_row():
        return {
            "observation": observation.copy(),
            "action": 0,
            "reward": 0.0,
            "terminated": 0,
            "truncated": 0,
            "role": ROLE_FINAL,
            "episode": episode,
            "step": step,
            "caption": "",
            "count": 0,
        }

    for _ in range(vector_steps):
        if resetting:
            rows.append(final_row())
        else:
            action = int(choose(observation))
            before = observation.copy()
            observation, reward, terminated, truncated, info = env.step(action)
            caption = info.get("caption", "")
            # "You find 2 coins." and "You find 1 coins." are one key: numbers are normalised.
            key = "".join("#" if letter.isdigit() else letter for letter in caption)
            heard[key] += bool(key)
            rows.append(
                {
                    "observation": before,
                    "action": action,
                    "reward": reward,
                    "terminated": int(terminated),
                    "truncated": int(truncated and not terminated),
                    "role": ROLE_STEP,
                    "episode": episode,
                    "step": step,
                    "caption": caption,
                    "count": heard[key] if key else 0,
                }
            )
            observation = observation.copy()
            step += 1
            total += reward
            if not (terminated or truncated):
                continue
            episodes.append((episode, total, step, terminated, {"success": float(terminated)}))
            if mode is AutoresetMode.NEXT_STEP:
                resetting = True
                continue
            rows.append(final_row())
        resetting = False
        observation, info = env.reset()
        observation = observation.copy()
        episode, step, total = episode + 1, 0, 0.0
        heard = Counter([info["caption"]] if "caption" in info else [])
    head = {"observation": observation, "step": step, "episode": episode}
    return rows, episodes, head


def collected(rollout, fragments: int):
    """Rows of each lane over all fragments, the fragments, and the texts by hash."""
    texts = {0: ""}
    lanes = [[] for _ in range(ENVS)]
    taken = []
    for _ in range(fragments):
        fragment = rollout.collect(NOBODY)
        taken.append(fragment)
        for caption in fragment.new_captions:
            assert text_hash(caption.text) not in texts, "a text is sent once"
            texts[text_hash(caption.text)] = caption.text
        for lane in range(ENVS):
            for row in range(fragment.rows_per_lane[lane]):
                values = {name: column[lane, row].copy() for name, column in fragment.columns.items()}
                values["caption"] = texts[int(values.pop("caption_hash"))]
                lanes[lane].append(values)
    rollout.close()
    return lanes, taken


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
@pytest.mark.parametrize("fragment_steps", [1, 7, STEPS])
def test_rows_are_those_that_single_environments_give(mode, fragment_steps, scripted, make_scripted_env, make_rollout):
    fragments = -(-STEPS // fragment_steps)
    env = make_scripted_env(mode, ENVS)
    lanes, _ = collected(make_rollout(env, fragment_steps=fragment_steps), fragments)
    for lane, rows in enumerate(lanes):
        expected, _, _ = reference(scripted, lane, fragments * fragment_steps, mode)
        names = {}
        assert len(rows) == len(expected) > STEPS - 1
        for row, wanted in zip(rows, expected, strict=True):
            episode = names.setdefault(int(row["episode_id"]), len(names))
            found = {
                "observation": row["observation"].tolist(),
                "action": int(row["action"]),
                "reward": float(row["reward"]),
                "terminated": int(row["terminated"]),
                "truncated": int(row["truncated"]),
                "role": int(row["role"]),
                "episode": episode,
                "step": int(row["step"]),
                "caption": row["caption"],
                "count": int(row["caption_count"][0]),
            }
            assert found == {**wanted, "observation": wanted["observation"].tolist()}


def test_the_reference_meets_what_the_rollout_must_tell_apart(scripted):
    rows = [row for lane in range(ENVS) for row in reference(scripted, lane, STEPS, AutoresetMode.NEXT_STEP)[0]]
    assert {row["terminated"] for row in rows} == {row["truncated"] for row in rows} == {0, 1}
    assert {row["role"] for row in rows} == {ROLE_STEP, ROLE_FINAL}
    assert any(row["terminated"] and row["caption"] == "You fall." for row in rows), "a caption of the last action"
    assert any(row["step"] == 0 and row["caption"] == "It rains." and row["count"] == 2 for row in rows), (
        "the first observation's caption was counted before"
    )
    assert any(row["truncated"] and not row["caption"] for row in rows), "a last action without a caption"


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_each_fragment_goes_on_with_the_head_of_the_one_before(mode, scripted, make_scripted_env, make_rollout):
    _, fragments = collected(make_rollout(make_scripted_env(mode, ENVS), fragment_steps=4), 15)
    for before, after in itertools.pairwise(fragments):
        for lane in range(ENVS):
            head = before.rows_per_lane[lane]
            for name in ("observation", "observation.caption_counts", "episode_id", "step"):
                assert np.array_equal(before.columns[name][lane, head], after.columns[name][lane, 0])
            assert not any(
                before.columns[name][lane, head].any()
                for name in ("action", "reward", "terminated", "truncated", "role", "caption_hash", "caption_count")
            )
    _, _, wanted = reference(scripted, 1, 60, mode)
    last = fragments[-1]
    assert last.columns["observation"][1, last.rows_per_lane[1]].tolist() == wanted["observation"].tolist()
    assert last.columns["step"][1, last.rows_per_lane[1]] == wanted["step"]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_finished_episodes_are_told_once_with_return_length_and_figures(
    mode, scripted, make_scripted_env, make_rollout
):
    lanes, fragments = collected(make_rollout(make_scripted_env(mode, ENVS), fragment_steps=6), 10)
    for lane in range(ENVS):
        numbers = {}
        for row in lanes[lane]:
            numbers.setdefault(int(row["episode_id"]), len(numbers))
        found = [
            (numbers[each.episode_id], each.episode_return, each.length, each.terminated, each.extra)
            for fragment in fragments
            for each in fragment.episodes
            if each.lane == lane
        ]
        assert found == reference(scripted, lane, 60, mode)[1]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_a_policys_state_begins_anew_with_each_episode(mode, scripted, make_scripted_env, make_rollout):
    met = []

    class Counting(scripted[1]):
        """Its state counts the steps of the episode, which the observation tells, too."""

        def act(self, observation, state, rng):
            met.append((state[:, 0].tolist(), observation["observation"][:, 2].tolist()))
            return super().act(observation, state, rng)

    collected(make_rollout(make_scripted_env(mode, ENVS), policy=Counting(), fragment_steps=STEPS), 1)
    assert len(met) == STEPS
    assert all(counted == told for counted, told in met)
    assert {0.0, 1.0, 2.0} < {count for counted, _ in met for count in counted}


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_env_steps_are_the_rows_with_an_action_and_sequences_have_no_holes(mode, make_scripted_env, make_rollout):
    lanes, fragments = collected(make_rollout(make_scripted_env(mode, ENVS), fragment_steps=6), 10)
    steps = sum(int(row["role"]) == ROLE_STEP for rows in lanes for row in rows)
    assert sum(fragment.env_steps for fragment in fragments) == steps
    assert [fragment.sequence for fragment in fragments] == list(range(5, 15))
    assert {(fragment.actor, fragment.incarnation) for fragment in fragments} == {(3, 2)}
    assert (steps == ENVS * 60) == (mode is not AutoresetMode.NEXT_STEP), "a reset step is no env step"


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_episode_ids_are_unique_over_lanes_actors_incarnations_and_sessions(mode, make_scripted_env, make_rollout):
    from onibi.actors.rollout import RolloutIdentity

    seen = Counter()
    for actor, incarnation, session in [(0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 1, 1), (4095, 4095, 4095)]:
        identity = RolloutIdentity(actor=actor, incarnation=incarnation, next_sequence=0, seed=1, session=session)
        rollout = make_rollout(make_scripted_env(mode, ENVS), fragment_steps=50, identity=identity)
        lanes, _ = collected(rollout, 1)
        for rows in lanes:
            seen.update({int(row["episode_id"]) for row in rows})
    assert len(seen) > 60
    assert max(seen.values()) == 1
    assert min(seen) >= 0


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_the_counts_feature_tells_what_was_heard_before_the_action(mode, make_scripted_env, make_rollout):
    """Its first figure is log2(1 + N) of the caption of o_k: what row k − 1 was paid by."""
    lanes, _ = collected(make_rollout(make_scripted_env(mode, ENVS), fragment_steps=10), 6)
    for rows in lanes:
        for before, after in itertools.pairwise(rows):
            feature = after["observation.caption_counts"]
            if before["role"] == ROLE_STEP:
                assert feature[0] == np.float32(np.log2(1 + int(before["caption_count"][0])))
            else:
                rains = after["observation"][1] % 3 == 0
                assert feature[0] == float(rains), "log2(1 + 1) where an episode begins with words"
                assert feature[1:].sum() == float(rains)


def test_weights_are_looked_for_in_their_period_and_stamped_on_the_rows_they_chose(
    scripted, make_scripted_env, make_rollout
):
    _, policy_class, _ = scripted
    policy, asked = policy_class(), []

    def poll(version):
        asked.append(version)
        return Weights(WeightsVersion(len(asked)), {}) if len(asked) % 2 == 0 else None

    rollout = make_rollout(
        make_scripted_env(AutoresetMode.SAME_STEP, 1), policy=policy, fragment_steps=10, weights_period_steps=3
    )
    fragment = rollout.collect(poll)
    rollout.close()
    assert asked == [-1, -1, 2, 2]  # at steps 0, 3, 6, 9; news at the second and the fourth look
    assert policy.loaded == [2, 4]
    steps = fragment.columns["role"][0, : fragment.rows_per_lane[0]] == ROLE_STEP
    stamped = fragment.columns["policy_version"][0, : fragment.rows_per_lane[0]][steps]
    assert stamped.tolist() == [-1] * 3 + [2] * 6 + [4]


@pytest.mark.parametrize(
    ("seconds_per_look", "expected_steps"), [(1.0, 4), (0.0, 20), (0.1, 10)], ids=["slow", "fast", "between"]
)
def test_a_fragment_grows_until_its_seconds_have_passed(
    seconds_per_look, expected_steps, make_scripted_env, make_rollout
):
    ticks = [0.0]

    def clock():
        ticks[0] += seconds_per_look
        return ticks[0]

    env = make_scripted_env(AutoresetMode.NEXT_STEP, 1)
    rollout = make_rollout(env, clock=clock, fragment_steps=4, fragment_steps_max=20, fragment_seconds=0.65)
    fragment = rollout.collect(NOBODY)
    rollout.close()
    # The clock is looked at from the fifth step on only: 0.1 s a look, six looks below 0.65 s.
    assert fragment.rows_per_lane.tolist() == [expected_steps]


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED], ids=lambda mode: mode.value)
def test_the_longest_fragment_of_the_shortest_episodes_fits(mode, scripted, make_rollout):
    env_class, _, _ = scripted
    from gymnasium.vector import SyncVectorEnv

    class OneStep(env_class):
        def step(self, action):
            observation, reward, *_ = super().step(action)
            return observation, reward, True, False, {}

    env = SyncVectorEnv([lambda: OneStep(0)], autoreset_mode=mode)
    rollout = make_rollout(env, fragment_steps=9, fragment_steps_max=9)
    fragment = rollout.collect(NOBODY)
    rollout.close()
    assert fragment.rows_per_lane.tolist() == [18]
    assert fragment.columns["role"][0, :18].tolist() == [ROLE_STEP, ROLE_FINAL] * 9


def test_a_fragment_is_not_changed_by_the_next_one(make_scripted_env, make_rollout):
    rollout = make_rollout(make_scripted_env(AutoresetMode.SAME_STEP, ENVS), fragment_steps=5, fragment_steps_max=5)
    first = rollout.collect(NOBODY)
    before = {name: column.copy() for name, column in first.columns.items()}
    rollout.collect(NOBODY)
    rollout.close()
    assert all(np.array_equal(before[name], column) for name, column in first.columns.items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda result: (result[0], float("nan"), *result[2:]), "scripted: environment 0 gave the reward nan"),
        (lambda result: (result[0], float("inf"), *result[2:]), "scripted: environment 0 gave the reward inf"),
        (lambda result: (result[0] * np.nan, *result[1:]), "scripted: observation holds NaN or infinity"),
        (lambda result: 1 / 0, "scripted raised in actor 3: ZeroDivisionError"),
        (lambda result: (*result[:4], {"caption": 7}), "must be text"),
        (lambda result: (*result[:2], *result[3:]), "look at what it returns: reset() gives (observation, info)"),
        (lambda result: (result[0][:2], *result[1:]), "check_env tells more"),
    ],
    ids=["NaN reward", "infinite reward", "NaN observation", "raises", "caption no text", "four values", "narrow"],
)
def test_what_an_environment_breaks_is_told_with_its_name(change, said, scripted, make_rollout):
    from gymnasium.vector import SyncVectorEnv

    from onibi.platform.errors import OnibiError

    env_class, _, _ = scripted

    class Broken(env_class):
        def step(self, action):
            result = super().step(action)
            return change(result) if self._step == 2 else result

    rollout = make_rollout(SyncVectorEnv([lambda: Broken(0)], autoreset_mode=AutoresetMode.NEXT_STEP))
    with pytest.raises(OnibiError) as caught:
        rollout.collect(NOBODY)
    rollout.close()
    assert said in str(caught.value)


def test_the_users_own_fault_comes_without_advice_on_what_is_returned(scripted, make_rollout):
    from gymnasium.vector import SyncVectorEnv

    class Raises(scripted[0]):
        def step(self, action):
            raise KeyError("sensor")

    rollout = make_rollout(SyncVectorEnv([lambda: Raises(0)], autoreset_mode=AutoresetMode.NEXT_STEP))
    with pytest.raises(EnvironmentFault, match=r"KeyError: 'sensor' \(.*test_rollout.py:\d+\)$"):
        rollout.collect(NOBODY)
    rollout.close()


@pytest.mark.parametrize("place", [1, 2, 3])
def test_one_reward_and_end_for_each_environment_is_asked_of_native_ones(place, make_scripted_env, make_rollout):
    env = make_scripted_env(AutoresetMode.NEXT_STEP, 1)
    step = env.step

    def columns(actions):
        result = list(step(actions))
        result[place] = result[place][:, None]
        return tuple(result)

    env.step = columns
    rollout = make_rollout(env)
    with pytest.raises(EnvironmentFault, match=r"have the shapes .*\(1, 1\).*; allowed: \(1,\), one for each"):
        rollout.collect(NOBODY)
    rollout.close()


def test_same_step_without_final_observations_is_refused(scripted, make_scripted_env, make_rollout):
    env = make_scripted_env(AutoresetMode.SAME_STEP, 1)
    step = env.step

    def forgetful(actions):
        *result, infos = step(actions)
        return (*result, {key: value for key, value in infos.items() if key != "final_obs"})

    env.step = forgetful
    rollout = make_rollout(env)
    with pytest.raises(EnvironmentFault, match=r"declares SAME_STEP autoreset but .* without info"):
        rollout.collect(NOBODY)
    rollout.close()
