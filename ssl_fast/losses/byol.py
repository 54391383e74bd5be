"""BYOL (Grill et al. 2020)."""

import torch
from torch import Tensor

from ..functional._check import detached
from ..functional._unit import TINY
from ..functional.cosine import mean_cosine


class BYOLLoss(torch.nn.Module):
    """Squared distance of unit rows, both directions added.

        loss = (2 - 2 cos(p0, z1)) + (2 - 2 cos(p1, z0)),    cos: the mean over rows

    Targets are constants; rows are normalised inside. A rank's mean over its own rows: with DDP and
    equal batches that is the global loss.

    Source: Grill et al. 2020, Eqs. 2, 3; deepmind-research d8df415; solo-learn 9187ea3
        byol_loss_func, one direction. Lightly's examples have a quarter of this gradient.
    Cost: `functional.cosine.mean_cosine` twice: a read forward, a read and a write backward; on a
        GPU in plain PyTorch.
    """

    def forward(self, p0: Tensor, p1: Tensor, z0: Tensor, z1: Tensor) -> Tensor:
        """The loss, 0-d, of online predictions p and target projections z, each (N, D)."""
        z0, z1 = detached("z0", z0), detached("z1", z1)
        return 4 - 2 * (mean_cosine(p0, z1, eps=TINY) + mean_cosine(p1, z0, eps=TINY))
