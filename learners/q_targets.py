"""What a Q-learner bootstraps from: the value, or the distribution, of the policy that will act there.

``chooser`` holds the values by which that policy chooses: the network's own with double Q-learning (van Hasselt et al.
2016, arXiv 1509.06461), else the target's. Greedy, or with a temperature the softmax policy, whose expected value
Σₐ π(a) Q(a) is the bootstrap (Expected SARSA, van Seijen et al. 2009), as it is that policy which acts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from onibi.learners.shapes import check_shapes
from onibi.learners.value_losses import ValueHead

_LEAST_PRIORITY = 1e-6
"""Added to each priority, so that every row can be drawn again (Schaul et al. 2016, §3.3)."""


def bootstrap_value(values: Tensor, chooser: Tensor, temperature: float, allowed: Tensor | None = None) -> Tensor:
    """Σₐ π(a) Q(a), with π greedy in ``chooser`` or softmax(chooser/τ).

    Args:
        values: [B, A] float32 Q.
        chooser: [B, A] float32.
        temperature: τ ≥ 0 in value units; 0 is greedy.
        allowed: [B, A], 0 where an action is not allowed; a row that allows none allows all. None allows all.
    Returns: [B] float32. Raises: ValueError where shapes disagree.
    """
    check_shapes("B A", values=values, chooser=chooser)
    chooser = masked_values(chooser, allowed)
    if temperature > 0:
        return (torch.softmax(chooser / temperature, dim=1) * values).sum(dim=1)
    return values.gather(1, chooser.argmax(dim=1, keepdim=True)).squeeze(1)


def bootstrap_distribution(
    head: ValueHead, outputs: Tensor, chooser: Tensor, temperature: float, allowed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Σₐ π(a) Z(a): values and their probabilities, both [B, M]; its mean is ``bootstrap_value``.

    Args:
        head: reads the outputs.
        outputs: [B, A, K] float32 of the target.
        chooser, temperature, allowed: as for ``bootstrap_value``.
    Raises: ValueError where shapes disagree.
    """
    check_shapes("B A", chooser=chooser)
    chooser = masked_values(chooser, allowed)
    if temperature > 0:
        return head.mixture(outputs, torch.softmax(chooser / temperature, dim=1))
    rows = torch.arange(len(outputs), device=outputs.device)
    best = outputs[rows, chooser.argmax(dim=1)][:, None]
    return head.mixture(best, torch.ones_like(chooser[:, :1]))


def masked_values(values: Tensor, allowed: Tensor | None) -> Tensor:
    """−∞ where an action is not allowed.

    Args:
        values: [B, A] float32.
        allowed: [B, A], 0 where an action is not allowed; a row that allows none is left as it is. None allows all.
    Returns: [B, A] float32. Raises: ValueError where shapes disagree.
    """
    if allowed is None:
        return values
    check_shapes("B A", values=values, allowed=allowed)
    given = allowed != 0
    return values.masked_fill(~given & given.any(dim=1, keepdim=True), -torch.inf)


def replay_priorities(head: ValueHead, loss: Tensor, floor: Tensor, prediction: Tensor, target: Tensor) -> Tensor:
    """How much there is to learn from each row, for prioritized replay.

    Losses that classify (``hl_gauss``, ``two_hot``, ``c51``): the Kullback-Leibler divergence of the prediction from
    its target, which is the cross-entropy less the target's entropy (Rainbow, Hessel et al. 2018, arXiv 1710.02298, §3;
    without the subtraction a row that is learnt to the end would still rank by its target's width). Regressions, of a
    scalar or of quantiles: |y − v|, of the means (Schaul et al. 2016, arXiv 1511.05952); a quantile loss has a floor
    that is not known, the spread of the returns, and would rank noisy rows first for ever.

    Args:
        head: whose loss it is.
        loss: [B] float32, and
        floor: [B] float32, of ``LossTerms``.
        prediction: [B, K] float32, outputs of the actions taken.
        target: [B] float32, in value units; of a distribution its mean.
    Returns: [B] float32 without gradient, above 0 where all is finite.
    """
    check_shapes("B", loss=loss, floor=floor, target=target)
    if head.centres is not None:
        return (loss - floor).detach().clamp(min=0.0) + _LEAST_PRIORITY
    return (target - head.decode(prediction.detach())).abs() + _LEAST_PRIORITY
