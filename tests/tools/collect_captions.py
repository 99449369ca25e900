"""Collect what NetHack really says: plays NLE and MiniHack and writes every distinct caption key with an example.

    python tests/tools/collect_captions.py --steps 20000 --out captions.jsonl          # all tasks
    python tests/tools/collect_captions.py --tasks MiniHack-KeyRoom-S5-v0 --steps 5000 --out captions.jsonl

The set that ships (``onibi/clusters/judge_captions/nethack.csv``) was made from such a file: docs/judges.md tells how
to extend it. The policy is no agent: it walks to things that it sees, uses what it holds, answers prompts with one of
the letters that they offer, and does something at random every third step, so that many different things are said.
An existing ``--out`` is read first and extended.
"""

from __future__ import annotations

import argparse
import json
import re
import time
import warnings
from collections import deque
from pathlib import Path

import gymnasium as gym
import numpy as np
from nle import nethack

from onibi.actors.captioners.nethack import ARTIFACTS, caption_of
from onibi.actors.environments.nethack import NetHackEpisodes

ROLES = (
    "mon-hum-neu-mal", "val-dwa-law-fem", "arc-gno-neu-mal", "wiz-elf-cha-fem", "sam-hum-law-mal", "pri-hum-neu-fem",
    "tou-hum-neu-mal", "cav-dwa-law-mal", "rog-orc-cha-mal", "hea-gno-neu-fem", "bar-hum-cha-mal", "kni-hum-law-mal",
)  # fmt: skip
NETHACK = [f"NetHackScore-v0@{role}" for role in ROLES]
MINIHACK_TASKS = """
    KeyRoom-S5 KeyRoom-S15 River-Narrow River-Monster River-Lava Corridor-R3
    Room-Ultimate-15x15 CorridorBattle Quest-Easy Quest-Medium Quest-Hard Eat-Distr
    Pray-Distr Sink-Distr Wield-Distr Wear-Distr PutOn-Distr Zap-Distr
    Read-Distr LockedDoor WoD-Medium-Full WoD-Pro-Full Levitate-Random-Full LavaCross-Full
    Freeze-Random-Full Sokoban4a-v1 HideNSeek Memento-F2 ExploreMaze-Hard Labyrinth-Small
"""
MINIHACK = [f"MiniHack-{task}" if task.endswith("-v1") else f"MiniHack-{task}-v0" for task in MINIHACK_TASKS.split()]
KEYS = ("glyphs", "chars", "blstats", "message", "inv_letters", "inv_strs", "inv_oclasses")
COMPASS = dict(zip(((0, -1), (1, 0), (0, 1), (-1, 0), (1, -1), (1, 1), (-1, 1), (-1, -1)), b"kljhunby", strict=True))
CHOICES = re.compile(r"\[([^\]]*)\]")
SOLID = frozenset(b" |-#}")
COMMANDS = {  # what is tried, and how often: command, weight
    nethack.Command.APPLY: 3, nethack.Command.CAST: 1, nethack.Command.DIP: 1, nethack.Command.DROP: 1,
    nethack.Command.EAT: 3, nethack.Command.ENGRAVE: 1, nethack.Command.FIRE: 2, nethack.Command.FORCE: 1,
    nethack.Command.INVOKE: 1, nethack.Command.KICK: 3, nethack.Command.LOOK: 1, nethack.Command.LOOT: 2,
    nethack.Command.OPEN: 2, nethack.Command.CLOSE: 1, nethack.Command.PICKUP: 4, nethack.Command.PRAY: 0.3,
    nethack.Command.PUTON: 2, nethack.Command.QUAFF: 2, nethack.Command.READ: 2, nethack.Command.REMOVE: 1,
    nethack.Command.RUB: 0.3, nethack.Command.SEARCH: 6, nethack.Command.SIT: 0.5, nethack.Command.TAKEOFF: 1,
    nethack.Command.THROW: 2, nethack.Command.TIP: 0.3, nethack.Command.TURN: 0.2, nethack.Command.UNTRAP: 1,
    nethack.Command.WEAR: 2, nethack.Command.WIELD: 2, nethack.Command.ZAP: 2, nethack.Command.CHAT: 0.5,
    nethack.Command.OFFER: 0.5, nethack.Command.MONSTER: 0.1, nethack.Command.JUMP: 0.3, nethack.Command.RIDE: 0.2,
}  # fmt: skip
WEIGHTS = np.array(list(COMMANDS.values())) / sum(COMMANDS.values())


LIKINGS = {
    "any": b"",
    "stairs": b">+|-#",
    "fights": bytes(range(97, 123)) + bytes(range(65, 91)),
    "items": b'$?!=/"([)%*',
}


