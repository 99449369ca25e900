"""Value losses by name: what a value head emits, how it is read, and what it is taught.

Scalar targets, for every learner: ``mse`` and ``huber`` regress on the scalar; ``two_hot`` and ``hl_gauss``
(Farebrother et al. 2024, arXiv 2403.03950) classify, with the scalar shared between two atoms, or as a Gaussian
histogrammed over bins. Distributions as targets, for Q-learners with n-step windows: ``c51``, ``quantile`` and ``iqn``
of ``distributional_losses.py``.

Differences from the paper: targets outside the support are clamped to it and counted (unclamped they tend to 0/0); σ
may be given in value units; the head starts at value 0 instead of the middle of the support; bins may be spaced by
symlog (Hafner et al. 2023, arXiv 2301.04104), read in value units and therefore without bias under noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from onibi.learners.distributional_losses import categorical_projection, quantile_huber, quantile_midpoints
from onibi.learners.gaussian_targets import centred_hl_gauss_target, centring_error, hl_gauss_target, readout_error
from onibi.learners.shapes import check_shapes
from onibi.learners.support import Support, SupportSettings, resolve_sigma, resolve_support
from onibi.platform.errors import ConfigError

ScalarLossName = Literal["hl_gauss", "two_hot", "mse", "huber"]
ValueLossName = Literal["hl_gauss", "two_hot", "mse", "huber", "c51", "quantile", "iqn"]
DISTRIBUTION_LOSSES = ("c51", "quantile", "iqn")
"""Their target is a distribution: only a Q-learner with n-step windows can give it."""
BINNED_LOSSES = ("hl_gauss", "two_hot", "c51")
"""They read a support."""
_OPTION_READERS = {
    "support": BINNED_LOSSES,
    "support.sigma_bins or sigma_value": ("hl_gauss",),
    "huber_delta": ("huber", "quantile", "iqn"),
    "quantiles": ("quantile", "iqn"),
}
_LEAST_PROBABILITY = 1e-36
"""What log p is taken of at least: p log p tends to 0, and ``xlogy`` takes twice as long."""
_LARGEST_CENTRING_ERROR, _LARGEST_READOUT_ERROR = 0.01, 0.5
"""In bins. Over linear bins a σ near 0 misses by half a bin, which is a choice; only too wide a one misses by more."""
_INITIAL_SPREAD = 1e-3
"""Probability spread over all bins at the start: 0 would start logits at −∞, much more would start values above 0."""
_DEFAULT_HUBER_DELTA = 1.0
_DEFAULT_QUANTILES = 32


def mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Half squared error  ½(v − y)².

    Args:
        prediction: [B] float32.
        target: [B] float32, no gradient flows into it.
    Returns: [B] float32. Raises: ValueError where shapes disagree.
    """
    check_shapes("B", prediction=prediction, target=target)
    return 0.5 * (prediction - target.detach()) ** 2


def huber(prediction: Tensor, target: Tensor, delta: float) -> Tensor:
    """Huber loss: ½e² for |e| ≤ δ, else δ(|e| − ½δ), with e = v − y.

    Args:
        prediction: [B] float32.
        target: [B] float32, no gradient flows into it.
        delta: δ > 0 in value units.
    Returns: [B] float32. Raises: ValueError where shapes disagree.
    """
    check_shapes("B", prediction=prediction, target=target)
    return functional.huber_loss(prediction, target.detach(), reduction="none", delta=delta)


def two_hot_target(value: Tensor, atoms: Tensor) -> Tensor:
    """Probabilities of the two atoms around y, by nearness: Σ_i p_i z_i = y exactly, at any spacing of the atoms.

    Args:
        value: [B] float32 y, clamped to the outermost atoms.
        atoms: [K] float32, rising.
    Returns: [B, K] float32 without gradient, rows sum to 1. Raises: ValueError where shapes disagree.
    """
    check_shapes("B", value=value)
    return categorical_projection(value[:, None], torch.ones_like(value)[:, None], atoms)


def cross_entropy(logits: Tensor, probabilities: Tensor) -> Tensor:
    """−Σ_i stop_grad(p_i) · log softmax(logits)_i.

    Args:
        logits: [B, K] float32.
        probabilities: [B, K] float32, rows sum to 1.
    Returns: [B] float32 in nats. Raises: ValueError where shapes disagree.
    """
    check_shapes("B K", logits=logits, probabilities=probabilities)
    return -(probabilities.detach() * functional.log_softmax(logits, dim=1)).sum(dim=1)


