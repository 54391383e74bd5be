"""Barlow Twins (Zbontar et al. 2021)."""

from typing import Any

import torch
from torch import Tensor

from ..functional import cross_correlation_penalty
from ..functional._check import at_least_zero, by_name, positive


class BarlowTwinsLoss(torch.nn.Module):
    """Cross-correlation of two batch-normalised views, drawn to the identity.

        L = scale [ sum_d (C_dd - 1)^2 + w sum_{d != e} C_de^2 ],   C = bn(z0)^T bn(z1) / N

    Pass the projector's outputs: they are standardised inside, without affine parameters and
    without running statistics.

    Args:
        off_diagonal_weight: w, >= 0; 0.0051 in the official code, 0.005 in the paper.
        scale: of the whole, > 0; 1 in the official code, solo-learn's recipes have 0.024 to 0.1.
        eps: added to the variance, > 0.
        group: process group. Statistics and C are those of all ranks' rows, as with the official
            SyncBatchNorm; every rank returns the global loss, and DDP's mean of the gradients is
            exact: the official raw all-reduce yields it divided by the number of ranks.

    Source: Eq. 1, 2; facebookresearch/barlowtwins 8e8d284.
    Cost: `functional.cross_correlation_penalty`: no D x D matrix.
    """

    def __init__(
        self,
        off_diagonal_weight: float = 0.0051,
        scale: float = 1.0,
        eps: float = 1e-5,
        group: Any = None,
    ):
        super().__init__()
        self.off_diagonal_weight = at_least_zero("off_diagonal_weight", off_diagonal_weight)
        self.scale = positive("scale", scale)
        self.eps = positive("eps", eps)
        self.group = by_name(group)

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """The loss, 0-d, of two views (N, D)."""
        loss = cross_correlation_penalty(
            z0, z1, off_diagonal_weight=self.off_diagonal_weight, eps=self.eps, group=self.group
        )
        return loss if self.scale == 1 else self.scale * loss

    def extra_repr(self) -> str:
        return f"off_diagonal_weight={self.off_diagonal_weight}, scale={self.scale}, eps={self.eps}"
