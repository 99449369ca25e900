from __future__ import annotations

import pytest
import ray

from onibi.clusters.coordinator.role_calls import deaths_told, first_line
from onibi.platform.errors import TrainingError


@ray.remote(num_cpus=0)
class Role:
    def answer(self):
        return 1


def ask_until_dead(*roles):
    """What is killed may answer for a moment still."""
    while True:
        ray.get([role.answer.remote() for role in roles])


def test_the_death_of_a_store_is_told_by_its_name_whoever_calls_it(small_ray):
    hub, shard, other = (Role.remote() for _ in range(3))
    assert ray.get([role.answer.remote() for role in (hub, shard, other)]) == [1, 1, 1]
    stores = {"the replay shard": shard, "the hub": hub}
    for dead in (hub, other):
        ray.kill(dead)
    with (
        pytest.raises(TrainingError, match=r"^the hub died\. .*`onibi resume` goes on from it"),
        deaths_told(lambda: stores),
    ):
        ask_until_dead(shard, hub)
    with pytest.raises(ray.exceptions.RayActorError), deaths_told(lambda: stores):
        ask_until_dead(other)
    with pytest.raises(KeyError), deaths_told(lambda: stores):
        raise KeyError("something else")


@pytest.mark.parametrize(
    ("error", "told"), [(OSError(), "OSError()"), (OSError("gone"), "gone"), (OSError("gone\n\tpid: 3"), "gone")]
)
def test_an_error_is_told_by_its_first_line_and_by_its_name_where_it_says_nothing(error, told):
    assert first_line(error) == told