def entropy(probabilities: Tensor) -> Tensor:
    """−Σ_i p_i log p_i, the least that a cross-entropy with this target can be.

    Args:
        probabilities: [B, K] float32, rows sum to 1.
    Returns: [B] float32 in nats. Raises: ValueError where the shape is another.
    """
    check_shapes("B K", probabilities=probabilities)
    return -(probabilities * probabilities.clamp(min=_LEAST_PROBABILITY).log()).sum(dim=1)


@dataclass(frozen=True)
class LossTerms:
    """What one value loss gives for a batch.

    Args:
        loss: [B] float32, with gradient.
        floor: [B] float32, what ``loss`` cannot go below (0 for regressions).
        clipped: [B] bool, whether the target lay outside the support; for ``c51`` float32, which share of it did.
    """

    loss: Tensor
    floor: Tensor
    clipped: Tensor


@dataclass(frozen=True)
class HeadForm:
    """What a head emits for each action; enough to build it without a loss, in an actor.

    Args:
        outputs: K numbers; for an implicit head the K fractions that acting averages over.
        classified: logits of bins, read through their centres; else values, read by their mean.
        implicit: quantiles at fractions that are an input of the head.
    """

    outputs: int
    classified: bool
    implicit: bool


def head_form(name: ValueLossName, bins: int, quantiles: int) -> HeadForm:
    """The form of the head that a loss teaches."""
    if name in BINNED_LOSSES:
        return HeadForm(bins, classified=True, implicit=False)
    outputs = quantiles if name in ("quantile", "iqn") else 1
    return HeadForm(outputs, classified=False, implicit=name == "iqn")


def check_loss_options(
    name: ValueLossName, support: SupportSettings, huber_delta: float | None, quantiles: int | None
) -> None:
    """Refuse options that the loss would not read. Raises: ValueError naming the option and who reads it."""
    given = {
        "support": support != SupportSettings(),
        "support.sigma_bins or sigma_value": (support.sigma_bins, support.sigma_value) != (None, None),
        "huber_delta": huber_delta is not None,
        "quantiles": quantiles is not None,
    }
    for option, is_given in given.items():
        readers = _OPTION_READERS[option]
        if is_given and name not in readers:
            named = " and ".join(readers)
            raise ValueError(
                f"{option} is read by value_loss {named} alone, not by {name}: leave it out, or set it to null"
            )


def check_scalar_loss(name: str, learner: str) -> None:
    """Refuse a loss on distributions where the targets are scalars. Raises: ValueError naming the pair."""
    if name in DISTRIBUTION_LOSSES:
        raise ValueError(
            f"value_loss {name} learns a distribution from the n-step windows of a Q-learner; the targets of "
            f"{learner} are scalars: take hl_gauss, two_hot, mse or huber, or learner.kind dqn"
        )


