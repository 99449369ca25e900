"""Updates a second of dqn and r2d2 on 84 × 84 × 4 frames, in every mode of acceleration, beside CleanRL's DQN update.

    python tests/benchmarks/learner_update.py [--quick] [--seconds 20] [--network cnn] [--batch 512]

With a GPU at full size (dqn: batch 512; r2d2: 64 sequences of 80 rows after up to 40 of burn-in); without one the same
at a smaller batch. Batches are drawn from a real ring beforehand into the memory that the feed would use, and each
update copies its own to the device. Sides are measured in turns, each for a slice of every round: a busy machine
slows all; the table gives medians over the rounds with the 10th and 90th percentile, and ratios taken round by round.

CleanRL's side is an update written here after the public description of its DQN for Atari: next values by the target
network's largest, mean squared error, Adam as PyTorch makes it, a hard copy of the target every 1,000 updates, tensors
made of the sampled arrays, no clipping. It has the same encoder with a linear head. ``dqn like CleanRL's`` is our
learner with just these choices (it still checks for NaN and shortens gradients): those two rows are like against like.

GPU busy: the union of all intervals in which a kernel or copy ran, by torch's profiler, of an update, over the time of
an update without the profiler. Then the same dqn update fed by a sampler, with 0, 1 and 2 batches drawn ahead: on the
frames, and on rows of 68 numbers with a small network on the CPU, where drawing is a larger part of the time.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

if importlib.util.find_spec("onibi") is None:  # a bare machine: the folders of the repository are the package
    LINKS = tempfile.TemporaryDirectory(prefix="onibi-links-")
    (Path(LINKS.name) / "onibi").mkdir()
    for folder in ("actors", "clusters", "infra", "learners", "platform"):
        (Path(LINKS.name) / "onibi" / folder).symlink_to(Path(__file__).resolve().parents[2] / folder)
    sys.path.insert(0, LINKS.name)

from onibi.learners.device_copies import DeviceCopies
from onibi.learners.networks.build import NETWORKS
from onibi.learners.registry import LEARNERS
from onibi.platform.config import load_class, read_settings
from onibi.platform.errors import OnibiError
from onibi.platform.replay.feed import ReplayFeed
from onibi.platform.replay.limiter import DrawnWord, Limiter
from onibi.platform.replay.prefetched_feed import PrefetchedFeed
from onibi.platform.replay.ring.file import drawn_path
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.ring.writer import RingWriter
from onibi.platform.replay.samplers.make_sampler import make_sampler
from onibi.platform.spec import ArraySpec, ReplaySpec

LANES, FRAGMENT, SLOTS = 8, 64, 1_024
ACTIONS, DISCOUNT, TARGET_PERIOD = 6, 0.99, 1_000
BATCHES, ROUNDS = 4, 10
FRAMES = ArraySpec(name="observation", dtype="uint8", shape=(4, 84, 84))
NUMBERS = ArraySpec(name="observation", dtype="float32", shape=(68,))
SMALL_BATCH = 128
BOUNDS = (-10.0, 10.0)
MODES = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "fp32 compiled": {"compile": "default"},
    "bf16 compiled": {"precision": "bf16", "compile": "default"},
    "fp32 graphs": {"compile": "graphs"},
    "bf16 graphs": {"precision": "bf16", "compile": "graphs"},
}
PLAIN_DQN = {
    "n_steps": 1,
    "double": False,
    "dueling": False,
    "value_loss": "mse",
    "learning_rate": 1e-4,
    "adam_epsilon": 1e-8,
    "target": {"rate": 1.0, "period_updates": TARGET_PERIOD},
}


@dataclass(frozen=True)
class Side:
    """One row of the table."""

    name: str
    mode: str
    samples: int  # an update learns from
    update: Callable[[], object]


@dataclass(frozen=True)
class Place:
    """Where all of it is measured."""

    device: torch.device
    folder: Path
    network: str
    rng: np.random.Generator
    observation: ArraySpec = FRAMES


def learner_of(place: Place, kind: str, batch: int, mode: dict[str, Any], **choices: Any) -> Any:
    """A learner of ours."""
    mapping = {
        "batch_size": batch,
        "network": {"kind": place.network},
        "metrics_period_updates": 100,
        "acceleration": mode,
        **choices,
    }
    owner = load_class(LEARNERS, kind)
    settings = read_settings(owner.Settings, mapping)
    needs = owner.needs(settings)
    spec = ReplaySpec(
        observation=(place.observation,),
        actions=ACTIONS,
        keys_per_caption=1,
        extra=needs.extra,
        states=needs.states,
    )
    return owner(settings, spec, BOUNDS, 0, str(place.device)), needs, spec


def filled_ring(place: Place, spec: ReplaySpec, window_rows: int, name: str) -> Path:
    """A full ring of noise, episodes of some 200 steps."""
    path = place.folder / f"{name}.ring"
    writer = RingWriter.create(
        path, spec, groups=1, lanes_per_group=LANES, slots=SLOTS, window_rows=window_rows, run_id="benchmark"
    )
    DrawnWord.create(drawn_path(path))
    incarnation, rows = writer.register(0), np.full(LANES, FRAGMENT, np.int32)
    for sequence in range(SLOTS // FRAGMENT):
        columns = {column.name: np.zeros((LANES, FRAGMENT + 1, *column.shape), column.dtype) for column in spec.columns}
        noise = place.rng.integers(0, 256, columns["observation"].shape, np.uint8)
        columns["observation"] = noise.astype(columns["observation"].dtype)
        columns["action"][:] = place.rng.integers(0, ACTIONS, columns["action"].shape)
        columns["reward"][:] = place.rng.normal(size=columns["reward"].shape)
        columns["step"][:] = sequence * FRAGMENT + np.arange(FRAGMENT + 1)
        columns["terminated"][:] = 0
        writer.insert(0, incarnation=incarnation, sequence=sequence, rows_per_lane=rows, columns=columns)
    writer.close()
    return path


def ours(place: Place, ring: Path, name: str, mode: str, learner: Any, needs: Any) -> Side:
    """Updates of one of our learners on batches drawn beforehand."""
    reader, copies = RingReader(ring), learner.copies
    sampler = make_sampler(reader, needs.draws, place.rng)
    batches = [sampler.draw(sampler.allocate(copies.empty)) for _ in range(BATCHES)]
    rewards = [np.ascontiguousarray(batch.reward) for batch in batches]
    turn = 0

    def update() -> None:
        nonlocal turn
        turn = (turn + 1) % BATCHES
        copies.send(batches[turn])
        learner.update(batches[turn], rewards[turn])
        copies.learned()

    return Side(name, mode, sum(batch.drawn_rows for batch in batches) // BATCHES, update)


class PeerNetwork(nn.Module):
    """The encoder of ours with a linear head."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.features, ACTIONS)

    def forward(self, observation: Tensor) -> Tensor:
        """[B, 4, 84, 84] uint8 → [B, A]."""
        return self.head(self.encoder({"observation": observation}))


