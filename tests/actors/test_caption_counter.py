from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onibi.actors.caption_counter import CaptionCounter, bag_bit
from onibi.platform.annotation.captions import EMPTY_TEXT
from onibi.platform.errors import CaptionError
from onibi.platform.fragment import CaptionText, KeyText


def caption(*keys, askable=True):
    return CaptionText("  ".join(keys), tuple(KeyText(key, askable) for key in keys))


WALL = caption("It's a wall.", askable=False)


def test_a_key_is_counted_from_1_in_each_lane_by_itself():
    counter = CaptionCounter(2, 2)
    assert counter.count([caption("a", "b"), EMPTY_TEXT]).tolist() == [[1, 1], [0, 0]]
    assert counter.count([caption("b"), caption("b")]).tolist() == [[2, 0], [1, 0]]
    assert counter.count([EMPTY_TEXT, EMPTY_TEXT]).tolist() == [[0, 0], [0, 0]]
    assert counter.count([caption("b", "a"), caption("a", "b")]).tolist() == [[3, 2], [1, 2]]


def test_a_new_episode_counts_anew_in_its_lane_alone():
    counter = CaptionCounter(2, 1)
    counter.count([caption("a"), caption("a")])
    counter.reset(0)
    assert counter.feature()[0].tolist() == [0.0] * 65
    assert counter.count([caption("a"), caption("a")]).tolist() == [[1], [2]]


def test_lanes_that_are_not_named_keep_their_counts_and_feature():
    counter = CaptionCounter(2, 1)
    counter.count([caption("a"), caption("a")])
    before = counter.feature()
    assert counter.count([caption("a"), caption("a")], np.array([True, False])).tolist() == [[2], [0]]
    assert counter.feature()[1].tolist() == before[1].tolist()
    assert counter.count([caption("a"), caption("a")]).tolist() == [[3], [2]]


def test_the_feature_shows_log_counts_of_what_is_present_and_a_bag_of_what_was_heard():
    counter = CaptionCounter(1, 2)
    counter.count([caption("a", "b")])
    counter.count([caption("b")])
    feature = counter.feature()
    assert feature.dtype == np.float32
    assert feature[0, :2] == pytest.approx(np.array([np.log2(3), 0]))  # "b" the second time; "a" is not present now
    assert np.flatnonzero(feature[0, 2:]).tolist() == sorted({bag_bit("a"), bag_bit("b")})
    counter.count([EMPTY_TEXT])
    assert counter.feature()[0, :2].tolist() == [0, 0]
    assert counter.feature()[0, 2:].sum() == len({bag_bit("a"), bag_bit("b")})


def test_never_asked_keys_are_counted_and_do_not_show():
    counter = CaptionCounter(1, 1)
    counter.count([WALL])
    assert counter.count([WALL]).tolist() == [[2]]
    assert not counter.feature().any()


def test_counts_saturate_and_do_not_start_again():
    counter = CaptionCounter(1, 1)
    for _ in range(65_540):
        counts = counter.count([WALL])
    assert counts.tolist() == [[65_535]]


def test_what_is_returned_belongs_to_the_caller():
    counter = CaptionCounter(1, 1)
    counts, feature = counter.count([caption("a")]), counter.feature()
    counts[:], feature[:] = 9, 9
    assert counter.count([caption("a")]).tolist() == [[2]]
    assert counter.feature().max() < 9


def test_wrong_numbers_of_captions_or_keys_are_refused():
    counter = CaptionCounter(2, 1)
    with pytest.raises(CaptionError, match="1 captions for 2 lanes"):
        counter.count([EMPTY_TEXT])
    with pytest.raises(CaptionError, match="has 2 keys"):
        counter.count([caption("a", "b"), EMPTY_TEXT])


steps = st.lists(
    st.tuples(
        st.lists(st.lists(st.sampled_from("abcd"), max_size=2, unique=True), min_size=3, max_size=3),
        st.lists(st.booleans(), min_size=3, max_size=3),
        st.lists(st.booleans(), min_size=3, max_size=3),
    ),
    max_size=25,
)


@settings(deadline=None)
@given(steps)
def test_counts_and_feature_equal_those_of_plain_dictionaries(drawn):
    counter = CaptionCounter(3, 2)
    heard = [{}, {}, {}]
    present = [[], [], []]
    for texts, resets, lanes in drawn:
        for lane in np.flatnonzero(resets):
            counter.reset(int(lane))
            heard[lane], present[lane] = {}, []
        counts = counter.count([caption(*keys) for keys in texts], np.array(lanes))
        for lane, keys in enumerate(texts):
            if not lanes[lane]:
                assert counts[lane].tolist() == [0, 0]
                continue
            for key in keys:
                heard[lane][key] = heard[lane].get(key, 0) + 1
            present[lane] = keys
            assert counts[lane].tolist() == [heard[lane][key] for key in keys] + [0] * (2 - len(keys))
        feature = counter.feature()
        for lane in range(3):
            shown = [np.log2(1 + heard[lane][key]) for key in present[lane]]
            assert feature[lane, :2] == pytest.approx(np.array(shown + [0] * (2 - len(shown))))
            assert set(np.flatnonzero(feature[lane, 2:])) == {bag_bit(key) for key in heard[lane]}