class ValueHead:
    """A value loss with the form of the head that it teaches.

    Args:
        name: the loss.
        support: bins, needed by ``hl_gauss``, ``two_hot`` and ``c51``.
        sigma: width of the Gaussian in the units of the support's spacing, ``hl_gauss`` alone.
        huber_delta: δ, ``huber``; κ, ``quantile`` and ``iqn``.
        quantiles: N, ``quantile`` and ``iqn``.
    """

    def __init__(
        self, name: ValueLossName, support: Support | None, sigma: float, huber_delta: float, quantiles: int = 0
    ) -> None:
        self.name = name
        self.support = support
        self.sigma = sigma
        self.huber_delta = huber_delta
        self.form = head_form(name, 0 if support is None else support.bins, quantiles)
        self.outputs = self.form.outputs
        self.takes_distributions = name in DISTRIBUTION_LOSSES
        self.centres: Tensor | None = None
        self._edges, self._bounds = torch.zeros(0), torch.zeros(2)
        self._fractions = torch.zeros(0)
        if name in BINNED_LOSSES:
            if support is None:
                raise ValueError(f"{name} needs a support")
            centres = support.centres if name == "hl_gauss" else support.atoms
            self.centres = torch.tensor(centres, dtype=torch.float32)
            self._edges = torch.tensor(support.edges, dtype=torch.float32)
            self._bounds = torch.tensor([support.low, support.high], dtype=torch.float32)
        elif name in ("quantile", "iqn"):
            self._fractions = quantile_midpoints(quantiles)

    def to(self, device: torch.device) -> ValueHead:
        """Move the bins to a device; returns itself."""
        self._edges, self._bounds = self._edges.to(device), self._bounds.to(device)
        self._fractions = self._fractions.to(device)
        if self.centres is not None:
            self.centres = self.centres.to(device)
        return self

    def decode(self, prediction: Tensor) -> Tensor:
        """Values that outputs stand for: softmax expectation over the centres, mean of quantiles, or the scalar itself.

        Args:
            prediction: [..., K] float32.
        Returns: [...] float32; gradients flow.
        """
        if self.centres is None:
            return prediction.squeeze(-1) if self.outputs == 1 else prediction.mean(-1)
        return torch.softmax(prediction, dim=-1) @ self.centres

    def initial_bias(self) -> Tensor:
        """[K] float32 outputs that decode to 0, or to the end of the support nearest to it."""
        if self.centres is None:
            return torch.zeros(1 if self.form.implicit else self.outputs)
        probabilities = self._encode(torch.zeros(1, device=self._edges.device), self.centres)[0]
        # On one-sided symlog bins the far centres would pull the mean many bins away.
        width = self.centres.diff()[probabilities[:-1].argmax()]
        spread = min(_INITIAL_SPREAD, float(0.5 * width / self.centres.mean().abs().clamp(min=1e-30)))
        return (probabilities + spread / self.outputs).log().cpu()

    def terms(self, prediction: Tensor, target: Tensor) -> LossTerms:
        """Loss of each row towards a scalar, its floor, and which targets were clipped.

        Args:
            prediction: [B, K] float32.
            target: [B] float32.
        Raises: ValueError where shapes disagree, or the loss takes distributions.
        """
        if self.takes_distributions:
            raise ValueError(f"{self.name} takes a distribution as target: see distribution_terms")
        if self.centres is not None:
            probabilities = self._encode(target, self.centres)
            return LossTerms(cross_entropy(prediction, probabilities), entropy(probabilities), self._outside(target))
        scalar = self.decode(prediction)
        loss = mse(scalar, target) if self.name == "mse" else huber(scalar, target, self.huber_delta)
        return LossTerms(loss, torch.zeros_like(target), torch.zeros_like(target, dtype=torch.bool))

    @torch.no_grad()
    def classification(self, prediction: Tensor, target: Tensor) -> tuple[LossTerms, Tensor]:
        """``terms`` of a loss over bins, and the slope of each row's loss by its logits by hand: softmax − p, [B, K].

        Args:
            prediction: [B, K] float32.
            target: [B] float32.
        Raises: ValueError where shapes disagree, or the loss is none over bins for scalars.
        """
        if self.centres is None or self.takes_distributions:
            raise ValueError(f"{self.name} does not classify scalars")
        check_shapes("B K", prediction=prediction)
        probabilities = self._encode(target, self.centres)
        log_probs = functional.log_softmax(prediction, dim=1)
        loss = -(probabilities * log_probs).sum(dim=1)
        terms = LossTerms(loss, entropy(probabilities), self._outside(target))
        return terms, log_probs.exp_().sub_(probabilities)

    def mixture(self, outputs: Tensor, policy: Tensor) -> tuple[Tensor, Tensor]:
        """The distribution Σ_a π(a) Z(a) that a policy bootstraps from.

        Args:
            outputs: [B, A, K] float32.
            policy: [B, A] float32 π, rows sum to 1.
        Returns: values and their probabilities, both [B, M]. Raises: ValueError where the loss takes scalars.
        """
        if self.centres is not None:
            probabilities = (policy[:, :, None] * torch.softmax(outputs, dim=-1)).sum(dim=1)
            return self.centres.expand_as(probabilities), probabilities
        return outputs.flatten(1), (policy / outputs.shape[2]).repeat_interleave(outputs.shape[2], dim=1)

    def distribution_terms(
        self, prediction: Tensor, fractions: Tensor | None, values: Tensor, probabilities: Tensor
    ) -> LossTerms:
        """Loss of each row towards a distribution, its floor, and the share of the target outside the support.

        Args:
            prediction: [B, K] float32.
            fractions: [B, K] float32 τ at which ``iqn`` was asked; None for the other losses.
            values: [B, M] float32, of the target.
            probabilities: [B, M] float32, rows sum to 1.
        Raises: ValueError where shapes disagree, or the loss takes scalars.
        """
        if not self.takes_distributions:
            raise ValueError(f"{self.name} takes a scalar as target: see terms")
        if self.centres is not None:
            projected = categorical_projection(values, probabilities, self.centres)
            clipped = (probabilities * self._outside(values)).sum(dim=1)
            return LossTerms(cross_entropy(prediction, projected), entropy(projected), clipped)
        at = self._fractions.expand_as(prediction) if fractions is None else fractions
        loss = quantile_huber(prediction, at, values, probabilities, self.huber_delta)
        return LossTerms(loss, torch.zeros_like(loss), torch.zeros_like(loss, dtype=torch.bool))

    def _encode(self, value: Tensor, centres: Tensor) -> Tensor:
        """[B] → [B, K] target probabilities of a binned loss."""
        if self.name != "hl_gauss":
            return two_hot_target(value, centres)
        if self.support is not None and self.support.spacing == "symlog":
            return centred_hl_gauss_target(value, self._edges, centres, self.sigma)
        return hl_gauss_target(value, self._edges, self.sigma)

    def _outside(self, value: Tensor) -> Tensor:
        return (value < self._bounds[0]) | (value > self._bounds[1])