def cleanrl(place: Place, ring: Path, batch: int, encoder: nn.Module) -> Side:
    """The update of CleanRL's DQN for Atari, in our words."""
    from onibi.platform.replay.samplers.draws import WindowDraws

    sampler = make_sampler(RingReader(ring), WindowDraws(n_steps=1, batch_size=batch), place.rng)
    drawn = [sampler.draw(sampler.allocate()) for _ in range(BATCHES)]
    arrays = [
        (
            np.ascontiguousarray(windows.observation["observation"]),
            np.ascontiguousarray(windows.bootstrap_observation["observation"]),
            windows.action[:, None].copy(),
            windows.reward[:, 0].copy(),
            (1 - windows.continues[:, 0]).astype(np.float32),
        )
        for windows in drawn
    ]
    network = PeerNetwork(copy.deepcopy(encoder)).to(place.device)
    target = copy.deepcopy(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    count = 0

    def update() -> None:
        nonlocal count
        count += 1
        observation, following, action, reward, ended = (
            torch.tensor(array, device=place.device) for array in arrays[count % BATCHES]
        )
        with torch.no_grad():
            largest, _ = target(following).max(dim=1)
            goal = reward + DISCOUNT * largest * (1 - ended)
        value = network(observation).gather(1, action).squeeze()
        loss = functional.mse_loss(goal, value)
        if count % 100 == 0:
            loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if count % TARGET_PERIOD == 0:
            for of_target, of_network in zip(target.parameters(), network.parameters(), strict=True):
                of_target.data.copy_(of_network.data)

    return Side("CleanRL's DQN update", "fp32", batch, update)


def fed(place: Place, ring: Path, batch: int, ahead: int) -> Side:
    """A dqn update with its draw from the ring, ``ahead`` batches drawn by a thread."""
    learner, needs, _ = learner_of(place, "dqn", batch, {})
    limiter = Limiter(ratio=1e9, minimum_rows=1, tolerance_rows=1e15)
    copies: DeviceCopies = learner.copies
    feed: Any = ReplayFeed(
        RingReader(ring),
        needs.draws,
        limiter,
        place.rng,
        buffers=PrefetchedFeed.buffers_for(ahead),
        empty=copies.empty,
    )
    if ahead:
        feed = PrefetchedFeed(feed, ahead, copies.send)

    def update() -> None:
        while not feed.may_draw():
            time.sleep(1e-4)
        windows = feed.draw()
        if not ahead:
            copies.send(windows)
        learner.update(windows, windows.reward)
        copies.learned()

    return Side(f"dqn with draws, {place.network}", f"{ahead} ahead", batch, update)


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(place: Place, side: Side, count: int) -> float:
    """Of one update, over ``count`` in a row."""
    synchronize(place.device)
    began = time.perf_counter()
    for _ in range(count):
        side.update()
    synchronize(place.device)
    return (time.perf_counter() - began) / count


def measured(place: Place, sides: list[Side], seconds: float) -> np.ndarray:
    """[rounds, sides] seconds of an update; ``seconds`` for each side in all, each round begins with another one."""
    counts = []
    for side in sides:
        seconds_of(place, side, 6)  # compiled, recorded, caches filled
        counts.append(max(1, round(seconds / ROUNDS / seconds_of(place, side, 2))))
    times = np.empty((ROUNDS, len(sides)))
    for turn in range(ROUNDS):
        for at in np.roll(np.arange(len(sides)), -turn):
            times[turn, at] = seconds_of(place, sides[at], counts[at])
    return times


def busy_seconds(place: Place, side: Side) -> float | None:
    """Time in which the GPU did anything, of one update."""
    if place.device.type != "cuda":
        return None
    updates = 5
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        seconds_of(place, side, updates)
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    busy, reached = 0.0, 0.0
    for start, end in spans:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return busy / 1e6 / updates


def print_table(place: Place, sides: list[Side], times: np.ndarray) -> None:
    """One line a side."""
    print(
        f"\n{'learner':<26}{'mode':<16}{'batch':>7}{'updates/s':>11}  {'[10%, 90%]':<19}{'samples/s':>11}"
        f"{'x the first row':>17}  {'[10%, 90%]':<14}{'GPU busy':>9}"
    )
    for at, side in enumerate(sides):
        low, mid, high = np.percentile(1 / times[:, at], [10, 50, 90])
        ratio = np.percentile(times[:, 0] / times[:, at], [10, 50, 90])
        busy = busy_seconds(place, side)
        share = "–" if busy is None else f"{min(1.0, busy / np.median(times[:, at])):.0%}"
        spread = f"[{low:.1f}, {high:.1f}]"
        print(
            f"{side.name:<26}{side.mode:<16}{side.samples:>7}{mid:>11.1f}  {spread:<19}{mid * side.samples:>11,.0f}"
            f"{ratio[1]:>17.2f}  [{ratio[0]:.2f}, {ratio[2]:.2f}]{share:>9}"
        )


def possible_modes(place: Place, quick: bool) -> dict[str, dict[str, Any]]:
    """Modes that this device has."""
    on_cuda = place.device.type == "cuda"
    modes = {name: mode for name, mode in MODES.items() if on_cuda or mode.get("compile") != "graphs"}
    return {name: modes[name] for name in list(modes)[:2]} if quick else modes


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each side")
    parser.add_argument("--quick", action="store_true", help="2 s for each side, fp32 and bf16 alone, small batches")
    parser.add_argument("--network", choices=sorted({"resnet", "cnn"} & set(NETWORKS)), default=None)
    parser.add_argument("--batch", type=int, default=None, help="of dqn; 512 on a GPU, else 32")
    parser.add_argument("--sequences", type=int, default=None, help="of r2d2; 64 on a GPU, else 2")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="where the rings lie")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_cuda = device.type == "cuda"
    batch = arguments.batch or (512 if on_cuda else 16 if arguments.quick else 32)
    sequences = arguments.sequences or (64 if on_cuda else 2)
    seconds = 2.0 if arguments.quick else arguments.seconds
    network = arguments.network or ("resnet" if "resnet" in NETWORKS else "cnn")
    with tempfile.TemporaryDirectory(prefix="onibi-benchmark-", dir=arguments.folder) as folder:
        place = Place(device, Path(folder), network, np.random.default_rng(0))
        named = torch.cuda.get_device_name(device) if on_cuda else f"{os.cpu_count()} cores"
        print(f"{named}; torch {torch.__version__}, {arguments.threads} CPU threads; network {network}, 84 x 84 x 4")
        compare(place, batch, sequences, seconds, arguments.quick)


