"""PCL: prototypical contrastive learning (Li et al. 2021)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..functional import proto_nce
from ..functional._check import choice, count
from ..functional._norms import normalized
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
    Cost: `MoCoLoss`, and `functional.proto_nce` a clustering: no N x K logits are stored.
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
        loss = self.instances(query, key)
        if not clusterings:
            return loss
        unit = normalized(query)
        return loss + torch.stack([self._prototypes(unit, *c) for c in clusterings]).mean()

    def _prototypes(
        self, unit: Tensor, centroids: Tensor, concentration: Tensor, index: Tensor
    ) -> Tensor:
        drawn = self._draw(len(centroids), index)
        chosen = torch.cat([index, drawn])
        centroids, concentration = centroids.to(unit.dtype).detach(), concentration.detach()
        if self.duplicates == "ignore":
            return proto_nce(
                unit, centroids, concentration, index, negatives=chosen, duplicates="ignore"
            )
        rows = torch.arange(len(index), device=index.device)
        return proto_nce(unit, centroids[chosen], concentration[chosen], rows)

    def _draw(self, clusters: int, index: Tensor) -> Tensor:
        """Clusters that no row of the batch belongs to, without repetition."""
        order = torch.rand(clusters, device=index.device).index_fill(0, index, 2.0)
        wanted = min(self.negatives, max(clusters - len(index), 0))
        return order.topk(wanted, largest=False).indices

    def extra_repr(self) -> str:
        return f"negatives={self.negatives}, duplicates={self.duplicates!r}"
