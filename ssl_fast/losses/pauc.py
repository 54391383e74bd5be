"""PAUC: prototypes by alignment, uniformity and correlation (Mo, Sun and Li 2022)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..functional._check import at_least_zero, positive
from ..functional._prototypes import Terms
from .proto_nce import Clustering, ProtoNCELoss


class PAUCLoss(torch.nn.Module):
    """ProtoNCE with three terms on the batch's own prototypes.

        loss = proto_nce(query, key, clusterings)
               + 1/M sum_m ( alpha align_m + beta uniform_m + gamma correlation_m )

    The prototypes of clustering m are the normalised means of the batch's queries in each of its
    clusters, and gradients reach the queries through them. align: mean ||p - q||^s over the rows'
    positive pairs, p from the queries and q from the keys of the row's cluster, and between the
    clusterings m and m'. uniform: mean exp(-t ||p - q||^2) over pairs of clusters. correlation:
    minus the mean Kullback-Leibler divergence between pairs of clusters.

    The paper leaves open, and this is the project's reading: its Eq. 7 prints the terms inside a
    negated sum, its text minimises them, so they are added; the logarithms of Eq. 6 need
    distributions, so rows go through a softmax over D; what carries the gradient are in-batch means
    while the stored centroids stay constants as in PCL. Default weights are 1: none are printed.

    Args:
        queue_size: of `ProtoNCELoss`.
        dim: of `ProtoNCELoss`.
        temperature: of `ProtoNCELoss`.
        negatives: of `ProtoNCELoss`.
        duplicates: of `ProtoNCELoss`.
        group: of `ProtoNCELoss`.
        alpha: weights of the three terms, >= 0; a term of weight 0 is not formed.
        beta: likewise.
        gamma: likewise.
        s: exponent of the alignment, > 0.
        t: of the uniformity's kernel, > 0.
        softmax_temperature: of the correlation's distributions, > 0.

    Source: the paper's Eqs. 2, 4 to 7. Finding the batch's clusters waits for the host.
    Cost: `ProtoNCELoss`; for C clusters in the batch one product of C^2 D operations. Kept for
        backward: the queries and their gradient.
    """

    def __init__(
        self,
        queue_size: int = 16384,
        dim: int = 128,
        temperature: float = 0.2,
        negatives: int = 16000,
        alpha: float = 1.0,
        beta: float = 1.0,
        gamma: float = 1.0,
        s: float = 2.0,
        t: float = 2.0,
        softmax_temperature: float = 1.0,
        duplicates: str = "count",
        group: Any = None,
    ):
        super().__init__()
        self.base = ProtoNCELoss(queue_size, dim, temperature, negatives, duplicates, group)
        self.alpha = at_least_zero("alpha", alpha)
        self.beta = at_least_zero("beta", beta)
        self.gamma = at_least_zero("gamma", gamma)
        self.s, self.t = positive("s", s), positive("t", t)
        self.softmax_temperature = positive("softmax_temperature", softmax_temperature)

    def forward(
        self, query: Tensor, key: Tensor, clusterings: Sequence[Clustering] | None = None
    ) -> Tensor:
        """The loss, 0-d; without clusterings, in the warm-up epochs, InfoNCE alone."""
        weights = self.alpha, self.beta, self.gamma
        terms = Terms(*weights, self.s, self.t, self.softmax_temperature)
        return self.base.with_terms(query, key, clusterings, terms)

    def extra_repr(self) -> str:
        names = ("alpha", "beta", "gamma", "s", "t", "softmax_temperature")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)
