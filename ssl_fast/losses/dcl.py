"""Decoupled contrastive learning (Yeh et al. 2021)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..functional import decoupled_nt_xent
from ..functional._check import by_name, group_name, positive
from ..functional._rows import mises_fisher_weights


class DCLLoss(torch.nn.Module):
    """NT-Xent whose denominator leaves the positive out.

        L = 1/(2N) sum_i [ LSE_{j != i, p(i)} (u_i u_j / T) - w_i u_i u_p(i) / T ]

    u: the rows of both views, brought to unit norm inside; p(i): row i's other view.

    Args:
        temperature: > 0, of the cosines.
        weights: weights = weights(z0, z1), (N,) or (N, 2), taken as constants; None: ones.
        group: process group; rows of all ranks are negatives.

    Source: Yeh et al. 2021, Eq. 6, mean over samples and views; lightly DCLLoss.
    Cost: `functional.nt_xent`: no matrix of similarities.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        weights: Callable[[Tensor, Tensor], Tensor] | None = None,
        group: Any = None,
    ):
        super().__init__()
        self.temperature = positive("temperature", temperature)
        self.weights = weights
        self.group = by_name(group)

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """The loss, 0-d, of two views (N, D)."""
        weights = None if self.weights is None else self.weights(z0, z1).detach()
        return decoupled_nt_xent(
            z0, z1, temperature=self.temperature, weights=weights, group=self.group
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


class DCLWLoss(DCLLoss):
    """DCL with negative von Mises-Fisher weights: easy positives count less.

        w_i = 2 - N softmax_i(u0_i u1_i / sigma)     over the batch of all ranks

    Args:
        temperature: > 0, of the cosines.
        sigma: > 0, of the weights.
        group: process group.

    Source: Yeh et al. 2021, section 3.3; lightly DCLWLoss, whose softmax stays on one rank.
    Cost: as `DCLLoss`; the weights read both views once.
    """

    def __init__(self, temperature: float = 0.1, sigma: float = 0.5, group: Any = None):
        super().__init__(temperature, None, group)
        self.sigma = positive("sigma", sigma)
        self.weights = self._weights

    def _weights(self, z0: Tensor, z1: Tensor) -> Tensor:
        return mises_fisher_weights(z0, z1, self.sigma, group_name(self.group))

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, sigma={self.sigma}"
