"""SwAV: swapped assignments between views (Caron et al. 2020), queue included."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..functional import Assignment, _check, multi_crop_cross_entropy
from ..functional._teacher import last_rows, sorted_prior
from ._centering import crops
from ._prior import ORDERS, Prior


class SwAVLoss(torch.nn.Module):
    """Cross-entropy of every crop against the Sinkhorn assignments of the other, assigned crops.

        q_t = last N rows of Sinkhorn([queue_t; z_t] prototypes.T / epsilon)      no gradient
        L = mean over t in assign_crops, v != t of
            mean_i sum_k -q_t,ik log softmax(z_v prototypes.T / temperature)_ik

    Nothing is normalised inside: pass embeddings of unit norm, and call
    `SwAVLoss.normalize_prototypes(weight)` before every step, as the official code does. It also
    freezes the prototypes at first, which is the training loop's to do (`weight.grad = None`).

    The queue holds the embeddings of the last batches, a queue per assigned crop and per rank, the
    newest first. It is scored with the prototypes of the day, joins Sinkhorn once it is full, and
    is filled after use, in training mode.

    Args:
        temperature: of the predictions, > 0.
        epsilon: of Sinkhorn-Knopp, in units of the scores, > 0.
        iterations: of Sinkhorn-Knopp, at least 1.
        assign_crops: the crops that are assigned (official: crops_for_assign).
        queue_length: rows of this rank's queue of each assigned crop; 0 is none. The official
            argument counts the rows of all ranks.
        embedding_dim: D, needed with a queue.
        prior: marginal of the prototypes: None or "uniform", "power_law", or (K,).
        exponent: of the power law.
        prior_order: "fixed": entry k of the prior belongs to prototype k; "sorted": the largest
            entry to the prototype of the largest softmax mass among the rows at hand, and so on.
        group: process group. Sinkhorn's sums are over the rows of all ranks, every rank returns
            the global loss, and DDP's mean of the gradients is exact.

    Buffers: `queue` (assigned crops, queue_length, D), part of the state; whether it is full is
    found again when a state is loaded.
    Source: facebookresearch/swav 06b1b7c, main_swav.py; `prior` carries PMSN's idea over (Assran
        et al. 2023); sorting it is an option of SeLaVi's code.
    Cost: one product an assigned crop and three a crop, all in the forward pass; kept for
        backward: the gradients themselves, float32. "sorted": one more pass over the scores. While
        the queue fills, torch.compile makes a graph for every step: fill it in eager mode.
    """

    queue: Tensor | None

    def __init__(
        self,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
        assign_crops: Sequence[int] = (0, 1),
        queue_length: int = 0,
        embedding_dim: int | None = None,
        prior: Tensor | str | None = None,
        exponent: float = 0.25,
        prior_order: str = "fixed",
        group: Any = None,
    ):
        super().__init__()
        self.temperature = _check.positive("temperature", temperature)
        self.epsilon = _check.positive("epsilon", epsilon)
        self.iterations = _check.count("iterations", iterations)
        if not isinstance(assign_crops, Sequence):
            came = type(assign_crops).__name__
            raise TypeError(f"assign_crops must be a list of crops' indexes, got {came}")
        self.assign_crops = tuple(_check.count_or_zero("assign_crops", t) for t in assign_crops)
        if not self.assign_crops or len(set(self.assign_crops)) < len(self.assign_crops):
            raise ValueError(
                f"assign_crops must name different crops, at least one, got {assign_crops}"
            )
        _check.choice("prior_order", prior_order, ORDERS)
        self.prior, self.prior_order = Prior(prior, exponent), prior_order
        self.group = _check.by_name(group)
        self.queue_length = _check.count_or_zero("queue_length", queue_length)
        queue = None
        if queue_length:
            if embedding_dim is None:
                raise ValueError("queue_length needs embedding_dim, the width of the embeddings")
            width = _check.count("embedding_dim", embedding_dim)
            queue = torch.zeros(len(self.assign_crops), queue_length, width)
        self.register_buffer("queue", queue)
        self._queued = 0  # rows in each queue; a Python number, so that asking needs no device

    @staticmethod
    @torch.no_grad()
    def normalize_prototypes(prototypes: Tensor) -> None:
        """Scale the rows of prototypes (K, D) to unit norm, in place; zero rows stay zero."""
        prototypes.copy_(torch.nn.functional.normalize(prototypes, dim=1))

    def forward(self, embeddings: Sequence[Tensor], prototypes: Tensor) -> Tensor:
        """The loss, 0-d.

        Args:
            embeddings: crops (N, D), unit rows; gradients reach them. Crops that are not assigned
                may come from smaller images, but must show the same N images.
            prototypes: (K, D), unit rows; gradients reach them.
        """
        embeddings = crops("embeddings", embeddings)
        missing = [t for t in self.assign_crops if not 0 <= t < len(embeddings)]
        if missing:
            raise ValueError(
                f"assign_crops={self.assign_crops} names crops that are not there: embeddings has "
                f"{len(embeddings)}"
            )
        assigned = [embeddings[t] for t in self.assign_crops]
        if self.queue is not None and assigned[0].shape[1] != self.queue.shape[2]:
            raise ValueError(
                f"the queue was made for embedding_dim={self.queue.shape[2]}, got "
                f"{tuple(assigned[0].shape)}"
            )
        targets = [self._assign(i, z.detach(), prototypes) for i, z in enumerate(assigned)]
        if self.training and self.queue is not None:
            self._enqueue(assigned)
        others = [z for t, z in enumerate(embeddings) if t not in self.assign_crops]
        return multi_crop_cross_entropy(
            assigned + others, targets, prototypes, temperature=self.temperature, group=self.group
        )

    def _assign(self, crop: int, own: Tensor, prototypes: Tensor) -> Assignment:
        z = own
        if self.queue is not None and self._queued == self.queue_length:
            z = torch.cat([self.queue[crop].to(own.dtype), own])
        prior = self.prior(len(prototypes), z.device)
        if prior is not None and self.prior_order == "sorted":
            name = _check.group_name(self.group)
            prior = sorted_prior((z, prototypes), prior, self.epsilon, name)
        balanced = Assignment.sinkhorn(
            (z, prototypes),
            epsilon=self.epsilon,
            iterations=self.iterations,
            prior=prior,
            group=self.group,
        )
        return last_rows(balanced, own)

    @torch.no_grad()
    def _enqueue(self, assigned: list[Tensor]) -> None:
        assert self.queue is not None
        for queue, z in zip(self.queue, assigned, strict=True):
            queue.copy_(torch.cat([z.to(queue.dtype), queue])[: self.queue_length])
        self._queued = min(self.queue_length, self._queued + min(len(z) for z in assigned))

    def _load_from_state_dict(self, state_dict, prefix, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if self.queue is not None and f"{prefix}queue" in state_dict:
            filled = (self.queue != 0).any(2).all(0)  # as the official code asks of the last row
            self._queued = int(filled.sum())

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, epsilon={self.epsilon}, "
            f"iterations={self.iterations}, assign_crops={self.assign_crops}, "
            f"queue_length={self.queue_length}, prior_order={self.prior_order!r}"
        )
