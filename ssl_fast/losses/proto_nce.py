"""PCL: prototypical contrastive learning (Li et al. 2021)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..functional import proto_nce
from ..functional._check import choice, count, detached, matrix
from ..functional._check import index as index_of
from ..functional._norms import normalized
from ..functional._prototypes import (
    Columns,
    Terms,
    fit_one_tile,
    prototype_loss,
    prototype_terms,
)
from .moco import MoCoLoss

# Centroids (K, D), concentrations (K,), and the cluster of every row of the batch (N,).
Clustering = tuple[Tensor, Tensor, Tensor]


class ProtoNCELoss(torch.nn.Module):
    """InfoNCE of instances plus the mean over M clusterings of ProtoNCE.

        loss = moco(query, key) + 1/M sum_m CE( q_i c_k / phi_k )

    The prototypes k of a row are its own cluster's, those of the other rows, and `negatives` ones
    drawn from the rest. Queries are normalised inside; centroids and concentrations are constants,
    used as given (PCL stores centroids of unit norm).

    Args:
        queue_size: of `MoCoLoss`; the prototype term is the mean over this rank's rows.
        dim: likewise.
        temperature: likewise.
        group: likewise.
        negatives: r, sampled prototypes a step; all others when a clustering has fewer.
        duplicates: rows of one cluster see each other's prototype as a negative that equals their
            positive: "count" it, as the released code does, or "ignore" it.

    Source: Li et al. 2021, Eq. 11; salesforce/PCL 964da1f. Prototypes are drawn on the device, at
        most K - N of them, so that drawing never waits for the host.
    Cost: `MoCoLoss`, and `functional.proto_nce` a clustering: no N x K logits are stored. On a CPU,
        where a clustering's logits fit one tile (N = 256, 4096 prototypes), duplicates counted, all
        of them are one operator, and the batch's keys too: the gradient is formed forward.
    """

    def __init__(
        self,
        queue_size: int = 16384,
        dim: int = 128,
        temperature: float = 0.2,
        negatives: int = 16000,
        duplicates: str = "count",
        group: Any = None,
    ):
        super().__init__()
        self.instances = MoCoLoss(queue_size, dim, temperature, group)
        self.negatives = count("negatives", negatives)
        choice("duplicates", duplicates, ("count", "ignore"))
        self.duplicates = duplicates

    def forward(
        self, query: Tensor, key: Tensor, clusterings: Sequence[Clustering] | None = None
    ) -> Tensor:
        """The loss, 0-d, of (N, D) queries and keys; without clusterings, in the warm-up epochs,
        the instance term alone."""
        return self.with_terms(query, key, clusterings, Terms())

    def with_terms(
        self, query: Tensor, key: Tensor, clusterings: Sequence[Clustering] | None, terms: Terms
    ) -> Tensor:
        """The loss, and PAUC's terms where there are clusterings."""
        if not clusterings:
            return self.instances(query, key)
        matrix("query", query)
        key = detached("key", key)
        columns = [self._columns(query, *c) for c in clusterings]
        if self.duplicates == "count" and fit_one_tile(query, columns):
            alone = self._instances_alone(query)
            loss = prototype_loss(
                query, key, columns, self.instances.temperature if alone else 0.0, terms
            )
            return loss if alone else loss + self.instances(query, key)
        loss, unit = self.instances(query, key), normalized(query)
        loss = loss + torch.stack([self._one_of_many(unit, *c) for c in columns]).mean()
        if not any(terms[:3]):
            return loss
        return loss + prototype_terms(query, key, [index for *_, index in clusterings], terms)

    def _instances_alone(self, query: Tensor) -> bool:
        """Whether the batch's keys are all negatives."""
        instances = self.instances
        return instances.queue is None and instances.group is None and len(query) > 1

    def _columns(
        self, query: Tensor, centroids: Tensor, concentration: Tensor, index: Tensor
    ) -> Columns:
        index_of("index", index, len(centroids), "query", query, len(query))
        chosen = torch.cat([index, self._draw(len(centroids), index)])
        return chosen, centroids.detach(), concentration.detach()

    def _one_of_many(
        self, unit: Tensor, chosen: Tensor, centroids: Tensor, concentration: Tensor
    ) -> Tensor:
        centroids = centroids.to(unit.dtype)
        if self.duplicates == "ignore":
            index = chosen[: len(unit)]
            return proto_nce(
                unit, centroids, concentration, index, negatives=chosen, duplicates="ignore"
            )
        rows = torch.arange(len(unit), device=unit.device)
        return proto_nce(unit, centroids[chosen], concentration[chosen], rows)

    def _draw(self, clusters: int, index: Tensor) -> Tensor:
        """Clusters that no row of the batch belongs to, without repetition."""
        wanted = min(self.negatives, max(clusters - len(index), 0))
        if not wanted:
            return index[:0]
        order = torch.rand(clusters, device=index.device).index_fill(0, index, 2.0)
        return order.topk(wanted, largest=False).indices

    def extra_repr(self) -> str:
        return f"negatives={self.negatives}, duplicates={self.duplicates!r}"
