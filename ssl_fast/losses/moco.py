"""MoCo v1 to v3 (He et al. 2020; Chen et al. 2021)."""

from typing import Any

import torch
from torch import Tensor

from ..functional import info_nce
from ..functional._check import by_name, count_or_zero, detached, positive
from ..functional.contrastive import queue_info_nce
from .queue import MemoryQueue


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
    Cost: `functional.info_nce`. v2: the N x queue_size logits are never stored, the queue is read
        in place. v3 on a CPU: both gradients are formed in the forward pass.
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
        self.group = by_name(group)
        queue_size = count_or_zero("queue_size", queue_size)
        self.queue = MemoryQueue(queue_size, dim, group) if queue_size else None

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """The loss, 0-d, of (N, D) queries and their keys; row i of both is one sample."""
        key = detached("key", key)
        if self.queue is None:
            loss = info_nce(query, key, temperature=self.temperature, group=self.group)
            return loss * (2 * self.temperature)
        loss = queue_info_nce(query, key, self.queue.rows, self.temperature, self.group)
        if self.training:
            self.queue.enqueue(key)
        return loss

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"
