"""What is known of each caption key: its valid labels, their mean score, and which votes are still to be had."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from onibi.platform.annotation.captions import CaptionTable
from onibi.platform.annotation.labels import Judge, Label, Preference, PreferenceValue
from onibi.platform.rewards.table import LABELLED, NEVER_ASKED, UNLABELLED
from onibi.platform.rewards.training import LabelledKeys

_PREFERENCES = {PreferenceValue.FIRST: 1.0, PreferenceValue.SECOND: 0.0, PreferenceValue.TIE: 0.5}


class KeyLabels:
    """Labels by key index. Keys are added in order and never leave.

        score[key] = mean over judges and votes of the scores of the key's valid labels

    Args:
        judges: whose labels count together.
        votes: independent labels that each of them shall give a key.
        any_prompt: a key that none of ``judges`` labelled takes the newest label of another, and is not asked.
    """

    def __init__(self, judges: Sequence[Judge], votes: int, *, any_prompt: bool) -> None:
        self._judges = {judge: number for number, judge in enumerate(judges)}
        self._votes = votes
        self._any_prompt = any_prompt
        self._labels: list[dict[tuple[Judge, int], Label]] = []  # of each key; the newest last
        self._status = np.zeros(256, np.uint8)
        self._score = np.zeros(256, np.float32)
        self._missing = np.zeros((len(judges), 256), np.int32)  # votes
        self.duplicates = 0
        """Labels so far that answered a question which had its answer."""

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def status(self) -> NDArray[np.uint8]:
        """[keys], ``LABELLED``, ``UNLABELLED`` or ``NEVER_ASKED``; a view."""
        return self._status[: len(self._labels)]

    @property
    def score(self) -> NDArray[np.float32]:
        """[keys], mean score, 0 where there is no label; a view."""
        return self._score[: len(self._labels)]

    def counts(self, label: Label) -> bool:
        """Whether a label can count in this run."""
        return self._any_prompt or label.judge in self._judges

    def append(self, askable: bool, labels: Iterable[Label]) -> None:
        """The next key, with the valid labels that there are of it."""
        key = len(self._labels)
        if key == len(self._status):
            self._status = np.concatenate([self._status, np.zeros_like(self._status)])
            self._score = np.concatenate([self._score, np.zeros_like(self._score)])
            self._missing = np.concatenate([self._missing, np.zeros_like(self._missing)], axis=1)
        self._labels.append({})
        self._status[key] = UNLABELLED if askable else NEVER_ASKED
        self._missing[:, key] = self._votes if askable else 0
        for label in labels:
            self.add(key, label)

    def add(self, key: int, label: Label) -> bool:
        """A valid label of a key. Returns: whether status or score changed."""
        if self._status[key] == NEVER_ASKED or not self.counts(label):
            return False
        known = self._labels[key]
        name = (label.judge, label.vote)
        self.duplicates += name in known
        known.pop(name, None)
        known[name] = label
        judge = self._judges.get(label.judge)
        if judge is not None:
            given = {vote for of, vote in known if of == label.judge}
            self._missing[judge, key] = len(set(range(self._votes)) - given)
        own = [one.score for (of, _), one in known.items() if of in self._judges]
        if not own:
            self._missing[:, key] = 0
        # Sorted, so that the mean does not depend on the order in which labels came.
        score = np.float32(np.mean(np.sort(np.array(own, np.float64)))) if own else np.float32(label.score)
        changed = bool(self._status[key] != LABELLED or self._score[key] != score)
        self._status[key], self._score[key] = LABELLED, score
        return changed

    def missing(self, judge: Judge, keys: NDArray[np.int32]) -> NDArray[np.int32]:
        """[n], how many votes of this judge each of ``keys`` [n] lacks."""
        missing: NDArray[np.int32] = self._missing[self._judges[judge], keys]
        return missing

    def next_vote(self, judge: Judge, key: int) -> int:
        """The first vote of this judge that the key lacks."""
        known = self._labels[key]
        return next(vote for vote in range(len(known) + 1) if (judge, vote) not in known)

    def newest(self, key: int) -> Label | None:
        """The label of a key that came last; of the run's judges, where one of them gave one."""
        labels = self._labels[key]
        own = [label for (judge, _), label in labels.items() if judge in self._judges]
        return own[-1] if own else next(reversed(labels.values()), None)

    def newest_seconds(self, key: int) -> float:
        """When the newest label of a labelled key came, in seconds since 1970."""
        newest = self.newest(key)
        assert newest is not None, "the key is labelled"
        return newest.time_seconds


def labelled_keys(
    captions: CaptionTable, keys: KeyLabels, preferences: Iterable[Preference], version: int
) -> LabelledKeys:
    """What a reward model learns from now; preferences of keys that were not met in this run are left out.

    Args:
        captions: texts and sightings.
        keys: labels.
        preferences: valid ones.
        version: of all this.
    """
    labelled = np.flatnonzero(keys.status == LABELLED).astype(np.int32)
    pairs = [
        (first, second, _PREFERENCES[preference.value])
        for preference in preferences
        if (first := captions.key_index(preference.first_hash)) is not None
        and (second := captions.key_index(preference.second_hash)) is not None
    ]
    count = len(keys)
    return LabelledKeys(
        version=version,
        key_texts=[captions.key(index).text for index in range(count)],
        askable=keys.status != NEVER_ASKED,
        sightings=captions.key_sightings[:count],
        label_key=labelled,
        label_score=keys.score[labelled],
        label_seconds=np.array([keys.newest_seconds(key) for key in labelled.tolist()], np.float64),
        pair_first=np.array([first for first, _, _ in pairs], np.int32),
        pair_second=np.array([second for _, second, _ in pairs], np.int32),
        pair_preference=np.array([value for _, _, value in pairs], np.float32),
    )
