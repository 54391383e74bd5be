"""KoLeo: spread over the sphere by nearest-neighbour distances (Sablayrolles et al. 2019)."""

from typing import Any

import torch
from torch import Tensor

from ..functional import _check
from ..functional._koleo import koleo


class KoLeoLoss(torch.nn.Module):
    """The Kozachenko-Leonenko entropy estimator of the rows on the unit sphere, negated.

        z_i = x_i / max(||x_i||, eps);   n(i) = argmax over j != i of <z_i, z_j>
        L = -mean_i log(||z_i - z_n(i) + eps|| + eps)

    eps is added to every coordinate of the difference, as torch's PairwiseDistance does. Rows are
    normalised inside, in float32 (float64 for float64), also under autocast. Equal rows have a
    finite loss and gradient; a zero row gets a zero gradient.

    Args:
        eps: > 0.
        group: process group: neighbours are sought among the rows of all ranks, every rank returns
            the global loss, and DDP's mean of the gradients is exact. DINOv2 has it without.

    Source: dinov2 b8931f7, koleo_loss.py; of two equal similarities the first counts.
    Cost: one product of 2 N^2 D operations for the neighbours, by tiles, none of them kept; value
        and gradient are O(N D), both formed forward, on a GPU in plain PyTorch. With a group all
        rows are gathered, and the host waits for their number.
    """

    def __init__(self, eps: float = 1e-8, group: Any = None):
        super().__init__()
        self.eps = _check.positive("eps", eps)
        self.group = _check.by_name(group)

    def forward(self, x: Tensor) -> Tensor:
        """The loss, 0-d, of x (N, D), at least two rows over all ranks."""
        return koleo(x, eps=self.eps, group=self.group)

    def extra_repr(self) -> str:
        return f"eps={self.eps}"
