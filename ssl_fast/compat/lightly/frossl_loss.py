"""`lightly.loss.frossl_loss`."""

import torch
from torch import Tensor

from ...functional.spectral import frossl
from ._common import as_lightly


class FroSSLLoss(torch.nn.Module):
    """Frobenius-norm entropy and invariance, as Lightly's class of that name.

        loss = sum_v log |Z_v^T Z_v / tr|_F^2 + invariance_weight * V / N * sum_v |Z_v - mean|_F^2

    with columns of unit norm over the batch.

    Args:
        invariance_weight: of the distance to the views' mean.

    Source: lightly 1.6.0 (the same in 1.5.26).
    """

    def __init__(self, invariance_weight: float = 1.0) -> None:
        super().__init__()
        self.invariance_weight = invariance_weight

    def forward(self, z_views: list[Tensor]) -> Tensor:
        """The loss, 0-d, of V >= 2 views (N, D), a list or (V, N, D)."""
        if len(z_views) < 2:
            raise ValueError(f"z_views must contain at least two views but found {len(z_views)}.")
        loss = frossl(list(z_views), invariance_weight=self.invariance_weight)
        return as_lightly(loss, z_views[0].dtype)