def build_value_head(
    name: ValueLossName,
    support: SupportSettings,
    huber_delta: float | None,
    quantiles: int | None,
    value_bounds: tuple[float, float] | None,
) -> ValueHead:
    """The head of a learner's settings.

    Args:
        name: the loss.
        support: range or auto; read by the losses over bins.
        huber_delta: None for 1.
        quantiles: None for 32.
        value_bounds: least and largest discounted return; read where the support is auto.
    Raises: ConfigError where no support can be placed, symlog bins are too wide to be taught over, or the Gaussian is
        too wide for the support.
    """
    delta = _DEFAULT_HUBER_DELTA if huber_delta is None else huber_delta
    if name not in BINNED_LOSSES:
        return ValueHead(name, None, 0.0, delta, _DEFAULT_QUANTILES if quantiles is None else quantiles)
    resolved = resolve_support(support, value_bounds)
    head = ValueHead(name, resolved, resolve_sigma(support, resolved), delta)
    if name == "hl_gauss":
        _check_gaussian(head, resolved)
    return head


def _check_gaussian(head: ValueHead, support: Support) -> None:
    """Raises: ConfigError where what is read off the bins would miss what they are taught by too much."""
    assert head.centres is not None, "it has bins"
    is_symlog = support.spacing == "symlog"
    error_of, largest = (
        (centring_error, _LARGEST_CENTRING_ERROR) if is_symlog else (readout_error, _LARGEST_READOUT_ERROR)
    )
    error = error_of(torch.tensor(support.edges, dtype=torch.float32), head.centres, head.sigma)
    if error <= largest:
        return
    place, width = f"from {support.low:g} to {support.high:g} with a Gaussian of", head.sigma / support.width
    if is_symlog:
        raise ConfigError(
            f"learner.support: {support.bins} symlog bins {place} {width:g} bins: the value read would miss its target "
            f"by {error:.2g} of a bin ({largest} at most). Raise support.bins, lower support.sigma_bins, or take "
            "value_loss: two_hot."
        )
    raise ConfigError(
        f"learner.support: {support.bins} bins {place} {width:g} bins ({head.sigma:g} in value units): its tails are "
        f"cut, and values would be read up to {error:.2g} bins away from their targets ({largest} at most). Lower "
        "support.sigma_bins or sigma_value, or set support.low and support.high further apart."
    )


def chosen_head_form(name: ValueLossName, support: SupportSettings, quantiles: int | None) -> HeadForm:
    """The form of the head that ``build_value_head`` makes, without a range for its bins."""
    return head_form(name, support.bins, _DEFAULT_QUANTILES if quantiles is None else quantiles)
