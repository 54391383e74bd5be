"""`lightly.loss.barlow_twins_loss`."""

import torch
from torch import Tensor

from ...functional import cross_correlation_penalty
from ._common import as_lightly, check_gather, world


class BarlowTwinsLoss(torch.nn.Module):
    """Cross-correlation towards the identity, as Lightly's class of that name.

        loss = sum_d (C_dd - 1)^2 + lambda_param * sum_{d != e} C_de^2,   C = Z_a^T Z_b / N

    with Z standardised over the batch (eps 1e-5).

    Args:
        lambda_param: weight of the off-diagonal.
        gather_distributed: C is the processes' mean. Each standardises its own rows, as in
            Lightly; the official code has the statistics of all.
        strict: False standardises by the statistics of all processes' rows.

    Source: lightly 1.6.0 (the same in 1.5.26).
    """

    def __init__(
        self, lambda_param: float = 5e-3, gather_distributed: bool = False, *, strict: bool = True
    ):
        super().__init__()
        check_gather("gather_distributed", gather_distributed)
        self.lambda_param = lambda_param
        self.gather_distributed = gather_distributed
        self._strict = strict

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """The loss, 0-d, of two views (N, D), N >= 2."""
        loss = cross_correlation_penalty(
            z_a,
            z_b,
            off_diagonal_weight=self.lambda_param,
            group=world(self.gather_distributed),
            own_statistics=self._strict,
        )
        return as_lightly(loss, z_a.dtype)
