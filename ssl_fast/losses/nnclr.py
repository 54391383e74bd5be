"""NNCLR: nearest neighbours as positives (Dwibedi et al. 2021)."""

from typing import Any

import torch
from torch import Tensor

from ..functional import info_nce
from ..functional._check import by_name, count, detached, positive
from ..functional._rows import nearest_in_queue
from .queue import MemoryQueue


class NNCLRLoss(torch.nn.Module):
    """Each view is compared with the other view's nearest neighbour in a queue.

        loss = 1/2 [ info_nce(nearest(z0), p1) + info_nce(nearest(z1), p0) ]

    Negatives are the other predictions of the batch. Rows are normalised inside, neighbours are
    constants; afterwards z0 joins the queue, in training mode.

    Args:
        queue_size: at least 1.
        dim: width of projections and predictions.
        temperature: > 0.
        group: process group: predictions of all ranks are negatives.

    Source: Dwibedi et al. 2021, Eq. 3; solo-learn 9187ea3 nnclr_loss_func. (Lightly's NNCLR is
        another loss: NT-Xent of neighbours and predictions.)
    Cost: `functional.info_nce` twice; neighbours are found by tiles of the queue, the N x
        queue_size products are never stored.
    """

    def __init__(
        self,
        queue_size: int = 65536,
        dim: int = 256,
        temperature: float = 0.1,
        group: Any = None,
    ):
        super().__init__()
        self.temperature = positive("temperature", temperature)
        self.group = by_name(group)
        self.queue = MemoryQueue(count("queue_size", queue_size), dim, group)

    def forward(self, p0: Tensor, p1: Tensor, z0: Tensor, z1: Tensor) -> Tensor:
        """The loss, 0-d, of predictions p and projections z, each (N, D), of both views."""
        options = {"temperature": self.temperature, "group": self.group}
        near = nearest_in_queue([detached("z0", z0), detached("z1", z1)], self.queue.rows)
        losses = [
            info_nce(n.to(p.dtype), p, **options) for n, p in zip(near, (p1, p0), strict=True)
        ]
        if self.training:
            self.queue.enqueue(z0)
        return torch.stack(losses).mean()

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"
