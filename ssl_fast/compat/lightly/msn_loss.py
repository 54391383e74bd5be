"""`lightly.loss.msn_loss`."""

import math
from typing import Any

import torch
from torch import Tensor

from ...functional import Assignment, msn
from ...functional._mean_softmax import mean_softmax
from ._common import as_lightly, check_gather, warn, world


class MSNLoss(torch.nn.Module):
    """MSN's loss of masked anchors, as Lightly's class of that name.

        loss = mean_i H(q_i, p_i) + regularization_weight * (log K - H(mean_i p_i))
        p = softmax(cos(anchor, prototype) / temperature)

    q: the targets' probabilities, sharpened and balanced by Sinkhorn-Knopp, a constant. Each
    process returns its own rows' loss, and the mean of p is its own too, as in Lightly.

    Args:
        temperature: of anchors and targets.
        sinkhorn_iterations: on the targets; 0 leaves them out.
        regularization_weight: of the mean's entropy; nothing is added unless it is positive.
        gather_distributed: Sinkhorn over the targets of all processes.
        me_max_weight: Lightly before 1.6: takes the place of regularization_weight, with a
            DeprecationWarning. There it stood before gather_distributed: that order is understood.
        strict: False takes the mean of p over all processes too, where `gather_distributed`, as
            the paper has it; every process then returns the loss of all rows.

    Source: lightly 1.6.0 and 1.5.26.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        sinkhorn_iterations: int = 3,
        regularization_weight: float = 1.0,
        gather_distributed: bool = False,
        me_max_weight: float | None = None,
        *,
        strict: bool = True,
    ):
        super().__init__()
        if not isinstance(gather_distributed, bool):  # Lightly 1.5 had them the other way round
            gather_distributed, me_max_weight = bool(me_max_weight), gather_distributed
        if temperature <= 0:
            raise ValueError(f"temperature must be in (0, inf) but is {temperature}.")
        if sinkhorn_iterations < 0:
            raise ValueError(f"sinkhorn_iterations must be >= 0 but is {sinkhorn_iterations}.")
        check_gather("gather_distributed", gather_distributed)
        if me_max_weight is not None:
            warn(
                "me_max_weight is deprecated in favor of regularization_weight and will be "
                "removed in the future.",
                DeprecationWarning,
            )
            regularization_weight = me_max_weight
        self.temperature = temperature
        self.sinkhorn_iterations = sinkhorn_iterations
        self.regularization_weight = regularization_weight
        self.gather_distributed = gather_distributed
        self._strict = strict

    def forward(
        self,
        anchors: Tensor,
        targets: Tensor,
        prototypes: Tensor,
        target_sharpen_temperature: float = 0.25,
    ) -> Tensor:
        """The loss, 0-d.

        Args:
            anchors: (V N, D), view by view; normalised here, as all inputs are.
            targets: (N, D).
            prototypes: (K, D); they get the gradient of the anchors' path.
            target_sharpen_temperature: t in q = p^(1/t), normalised.
        """
        weight = max(self.regularization_weight, 0.0)
        fused, prior = self._fused_prior(anchors, prototypes) if weight else (True, None)
        group = world(self.gather_distributed)
        loss = msn(
            anchors,
            targets,
            prototypes,
            temperature=self.temperature,
            sharpening=target_sharpen_temperature,
            prior=prior,
            prior_weight=weight if fused else 0.0,
            reverse=self._prior_first,
            sinkhorn_iterations=self.sinkhorn_iterations,
            group=None if self._strict else group,
            sinkhorn_group=group,
        )
        if not fused:
            mean = self._mean(anchors, prototypes)
            loss = loss + weight * self.regularization_loss(mean_anchor_probs=mean)
        return as_lightly(loss, anchors.dtype)

    _prior_first = False  # KL(prior || mean), PMSN's direction

    def _fused_prior(self, anchors: Tensor, prototypes: Tensor) -> tuple[bool, Any]:
        """Whether `msn` has this regularization, and the prior of its own."""
        return type(self).regularization_loss is MSNLoss.regularization_loss, None

    def _mean(self, anchors: Tensor, prototypes: Tensor) -> Tensor:
        """Mean probabilities (K,) with gradients, for any function of them."""
        group = None if self._strict else world(self.gather_distributed)
        return mean_softmax(anchors, prototypes, temperature=self.temperature, group=group)

    def regularization_loss(self, mean_anchor_probs: Tensor) -> Tensor:
        """log K - H(p) of mean probabilities (K,)."""
        return math.log(len(mean_anchor_probs)) - torch.special.entr(mean_anchor_probs).sum()


def prototype_probabilities(queries: Tensor, prototypes: Tensor, temperature: float) -> Tensor:
    """softmax(queries @ prototypes.T / temperature), (N, K), with gradients."""
    return torch.softmax(queries @ prototypes.T / temperature, dim=1)


def sharpen(probabilities: Tensor, temperature: float) -> Tensor:
    """p^(1 / temperature), rows normalised, with gradients."""
    powers = probabilities ** (1.0 / temperature)
    return powers / powers.sum(1, keepdim=True)


@torch.no_grad()
def sinkhorn(
    probabilities: Tensor, iterations: int = 3, gather_distributed: bool = False
) -> Tensor:
    """Probabilities (N, K) balanced over the prototypes, rows summing to one."""
    if iterations <= 0:
        return probabilities
    balanced = Assignment.sinkhorn(
        probabilities.log().clamp_min(_SMALLEST),
        epsilon=1.0,
        iterations=iterations,
        group=world(gather_distributed),
    )
    return balanced.dense().to(probabilities.dtype)


_SMALLEST = -1e4  # for log 0: nothing is left of it
