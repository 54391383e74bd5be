"""Instance discrimination: SimCLR, MoCo, NNCLR, decoupled contrastive learning."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..functional import decoupled_nt_xent, info_nce, multi_view_nt_xent
from ..functional._check import count, group_name, positive
from ..functional._queue import mises_fisher_weights
from ..functional.contrastive import queue_info_nce
from .queue import MemoryQueue


class NTXentLoss(torch.nn.Module):
    """SimCLR: `nt_xent` of two views, `multi_view_nt_xent` of more.

    Rows are normalised inside.

    Args:
        temperature: > 0, of the cosines.
        group: process group; rows of all ranks are negatives.

    Source: Chen et al. 2020, Eq. 1. Two views: lightly e8d317fc NTXentLoss without memory bank;
        more: solo-learn 9187ea3 simclr_loss_func.
    """

    def __init__(self, temperature: float = 0.5, group: Any = None):
        super().__init__()
        self.temperature = positive("temperature", temperature)
        self.group = group

    def forward(self, *views: Tensor) -> Tensor:
        """The loss, 0-d, of two or more views (N, D)."""
        return multi_view_nt_xent(views, temperature=self.temperature, group=self.group)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


class MoCoLoss(torch.nn.Module):
    """InfoNCE against a queue (MoCo v1, v2), or against the batch's keys (v3).

        v2:  loss = info_nce(query, key, queue);  then the keys join the queue
        v3:  loss = 2 T info_nce(query, key),     negatives are the other keys of all ranks

    One direction; v3 adds both: `loss(q0, k1) + loss(q1, k0)`. Queries and keys are normalised
    inside, keys are constants.

    Args:
        queue_size: of v2; 0 is v3.
        dim: width of query and key; v3 does not need it.
        temperature: > 0. 0.2 is v2's, v1 has 0.07, v3 1.0 (0.2 for vision transformers).
        group: process group. v2: keys of all ranks enter the queue; v3: they are negatives.

    Source: facebookresearch/moco 8976944 (builder.py), moco-v3 c349e6e (contrastive_loss). The
        queue changes in training mode only.
    """

    def __init__(
        self,
        queue_size: int = 65536,
        dim: int = 128,
        temperature: float = 0.2,
        group: Any = None,
    ):
        super().__init__()
        self.temperature = positive("temperature", temperature)
        self.group = group
        self.queue = MemoryQueue(queue_size, dim, group) if queue_size != 0 else None

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """The loss, 0-d, of (N, D) queries and their keys; row i of both is one sample."""
        key = key.detach()
        if self.queue is None:
            loss = info_nce(query, key, temperature=self.temperature, group=self.group)
            return loss * (2 * self.temperature)
        loss = queue_info_nce(query, key, self.queue.rows, self.temperature, self.group)
        if self.training:
            self.queue.enqueue(key)
        return loss

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


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
        self.group = group
        self.queue = MemoryQueue(count("queue_size", queue_size), dim, group)

    def forward(self, p0: Tensor, p1: Tensor, z0: Tensor, z1: Tensor) -> Tensor:
        """The loss, 0-d, of predictions p and projections z, each (N, D), of both views."""
        options = {"temperature": self.temperature, "group": self.group}
        losses = [
            info_nce(self.queue.nearest(z).to(p.dtype), p, **options)
            for z, p in ((z0, p1), (z1, p0))
        ]
        if self.training:
            self.queue.enqueue(z0)
        return torch.stack(losses).mean()

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


class DCLLoss(torch.nn.Module):
    """Decoupled contrastive learning: `decoupled_nt_xent`. Rows are normalised inside.

    Args:
        temperature: > 0, of the cosines.
        weights: weights = weights(z0, z1), (N,) or (N, 2), taken as constants; None: ones.
        group: process group; rows of all ranks are negatives.

    Source: Yeh et al. 2021, Eq. 6, mean over samples and views; lightly DCLLoss.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        weights: Callable[[Tensor, Tensor], Tensor] | None = None,
        group: Any = None,
    ):
        super().__init__()
        self.temperature = positive("temperature", temperature)
        self.weights = weights
        self.group = group

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """The loss, 0-d, of two views (N, D)."""
        weights = None if self.weights is None else self.weights(z0, z1).detach()
        return decoupled_nt_xent(
            z0, z1, temperature=self.temperature, weights=weights, group=self.group
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


class DCLWLoss(DCLLoss):
    """DCL with negative von Mises-Fisher weights: easy positives count less.

        w_i = 2 - N softmax_i(u0_i u1_i / sigma)     over the batch of all ranks

    Args:
        temperature: > 0, of the cosines.
        sigma: > 0, of the weights.
        group: process group.

    Source: Yeh et al. 2021, section 3.3; lightly DCLWLoss, whose softmax stays on one rank.
    """

    def __init__(self, temperature: float = 0.1, sigma: float = 0.5, group: Any = None):
        super().__init__(temperature, None, group)
        self.sigma = positive("sigma", sigma)
        self.weights = self._weights

    def _weights(self, z0: Tensor, z1: Tensor) -> Tensor:
        return mises_fisher_weights(z0, z1, self.sigma, group_name(self.group))

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, sigma={self.sigma}"
