"""The loss of a Q-learner on n-step windows and its gradient by hand, in NumPy: for small networks on the CPU.

The definition is the torch side (``DqnLearner._losses``), which every other network, loss, device and precision takes;
tests hold gradients, loss and figures of the two against each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onibi.learners.loss_program import Inputs
from onibi.learners.networks.build import QNetwork
from onibi.learners.numpy_gradients.layers import Rows, array_of
from onibi.learners.numpy_gradients.q_network import SmallQNetwork
from onibi.learners.numpy_gradients.value_terms import value_terms
from onibi.learners.q_learner import Learnt
from onibi.learners.q_targets import bootstrap_value, masked_values
from onibi.learners.returns import n_step_return, window_discounts
from onibi.learners.value_losses import ValueHead
from onibi.platform.spec import ACTION_MASK


class QGradient:
    """Gives a batch's loss and leaves its gradient in the parameters' ``grad``.

    It reads the parameters' memory: from then on they must be moved in place, as Adam and ``load_state_dict`` do.

    Args:
        network: to learn with, and
        target: to bootstrap from; both ``is_small_q_network``.
        value_head: a loss that takes scalars.
        discount: γ.
        double: whether ``network`` chooses the bootstrap's action.
        temperature: of the policy that bootstraps; 0 is greedy.
    """

    def __init__(
        self,
        network: QNetwork,
        target: QNetwork,
        value_head: ValueHead,
        *,
        discount: float,
        double: bool,
        temperature: float,
    ) -> None:
        self._network, self._target = SmallQNetwork(network), SmallQNetwork(target)
        self._value_head, self._discount, self._double, self._temperature = value_head, discount, double, temperature

    def __call__(self, inputs: Inputs) -> tuple[Tensor, Learnt]:
        """The loss [] float32, and what it was made of; see ``DqnLearner._losses``."""
        groups = {name: {key: array_of(each) for key, each in group.items()} for name, group in inputs.items()}
        with np.errstate(all="ignore"):  # what is not finite is found in loss and gradient, as on the torch side
            loss, figures = self._compute(groups["batch"], groups["observation"], groups["bootstrap"])
        return torch.tensor(loss), Learnt(**{name: torch.from_numpy(figure) for name, figure in figures.items()})

    def _compute(
        self,
        batch: Mapping[str, NDArray[Any]],
        observation: Mapping[str, NDArray[Any]],
        bootstrap: Mapping[str, NDArray[Any]],
    ) -> tuple[np.float32, dict[str, NDArray[Any]]]:
        target = self._targets(batch, bootstrap)
        outputs = self._network.forward(observation)
        prediction = outputs[np.arange(len(outputs)), batch["action"]]
        terms, slopes = value_terms(self._value_head, prediction, target)
        weights: Rows = np.divide(batch["weight"], len(target), dtype=np.float32)
        loss = np.vdot(weights, terms["loss"])
        self._network.backward(batch["action"], slopes * weights[:, None])
        return loss, terms | {"prediction": prediction, "outputs": outputs, "target": target}

    def _targets(self, batch: Mapping[str, NDArray[Any]], observation: Mapping[str, NDArray[Any]]) -> Rows:
        """[B] n-step returns."""
        continues, used, reward = (torch.from_numpy(batch[name]) for name in ("continues", "used", "reward"))
        bootstrap = torch.from_numpy(self._bootstrap(observation))
        return array_of(n_step_return(reward, window_discounts(continues, used, self._discount), bootstrap))

    def _bootstrap(self, observation: Mapping[str, NDArray[Any]]) -> Rows:
        """[B]; see ``bootstrap_value``. A greedy policy's costs less: the target is asked for one action alone."""
        outputs = self._target.forward(observation)
        mask = observation.get(ACTION_MASK)
        allowed = None if mask is None else torch.from_numpy(mask)
        if self._double:
            chooser = torch.from_numpy(self._network.values(self._network.forward(observation)))
            if self._temperature == 0.0:
                best = array_of(masked_values(chooser, allowed).argmax(dim=1))
                return self._target.values(outputs[np.arange(len(outputs)), best])
        values = torch.from_numpy(self._target.values(outputs))
        return array_of(bootstrap_value(values, chooser if self._double else values, self._temperature, allowed))
