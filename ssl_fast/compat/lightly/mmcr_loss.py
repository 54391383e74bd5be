"""`lightly.loss.mmcr_loss`."""

import torch
from torch import Tensor

from ...functional.spectral import mmcr
from ._common import as_lightly


class MMCRLoss(torch.nn.Module):
    """Maximum manifold capacity, as Lightly's class of that name.

        loss = -|C|_* + lmda / B * sum_b |Z_b|_*,   Z_b: all views of sample b;  C: their means

    Finite gradients where singular values repeat or vanish; Lightly's are those of an SVD.

    Args:
        lmda: >= 0.

    Source: lightly 1.6.0 (the same in 1.5.26).
    """

    def __init__(self, lmda: float = 5e-3):
        super().__init__()
        if lmda < 0:
            raise ValueError("lmda must be greater than or equal to 0")
        self.lmda = lmda

    def forward(self, online: Tensor, momentum: Tensor) -> Tensor:
        """The loss, 0-d, of K views from both networks, each (B, K, D)."""
        if online.shape != momentum.shape:
            raise AssertionError("online and momentum need to have the same shape")
        return as_lightly(mmcr(online, momentum, weight=self.lmda), online.dtype)
