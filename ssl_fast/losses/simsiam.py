"""SimSiam (Chen and He 2021)."""

import torch
from torch import Tensor

from ..functional._check import detached
from ..functional._unit import TINY
from ..functional.cosine import mean_cosine


class SimSiamLoss(torch.nn.Module):
    """Negative cosine, the mean of both directions.

        loss = -1/2 (cos(p0, z1) + cos(p1, z0)),    cos: the mean over rows

    Projections are constants here (the stop-gradient); rows are normalised inside.

    Source: Chen and He 2021, Eq. 2; facebookresearch/simsiam a7bc177.
    Cost: `functional.cosine.mean_cosine` twice: a read forward, a read and a write backward; on a
        GPU in plain PyTorch.
    """

    def forward(self, p0: Tensor, p1: Tensor, z0: Tensor, z1: Tensor) -> Tensor:
        """The loss, 0-d, of predictions p and projections z, each (N, D)."""
        z0, z1 = detached("z0", z0), detached("z1", z1)
        return -0.5 * (mean_cosine(p0, z1, eps=TINY) + mean_cosine(p1, z0, eps=TINY))
