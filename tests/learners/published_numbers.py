"""Writes published_numbers.json: what published implementations, RLax and hl-gauss-pytorch, give for inputs drawn here.

RLax stands on JAX, too heavy for the development extra, so they are run by hand in an environment of their own:

    python -m venv v && v/bin/pip install rlax==0.1.9 hl-gauss-pytorch==0.3.0 && v/bin/python THIS_FILE

The tests of returns and value losses compare with the file. Episodes that terminate within a sequence are in the
discounts; RLax knows no truncation, which the tests check against plain loops.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np

STEPS, LANES, ATOMS, QUANTILES, ROWS = 7, 3, 11, 5, 6


def inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(20261121)
    arrays = {
        "rewards": rng.normal(size=(STEPS, LANES)),
        "discounts": 0.9 * (rng.random((STEPS, LANES)) > 0.2),
        "values": rng.normal(size=(STEPS + 1, LANES)),  # the last row is the bootstrap
        "taken_values": rng.normal(size=(STEPS, LANES)),
        "log_ratios": rng.normal(size=(STEPS, LANES)),
        "atoms": np.linspace(-2.0, 3.0, ATOMS),
        "uneven_atoms": np.sort(rng.normal(size=ATOMS)) * 2.0,
        "source_atoms": rng.normal(size=(ROWS, ATOMS)) * 2.0,
        "source_logits": rng.normal(size=(ROWS, ATOMS)),
        "quantiles": rng.normal(size=(ROWS, QUANTILES)),
        "fractions": rng.random((ROWS, QUANTILES)),
        "targets": rng.normal(size=(ROWS, QUANTILES + 2)) * 2.0,
        "scalars": np.linspace(-2.5, 3.5, 13),
        "hl_gauss_values": rng.uniform(-10, 10, size=12),
        "hl_gauss_logits": rng.normal(size=(12, 51)),
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def hl_gauss(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    import torch
    from hl_gauss_pytorch import HLGaussLoss

    values, logits = torch.tensor(given["hl_gauss_values"]), torch.tensor(given["hl_gauss_logits"])
    layer = HLGaussLoss(-10.0, 10.0, 51, sigma_to_bin_ratio=0.75)
    losses = [layer(logits[[row]], values[[row]]).item() for row in range(len(values))]
    read = layer.transform_from_probs(torch.softmax(logits, -1))
    return {
        "hl_gauss_target": layer.transform_to_probs(values).numpy(),
        "hl_gauss_loss": np.array(losses),
        "hl_gauss_read": read.numpy(),
    }


def main() -> None:
    import jax
    import jax.numpy as jnp
    import rlax

    given = inputs()
    given["source_probabilities"] = np.array(jax.nn.softmax(given["source_logits"], axis=-1))
    x = {name: jnp.asarray(array) for name, array in given.items()}
    ratios = jnp.exp(x["log_ratios"])
    lanes = range(LANES)
    found = {}
    for decay in (0.0, 0.7, 1.0):
        found[f"lambda_returns {decay}"] = jnp.stack(
            [rlax.lambda_returns(x["rewards"][:, b], x["discounts"][:, b], x["values"][1:, b], decay) for b in lanes], 1
        )
        found[f"generalized_advantages {decay}"] = jnp.stack(
            [
                rlax.truncated_generalized_advantage_estimation(
                    x["rewards"][:, b], x["discounts"][:, b], decay, x["values"][:, b]
                )
                for b in lanes
            ],
            1,
        )
        corrections = [
            rlax.vtrace(
                x["values"][:-1, b], x["values"][1:, b], x["rewards"][:, b], x["discounts"][:, b], ratios[:, b], decay
            )
            for b in lanes
        ]
        found[f"vtrace_values {decay}"] = jnp.stack(corrections, 1) + x["values"][:-1]
        # RLax wants c_1 .. c_{T-1} of the later steps; the last of the states has no action of its own.
        found[f"retrace {decay}"] = jnp.stack(
            [
                rlax.general_off_policy_returns_from_q_and_v(
                    x["taken_values"][1:, b],
                    x["values"][1:, b],
                    x["rewards"][:, b],
                    x["discounts"][:, b],
                    decay * jnp.minimum(1.0, ratios[1:, b]),
                )
                for b in lanes
            ],
            1,
        )
    output = [
        rlax.vtrace_td_error_and_advantage(
            x["values"][:-1, b], x["values"][1:, b], x["rewards"][:, b], x["discounts"][:, b], ratios[:, b]
        )
        for b in lanes
    ]
    found["vtrace_advantages 1.0"] = jnp.stack([each.pg_advantage for each in output], 1)
    for name in ("atoms", "uneven_atoms"):
        project = jax.vmap(rlax.categorical_l2_project, (0, 0, None))
        found[f"projection {name}"] = project(x["source_atoms"], x["source_probabilities"], x[name])
    found["two_hot"] = rlax.transform_to_2hot(x["scalars"], -2.0, 3.0, ATOMS)
    for delta in (0.0, 1.0):
        found[f"quantile {delta}"] = jax.vmap(rlax.quantile_regression_loss, (0, 0, 0, None))(
            x["quantiles"], x["fractions"], x["targets"], delta
        )
    found["rescale_value"] = rlax.signed_hyperbolic(x["scalars"] * 50.0)
    found["restore_value"] = rlax.signed_parabolic(x["scalars"])
    found |= hl_gauss(given)
    versions = ", ".join(f"{name} {version(name)}" for name in ("rlax", "jax", "hl-gauss-pytorch"))
    document = {
        "made_by": versions,
        "given": {name: array.tolist() for name, array in given.items()},
        "found": {name: np.asarray(array, np.float64).tolist() for name, array in found.items()},
    }
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(document, indent=None, separators=(",", ":")).replace('],"', '],\n"') + "\n")


if __name__ == "__main__":
    main()
