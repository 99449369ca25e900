from __future__ import annotations

import numpy as np
import pytest
import torch

from onibi.learners.networks.core_settings import CoreSettings, state_column, state_size
from onibi.learners.networks.numpy_core import NumpyCore
from onibi.learners.networks.recurrent import RecurrentCore

CELLS = [(cell, norm) for cell in ("lstm", "gru") for norm in (False, True)]
T, B, F, H = 7, 5, 3, 4


def core_of(cell="lstm", layer_norm=False, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        core = RecurrentCore(CoreSettings(cell=cell, size=H, layer_norm=layer_norm), F)
        for parameter in core.parameters():
            torch.nn.init.normal_(parameter, std=0.7)
    return core


def random(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stepped(core, features, state, begins=None, restart=None):
    """The plain loop: one step a time, states set by hand."""
    outputs, states = [], []
    for t in range(len(features)):
        if begins is not None:
            for b in range(len(state)):
                if begins[t, b]:
                    state = state.clone()
                    state[b] = 0.0 if restart is None else restart[t, b]
        states.append(state)
        output, state = core.step(features[t], state)
        outputs.append(output)
    return torch.stack(outputs), torch.stack([*states, state])


@pytest.mark.parametrize(("cell", "layer_norm"), CELLS)
def test_acting_step_by_step_is_unrolling(cell, layer_norm):
    core, features = core_of(cell, layer_norm), random(T, B, F)
    state = random(B, core.state_size, seed=2)
    outputs, final = core.unroll(features, state)
    expected, states = stepped(core, features, state)
    torch.testing.assert_close(outputs, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(final, states[-1], atol=1e-6, rtol=1e-5)
    assert outputs.std() > 0.1  # or equality would say little


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_step_is_the_equation_of_its_cell(cell):
    core = core_of(cell)
    given = {name: tensor.detach().double().numpy() for name, tensor in core.cell.named_parameters()}
    x, state = random(B, F).double().numpy(), random(B, core.state_size, seed=2).double().numpy()
    h = state[:, :H]
    into = x @ given["weight_ih_l0"].T + given["bias_ih_l0"]
    back = h @ given["weight_hh_l0"].T + given["bias_hh_l0"]
    if cell == "lstm":
        i, f, g, o = np.split(into + back, 4, axis=1)
        c = sigmoid(f) * state[:, H:] + sigmoid(i) * np.tanh(g)
        expected = np.concatenate((sigmoid(o) * np.tanh(c), c), axis=1)
    else:
        (r, z, n), (back_r, back_z, back_n) = np.split(into, 3, axis=1), np.split(back, 3, axis=1)
        z = sigmoid(z + back_z)
        expected = (1 - z) * np.tanh(n + sigmoid(r + back_r) * back_n) + z * h
    output, following = core.step(torch.from_numpy(x).float(), torch.from_numpy(state).float())
    np.testing.assert_allclose(following.detach().numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(output.detach().numpy(), expected[:, :H], atol=1e-6)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(("cell", "layer_norm"), CELLS)
def test_where_a_piece_begins_the_state_is_set_anew(cell, layer_norm, stored):
    core, features = core_of(cell, layer_norm), random(T, B, F)
    state = random(B, core.state_size, seed=2)
    begins = torch.zeros(T, B, dtype=torch.bool)
    begins[0, 0] = begins[2, 1] = begins[2, 3] = begins[3, 1] = begins[T - 1, 4] = True
    restart = random(T, B, core.state_size, seed=3) if stored else None
    outputs, final = core.unroll(features, state, begins, restart)
    expected, states = stepped(core, features, state, begins, restart)
    torch.testing.assert_close(outputs, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(final, states[-1], atol=1e-6, rtol=1e-5)
    apart = (outputs - core.unroll(features, state)[0]).abs().amax(dim=2) > 1e-4
    assert apart.any(dim=0).tolist() == [True, True, False, True, True]


def test_no_gradient_flows_from_one_piece_into_the_one_before():
    core, features = core_of(), random(T, B, F).requires_grad_()
    begins = torch.zeros(T, B, dtype=torch.bool)
    begins[3, 1] = True
    outputs, _ = core.unroll(features, torch.zeros(B, core.state_size), begins)
    outputs[-1].sum().backward()
    reached = features.grad.abs().sum(dim=2) > 0
    assert reached[:, 0].all()
    assert reached[:, 1].tolist() == [False] * 3 + [True] * 4


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("steps", [[0, 1, 3, 7, 5], [7] * 5, [0] * 5])
def test_the_state_after_a_burn_in_is_that_after_so_many_steps_of_each_row(cell, steps):
    core, features = core_of(cell), random(T, B, F)
    state = random(B, core.state_size, seed=2)
    _, states = stepped(core, features, state)
    expected = torch.stack([states[count, row] for row, count in enumerate(steps)])
    found = core.state_after(features, state, torch.tensor(steps))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    looped = core.state_after(features, state, torch.tensor(steps), packed=False)
    torch.testing.assert_close(looped, expected, atol=1e-6, rtol=1e-5)
    whole = core.state_after(features, state, None)
    torch.testing.assert_close(whole, states[T], atol=1e-6, rtol=1e-5)


def test_a_burn_in_of_no_rows_leaves_the_state():
    core, state = core_of(), random(B, 2 * H)
    assert torch.equal(core.state_after(random(0, B, F), state, torch.zeros(B, dtype=torch.int64)), state)


@pytest.mark.parametrize(("cell", "size"), [("lstm", 2 * H), ("gru", H)])
def test_a_state_is_as_wide_as_its_cell_wants_it(cell, size):
    settings = CoreSettings(cell=cell, size=H)
    assert state_size(settings) == core_of(cell).state_size == NumpyCore(settings, "core.").state_size == size
    assert state_column(settings).shape == (size,)


def test_states_of_another_size_are_refused():
    core = core_of("gru")
    with pytest.raises(ValueError, match=r"state has shape \(5, 8\), wanted is \(5, 4\)"):
        core.unroll(random(T, B, F), random(B, 2 * H))


@pytest.mark.parametrize(("cell", "layer_norm"), CELLS)
def test_numpy_steps_are_torch_steps(cell, layer_norm):
    core = core_of(cell, layer_norm)
    ours = NumpyCore(CoreSettings(cell=cell, size=H, layer_norm=layer_norm), "some.core.")
    ours.load({f"some.core.{name}": tensor.numpy() for name, tensor in core.state_dict().items()})
    features, state = random(T, B, F) * 3.0, random(B, core.state_size, seed=2)
    mine = state.numpy().copy()
    for t in range(T):
        before = mine.copy()
        with torch.no_grad():
            output, state = core.step(features[t], state)
        found, after = ours.step(features[t].numpy(), mine)
        np.testing.assert_array_equal(mine, before)  # a row of replay may still hold it
        mine = after
        np.testing.assert_allclose(found, output.numpy(), atol=1e-5)
        np.testing.assert_allclose(mine, state.numpy(), atol=1e-5)
        assert found.dtype == mine.dtype == np.float32


def test_numpy_refuses_the_arrays_of_another_core():
    arrays = {f"core.{name}": tensor.numpy() for name, tensor in core_of("lstm").state_dict().items()}
    with pytest.raises(ValueError, match="not gru of size 4"):
        NumpyCore(CoreSettings(cell="gru", size=H), "core.").load(arrays)
