"""`lightly.loss.tico_loss`."""

import torch
from torch import Tensor

from ...functional._distributed import gather
from ...functional._rows import energy
from ...functional._unit import unit_rows
from ...functional.cosine import mean_cosine
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
        if group is not None:
            z_a, z_b = (gather(z.contiguous(), group.group_name) for z in (z_a, z_b))
        a = unit_rows(z_a)
        moment = self._next_moment(a.detach())
        if update_covariance_matrix:
            self.C = moment
        contrast = energy(a, moment, self.rho / len(a))
        return as_lightly(1 - mean_cosine(z_a, z_b, eps=1e-12) + contrast, dtype)

    def _next_moment(self, a: Tensor) -> Tensor:
        share = (1 - self.beta) / len(a)
        if self.C is None:
            return (a.t() @ a) * share
        return torch.addmm(self.C.to(a), a.t(), a, beta=self.beta, alpha=share)
