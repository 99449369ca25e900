"""What does keeping the rows cost? Env steps/s of one process's rollout beside its environments and policy alone.

    python tests/benchmarks/rollout_rate.py [cartpole cartpole-sync nethack] [--rounds 5] [--quick] [--profile]

*bare* steps the same vector environment with the actions of the same policy, and keeps nothing. *rollout* is
`Rollout.collect`: observations checked, rows of all columns kept lane-major, episodes booked, captions heard where
there are any. The policy has the weights of an untrained network (2 x 64 tanh for CartPole), so CartPole's episodes are
short: that is the dearest case. Both in turns, BLAS held to one thread.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
import time
from collections.abc import Callable
from typing import Any

from peers.learner_cell import Order
from peers.machine import describe
from peers.onibi_loop import settings_of
from peers.spread import spread

_ACTORS = {"actors": 1, "ratio": 1.0}
CASES = {
    "cartpole": ("CartPole, 256 native", {**_ACTORS, "envs": 256, "native": True}),
    "cartpole-sync": ("CartPole, 32 single", {**_ACTORS, "envs": 32, "native": False}),
    "nethack": ("NetHack, nethack-oni", {}),
}


def plan_of(case: str, algorithm: str) -> Any:
    """The run's plan; nothing is started."""
    from onibi.clusters.run_plan import plan_run
    from onibi.clusters.sessions import read_run_settings

    if case == "nethack":
        return plan_run(read_run_settings("nethack-oni", ()))
    order = Order(
        environment="CartPole-v1", algorithm=algorithm, options=CASES[case][1], seed=1, warm_seconds=0, seconds=0
    )
    return plan_run(read_run_settings(settings_of(order), ()))


def rollout_of(plan: Any, weights: Any) -> Callable[[float], float]:
    """Collects for some seconds; env steps a second."""
    rollout = plan.make_rollout(0, 1, 0)
    rollout.collect(lambda version: weights)

    def run(seconds: float) -> float:
        steps, began = 0, time.perf_counter()
        while (passed := time.perf_counter() - began) < seconds:
            steps += rollout.collect(lambda version: None).env_steps
        return steps / passed

    return run


def bare_of(plan: Any, weights: Any) -> Callable[[float], float]:
    """The same without keeping anything; steps of lanes that are only reset count not."""
    import numpy as np

    from onibi.actors.environments.factory import make_vector_env
    from onibi.clusters.run_plan import raw_keys
    from onibi.platform.policy import LaneRange

    envs = plan.settings.actors.rollout.envs_per_actor
    rollout = plan.make_rollout(0, 1, 0)  # for its view alone
    env = make_vector_env(plan.settings.environment, envs, raw_keys(plan.settings))
    policy = plan.policy_factory(LaneRange(first=0, count=envs, total=envs))
    policy.load(weights)
    rng = np.random.default_rng(1)
    view, observed = rollout._view, env.reset(seed=1)[0]
    counted = any(column.name == "observation.caption_counts" for column in plan.spec.observation)
    width = next((c.shape[0] for c in plan.spec.observation if c.name == "observation.caption_counts"), 0)
    state: dict[str, Any] = {"raw": observed, "policy": policy.initial_state(envs), "resetting": 0}

    def run(seconds: float) -> float:
        steps, began = 0, time.perf_counter()
        while (passed := time.perf_counter() - began) < seconds:
            observation = view(state["raw"])
            if counted:
                observation["observation.caption_counts"] = np.zeros((envs, width), np.float32)
            acted = policy.act(observation, state["policy"], rng)
            raw, _, terminated, truncated, _ = env.step(acted.action)
            steps += envs - state["resetting"]
            state.update(raw=raw, policy=acted.state, resetting=int(np.count_nonzero(terminated | truncated)))
        return steps / passed

    return run


def main() -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; all where left out")
    parser.add_argument("--rounds", type=int, help="5, with --quick 2")
    parser.add_argument("--seconds", type=float, help="of each in a round: 2, with --quick 0.5")
    parser.add_argument("--quick", action="store_true", help="to see that it runs; no figures to report")
    parser.add_argument("--algorithm", default="appo", help="whose policy acts in CartPole: appo, impala, dqn")
    parser.add_argument("--profile", action="store_true", help="also where the rollout's time goes, by cProfile")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (2 if arguments.quick else 5)
    seconds = arguments.seconds or (0.5 if arguments.quick else 2.0)
    if unknown := set(arguments.cases) - set(CASES):
        parser.error(f"no case {sorted(unknown)}; there are {', '.join(CASES)}")
    from onibi.platform.threads import hold_threads

    hold_threads()
    print(f"`{' '.join(['python', *sys.argv])}`\n\n{describe()}\n")
    print("| environments of one process | bare, steps/s | rollout, steps/s | rollout / bare |\n|---|---|---|---|")
    for case in arguments.cases or CASES:
        plan = plan_of(case, arguments.algorithm)
        weights = plan.make_learner().weights(0)
        bare, rollout = bare_of(plan, weights), rollout_of(plan, weights)
        figures = [(bare(seconds), rollout(seconds)) for _ in range(rounds)]
        ratios = [kept / alone for alone, kept in figures]
        alone, kept = ([each[place] for each in figures] for place in (0, 1))
        print(f"| {CASES[case][0]} | {spread(alone)} | {spread(kept)} | {spread(ratios, 2)} |", flush=True)
        if arguments.profile:
            profile = cProfile.Profile()
            profile.runcall(rollout, seconds)
            pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(22)
    return 0


if __name__ == "__main__":
    sys.exit(main())