def compare(place: Place, batch: int, sequences: int, seconds: float, quick: bool) -> None:
    """All tables."""
    plain, needs, spec = learner_of(place, "dqn", batch, {}, **PLAIN_DQN)
    ring = filled_ring(place, spec, 8, "windows")
    encoder = plain._network.encoder
    sides = [cleanrl(place, ring, batch, encoder), ours(place, ring, "dqn like CleanRL's", "fp32", plain, needs)]
    for name, mode in possible_modes(place, quick).items():
        if mode:
            sides += tried(place, ring, "dqn like CleanRL's", name, "dqn", batch, mode, PLAIN_DQN)
    for name, mode in possible_modes(place, quick).items():
        sides += tried(place, ring, "dqn, our defaults", name, "dqn", batch, mode, {})
    print_table(place, sides, measured(place, sides, seconds))
    sides = [fed(place, ring, batch, ahead) for ahead in (0, 1, 2)]
    print_table(place, sides, measured(place, sides, seconds))
    small = replace(place, device=torch.device("cpu"), network="mlp", observation=NUMBERS)
    ring = filled_ring(small, replace(spec, observation=(NUMBERS,)), 8, "numbers")
    sides = [fed(small, ring, SMALL_BATCH, ahead) for ahead in (0, 1, 2)]
    print_table(small, sides, measured(small, sides, seconds))
    if "r2d2" not in LEARNERS:
        return
    rows = {} if place.device.type == "cuda" else {"length": 20, "burn_in": 10, "period": 10}
    _, needs, spec = learner_of(place, "r2d2", sequences, {}, **rows)
    ring = filled_ring(place, spec, needs.draws.window_rows, "sequences")
    sides = []
    for name, mode in possible_modes(place, quick).items():
        sides += tried(place, ring, "r2d2", name, "r2d2", sequences, mode, rows)
    if sides:
        print_table(place, sides, measured(place, sides, seconds))


def tried(
    place: Place, ring: Path, name: str, mode: str, kind: str, batch: int, acceleration: dict[str, Any], choices: Any
) -> list[Side]:
    """A side, where this machine can make it."""
    try:
        learner, needs, _ = learner_of(place, kind, batch, acceleration, **choices)
        side = ours(place, ring, name, mode, learner, needs)
        side.update()
    except (OnibiError, RuntimeError) as error:
        print(f"{name}, {mode}: left out: {str(error).splitlines()[0]}")
        return []
    return [side]


if __name__ == "__main__":
    main()
