"""`lightly.loss.pmsn_loss`."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ...functional._operator import is_transformed
from .msn_loss import MSNLoss


class PMSNLoss(MSNLoss):
    """`MSNLoss` towards a power law, as Lightly's class of that name.

        loss = mean_i H(q_i, p_i) + regularization_weight * KL(prior || mean_i p_i)
        prior_k proportional to k ** -power_law_exponent

    The paper prints the other direction, KL(mean || prior): `ssl_fast.losses.PMSNLoss`. A
    prototype that nobody picks gives a finite loss here, infinity in Lightly.

    Args:
        power_law_exponent: of the prior; the others as in `MSNLoss`.

    Source: lightly 1.6.0 (the same in 1.5.26).
    """

    _prior_first = True

    def __init__(
        self,
        temperature: float = 0.1,
        sinkhorn_iterations: int = 3,
        regularization_weight: float = 1,
        power_law_exponent: float = 0.25,
        gather_distributed: bool = False,
        *,
        strict: bool = True,
    ):
        super().__init__(
            temperature=temperature,
            sinkhorn_iterations=sinkhorn_iterations,
            regularization_weight=regularization_weight,
            gather_distributed=gather_distributed,
            strict=strict,
        )
        self.power_law_exponent = power_law_exponent
        self._held: tuple[tuple, Tensor] | None = None

    def _fused_prior(self, anchors: Tensor, prototypes: Tensor) -> tuple[bool, Tensor | None]:
        wanted = len(prototypes), self.power_law_exponent, anchors.device
        if self._held is None or self._held[0] != wanted:
            self._held = wanted, _power_law_distribution(*wanted)
        return type(self).regularization_loss is PMSNLoss.regularization_loss, self._held[1]

    def regularization_loss(self, mean_anchor_probs: Tensor) -> Tensor:
        """KL(prior || p) of mean probabilities (K,)."""
        prior = _power_law_distribution(
            len(mean_anchor_probs), self.power_law_exponent, mean_anchor_probs.device
        )
        return _divergence(prior, mean_anchor_probs)


class PMSNCustomLoss(MSNLoss):
    """`MSNLoss` towards a distribution of the caller's, as Lightly's class of that name.

    Args:
        target_distribution: called with the mean probabilities (K,); returns the prior (K,), which
            sums to one. If it depends on them differentiably, it gets their gradient.
        The others as in `MSNLoss`.

    Source: lightly 1.6.0 (the same in 1.5.26). Cost: that of `PMSNLoss`; four
        products more for a differentiable function.
    """

    _prior_first = True

    def __init__(
        self,
        target_distribution: Callable[[Tensor], Tensor],
        temperature: float = 0.1,
        sinkhorn_iterations: int = 3,
        regularization_weight: float = 1,
        gather_distributed: bool = False,
        *,
        strict: bool = True,
    ):
        super().__init__(
            temperature=temperature,
            sinkhorn_iterations=sinkhorn_iterations,
            regularization_weight=regularization_weight,
            gather_distributed=gather_distributed,
            strict=strict,
        )
        self.target_distribution = target_distribution
        self._differentiable = 0  # the id of a distribution that was found to be so

    def forward(
        self,
        anchors: Tensor,
        targets: Tensor,
        prototypes: Tensor,
        target_sharpen_temperature: float = 0.25,
    ) -> Tensor:
        """As `MSNLoss.forward`."""
        inputs = anchors, targets, prototypes, target_sharpen_temperature
        try:
            return super().forward(*inputs)
        except _Differentiable:
            self._differentiable = id(self.target_distribution)
            return super().forward(*inputs)

    def _fused_prior(
        self, anchors: Tensor, prototypes: Tensor
    ) -> tuple[bool, Callable[[Tensor], Tensor] | None]:
        own = type(self).regularization_loss is not PMSNCustomLoss.regularization_loss
        known = self._differentiable == id(self.target_distribution)
        if own or known or is_transformed():  # and leaves that require gradients are refused
            return False, None
        return True, functools.partial(self._constant, dtype=anchors.dtype)

    def _constant(self, mean: Tensor, dtype: torch.dtype) -> Tensor:
        """The prior; an exception where it follows the mean, as the gradient must then."""
        with torch.enable_grad():
            prior = self.target_distribution(mean.to(dtype).requires_grad_())
        if prior.requires_grad:
            raise _Differentiable
        return prior.to(mean.device)

    def regularization_loss(self, mean_anchor_probs: Tensor) -> Tensor:
        """KL(prior || p) of mean probabilities (K,)."""
        prior = self.target_distribution(mean_anchor_probs).to(mean_anchor_probs.device)
        return _divergence(prior, mean_anchor_probs)


class _Differentiable(Exception):
    pass


def _divergence(prior: Tensor, mean: Tensor) -> Tensor:
    return torch.nn.functional.kl_div(mean.log(), prior, reduction="sum")


def _power_law_distribution(size: int, exponent: float, device: torch.device) -> Tensor:
    """prior_k proportional to k ** -exponent, k = 1 ... size, summing to one."""
    prior = torch.arange(1, size + 1, device=device) ** (-exponent)
    return prior / prior.sum()