class Player:
    """Chooses raw keys: to a thing in sight, a command, or at random. ``liking`` names what it walks to first."""

    def __init__(self, rng: np.random.Generator, allowed: list[int], liking: str) -> None:
        self._rng, self._allowed, self._likes = rng, allowed, LIKINGS[liking]
        self._walks = 0.55 if liking == "any" else 0.85
        self._commands = [(int(key), weight) for key, weight in zip(COMMANDS, WEIGHTS, strict=True) if key in allowed]
        self._wanted: int | None = None

    def act(self, observation: dict, message: str) -> int:
        """The next key."""
        rng = self._rng
        if "door is locked" in message and nethack.Command.KICK in self._allowed and rng.random() < 0.7:
            return int(nethack.Command.KICK)
        if self._wanted == ord(">") and rng.random() < 0.5:
            self._wanted = None
            return self._one_of(b":" if rng.random() < 0.3 else b">")
        if "direction?" in message:
            return self._one_of(b"hjklyubn>.<" if rng.random() < 0.3 else b"hjkl")
        if "?" in message and (found := CHOICES.search(message)):
            offered = [ord(letter) for letter in found[1].split(" or ")[0] if letter.isalnum() or letter in "$,.-"]
            if message.startswith(("Really attack", "Do you want to see")):
                offered = [ord("y")]
            offered = [key for key in offered if key in self._allowed]
            return int(rng.choice(offered)) if offered else self._one_of(b"yn\x1b")
        chance = rng.random()
        if chance < self._walks:
            step = self._walk(observation)
            if step is not None:
                return step
        if chance < self._walks + 0.25 * (1 - self._walks / 2) and self._commands:
            weights = np.array([weight for _, weight in self._commands])
            return self._commands[rng.choice(len(weights), p=weights / weights.sum())][0]
        return int(rng.choice(self._allowed))

    def _one_of(self, keys: bytes) -> int:
        offered = [key for key in keys if key in self._allowed]
        return int(self._rng.choice(offered if offered else self._allowed))

    def _walk(self, observation: dict) -> int | None:
        """One step on the shortest way to something that is no floor; what is stood upon is used first."""
        rng, chars = self._rng, observation["chars"]
        x, y = int(observation["blstats"][0]), int(observation["blstats"][1])
        if rng.random() < 0.15 and ord(",") in self._allowed:
            return ord(",")
        came: dict[tuple[int, int], tuple[int, int] | None] = {(x, y): None}
        edge, found = deque([(x, y)]), []
        while edge and len(came) < 900:
            at = edge.popleft()
            for dx, dy in COMPASS:
                to = (at[0] + dx, at[1] + dy)
                if to in came or not (0 <= to[0] < 79 and 0 <= to[1] < 21):
                    continue
                sign = int(chars[to[1], to[0]])
                if sign in SOLID and sign != ord("#"):
                    continue
                came[to] = at
                if sign not in b".#":
                    found.append(to)
                    if sign == ord("+") or chr(sign).isalpha():
                        continue  # doors and monsters are walked against, not through
                edge.append(to)
        if not found:
            found = [to for to in list(came)[1:] if rng.random() < 0.1]
        if not found:
            return None
        liked = [to for to in found if int(chars[to[1], to[0]]) in self._likes]
        target = liked[0] if liked and rng.random() < 0.8 else found[int(rng.integers(len(found)))]
        is_next = came[target] == (x, y)
        self._wanted = int(chars[target[1], target[0]]) if is_next else None
        while came[target] not in ((x, y), None):
            target = came[target]
        key = COMPASS.get((target[0] - x, target[1] - y))
        return key if key in self._allowed else None


def make(task: str) -> tuple[NetHackEpisodes, list[int]]:
    """The environment of a task, and the raw keys that it takes."""
    env_id, _, character = task.partition("@")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if env_id.startswith("MiniHack"):
            import minihack  # noqa: F401 - registers its environments

            env = gym.make(env_id, disable_env_checker=True, observation_keys=KEYS)
        else:
            more = {"actions": nethack.ACTIONS, "allow_all_yn_questions": True, "character": character}
            env = gym.make(env_id, disable_env_checker=True, observation_keys=KEYS, max_episode_steps=4000, **more)
    return NetHackEpisodes(env), [int(action) for action in env.unwrapped.actions]


def play(task: str, steps: int, seed: int, heard: dict[str, dict], liking: str) -> int:
    """Play ``steps`` env steps and note new keys; returns how many."""
    env, allowed = make(task)
    index_of = {key: index for index, key in enumerate(allowed)}
    rng = np.random.default_rng(seed)
    player, before = Player(rng, allowed, liking), len(heard)
    observation, _ = env.reset(seed=seed)
    for _ in range(steps):
        last = bytes(observation["message"]).partition(b"\0")[0].decode("latin-1")
        key = player.act(observation, last)
        observation, _, terminated, truncated, info = env.step(index_of.get(key, int(rng.integers(len(allowed)))))
        message = info.get("message_pages") or bytes(observation["message"]).partition(b"\0")[0].decode("latin-1")
        if message:
            for said in caption_of(message, 32, ARTIFACTS).keys:
                if said.askable:
                    entry = heard.setdefault(said.text, {"raw": message, "task": task.partition("@")[0], "times": 0})
                    entry["times"] += 1
        if terminated or truncated:
            observation, _ = env.reset()
    env.close()
    return len(heard) - before


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines: key, raw, task, times")
    parser.add_argument("--steps", type=int, default=20_000, help="env steps of each task")
    parser.add_argument("--tasks", nargs="*", default=[*MINIHACK, *NETHACK], help="Gymnasium ids, NetHack's with @role")
    parser.add_argument("--likes", choices=sorted(LIKINGS), default="any", help="what the policy walks to first")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    heard: dict[str, dict] = {}
    if given.out.exists():
        for line in given.out.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            heard[row.pop("key")] = row
    for number, task in enumerate(given.tasks):
        started = time.perf_counter()
        new = play(task, given.steps, given.seed * 1000 + number, heard, given.likes)
        print(f"{task}: {new} new keys of {len(heard)}, {given.steps / (time.perf_counter() - started):.0f} steps/s")
        rows = (json.dumps({"key": key, **row}, ensure_ascii=False) for key, row in sorted(heard.items()))
        given.out.write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
