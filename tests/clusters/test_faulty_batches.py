"""What becomes of a run whose batches are not finite."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file

from onibi.platform.checkpoint import load_checkpoint
from onibi.platform.errors import TrainingError
from onibi.platform.rewards.mixer import RewardMixer


@pytest.fixture
def break_batches(monkeypatch):
    """Puts a NaN into the mixed reward of the batches drawn first, as many as are asked for."""

    def begin(count):
        mix, mixed_so_far = RewardMixer.mix, []

        def broken(self, batch, *given):
            mixed = mix(self, batch, *given)
            mixed_so_far.append(1)
            if len(mixed_so_far) <= count:
                mixed.total[0] = np.nan
            return mixed

        monkeypatch.setattr(RewardMixer, "mix", broken)

    return begin


def test_batches_that_are_not_finite_are_left_out_and_counted_and_the_run_goes_on(workshop, break_batches):
    break_batches(9)
    assert workshop.train(learner__metrics_period_updates=1).status == "finished"
    skipped = [row["learner/skipped_updates"] for row in workshop.history() if "learner/skipped_updates" in row]
    assert 0.0 < skipped[-1] <= 9.0  # a row of the history is the mean over its updates
    learner = load_checkpoint(workshop.runs / "run" / "checkpoints", "last").tensors["learner"]
    assert int(learner["counters.skipped_updates"]) == 9
    assert not list((workshop.runs / "run" / "artifacts").glob("not-finite*"))


def test_the_tenth_in_a_row_ends_the_run_with_the_batch_in_a_file_that_stays(workshop, break_batches):
    break_batches(10)
    with pytest.raises(TrainingError, match=r"update 10: .*not finite 10 times in a row.* is kept in (\S+)") as raised:
        workshop.train()
    path = str(raised.value).split("kept in ")[1]
    assert path.startswith(str(workshop.runs / "run" / "artifacts"))
    kept = load_file(path)
    assert np.isnan(kept["mixed_reward"]).any(axis=1).tolist() == [True] + [False] * 15
    assert np.isfinite(kept["reward"]).all()
    assert kept["observation.observation"].shape[0] == 16
