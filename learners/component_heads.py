"""One value head for each term of the reward, with its own discount: Q(o, a) = Σ_c Q_c(o, a).

    y_c = r_{c,1} + γ_c(r_{c,2} + … + γ_c Q̄_c(o′, a*))        a* greedy in the sum over all heads, one for all of them

The decomposition of van Seijen et al. 2017 (arXiv 1706.04208) with the greedy action of the sum (Russell & Zimdars
2003), and the two horizons of Burda et al. 2018 (arXiv 1810.12894, §2.3). With one discount for all and all of them
episodic the sum learns what one head would learn from the sum of the rewards.

Difference from the latter: a head that is not episodic goes on behind the end of an episode from its last observation,
as every head does where it was truncated, not from the next episode's first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from onibi.learners.q_targets import bootstrap_value
from onibi.learners.returns import n_step_return, window_discounts
from onibi.learners.shapes import check_shapes
from onibi.learners.value_losses import HeadForm, LossTerms, ValueHead, ValueLossName, huber, mse
from onibi.platform.config import Settings
from onibi.platform.number_ranges import Probability

SCALAR_LOSSES = ("mse", "huber")
"""Those whose heads emit one number, so that the sum over heads is read like the mean over quantiles."""


@dataclass(frozen=True, kw_only=True)
class ComponentHeadSettings(Settings):
    """What a term of the reward is valued by."""

    discount: Probability | None = None  # γ_c; null: the learner's
    episodic: bool = True  # whether nothing follows the end of an episode; False: its return goes on


def component_form(form: HeadForm, heads: int) -> HeadForm:
    """The form of so many scalar heads side by side, of one such head's."""
    return replace(form, outputs=heads)


class ComponentValueHead(ValueHead):
    """C numbers for each action, each C · Q_c: so their mean is Σ_c Q_c, and policies read them like quantiles.

    Args:
        name: ``mse`` or ``huber``.
        huber_delta: δ of ``huber``.
        heads: by the name of the term.
        discount: of heads that have none.
    """

    def __init__(
        self, name: ValueLossName, huber_delta: float, heads: Mapping[str, ComponentHeadSettings], discount: float
    ) -> None:
        super().__init__(name, None, 0.0, huber_delta)
        self.form = component_form(self.form, len(heads))
        self.outputs = len(heads)
        self.names = tuple(heads)
        self._discounts = [discount if head.discount is None else head.discount for head in heads.values()]
        self._episodic = [head.episodic for head in heads.values()]

    def components(self, outputs: Tensor) -> Tensor:
        """[..., C] outputs → Q_c [..., C]."""
        return outputs / self.outputs

    def targets(
        self,
        rewards: Tensor,
        continues: Tensor,
        used: Tensor,
        outputs: Tensor,
        chooser: Tensor,
        temperature: float,
        allowed: Tensor | None,
    ) -> Tensor:
        """n-step targets of all heads.

        Args:
            rewards: [B, n, C] float32, the terms.
            continues: [B, n] float32, 0 where the step terminated.
            used: [B, n], whether the window has this step.
            outputs: [B, A, C] float32, of the target network.
            chooser: [B, A] float32, sums by which the policy acts.
            temperature, allowed: as for ``bootstrap_value``.
        Returns: [B, C] float32. Raises: ValueError where shapes disagree.
        """
        check_shapes("B n C", rewards=rewards)
        values, goes_on = self.components(outputs), torch.ones_like(continues)
        targets = []
        for number, (discount, episodic) in enumerate(zip(self._discounts, self._episodic, strict=True)):
            discounts = window_discounts(continues if episodic else goes_on, used, discount)
            bootstrap = bootstrap_value(values[..., number], chooser, temperature, allowed)
            targets.append(n_step_return(rewards[..., number], discounts, bootstrap))
        return torch.stack(targets, dim=1)

    def component_terms(self, prediction: Tensor, targets: Tensor) -> LossTerms:
        """Σ_c loss(Q_c, y_c) of each row.

        Args:
            prediction: [B, C] float32, outputs of the actions taken.
            targets: [B, C] float32.
        Raises: ValueError where shapes disagree.
        """
        check_shapes("B C", prediction=prediction, targets=targets)
        values, wanted = self.components(prediction).flatten(), targets.flatten()
        each = mse(values, wanted) if self.name == "mse" else huber(values, wanted, self.huber_delta)
        loss = each.view_as(targets).sum(dim=1)
        return LossTerms(loss, torch.zeros_like(loss), torch.zeros_like(loss, dtype=torch.bool))
