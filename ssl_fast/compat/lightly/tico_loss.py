"""`lightly.loss.tico_loss`."""

import torch
from torch import Tensor

from ...functional._tico import tico
from ._common import as_lightly, check_gather, world
from .vicreg_loss import check_views


class TiCoLoss(torch.nn.Module):
    """Invariance and covariance contrast, as Lightly's class of that name.

        loss = 1 - mean_i <a_i, b_i> + rho mean_i a_i^T C a_i,   a, b of unit norm
        C <- beta C + (1 - beta) A^T A / N                       before use, without gradient

    Args:
        beta: of the moving average.
        rho: weight of the contrast.
        gather_distributed: over the rows of all processes; each returns the same loss.

    `C` (D, D) is an attribute, None at first: as in Lightly it is no buffer, and not part of the
    state dict.

    Source: lightly 1.6.0 (the same in 1.5.26).
    """

    def __init__(self, beta: float = 0.9, rho: float = 8.0, gather_distributed: bool = False):
        super().__init__()
        check_gather("gather_distributed", gather_distributed)
        self.beta = beta
        self.rho = rho
        self.C: Tensor | None = None
        self.gather_distributed = gather_distributed

    def forward(self, z_a: Tensor, z_b: Tensor, update_covariance_matrix: bool = True) -> Tensor:
        """The loss, 0-d, of two views (N, D), N >= 2; False leaves C as it was."""
        check_views(z_a, z_b)
        dtype, group = z_a.dtype, world(self.gather_distributed)
        if torch._C._is_any_autocast_enabled():
            z_b = z_b.to(dtype)
        name = "" if group is None else group.group_name
        loss, moment = tico(z_a, z_b, self.C, self.beta, self.rho, name)
        if update_covariance_matrix:
            self.C = moment
        return as_lightly(loss, dtype)
