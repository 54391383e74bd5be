"""Losses on the spectrum of the embeddings: Wasserstein uniformity, MMCR, FroSSL, MEC."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..functional import spectral
from ..functional._check import at_least_zero, by_name, matrix, positive
from ..functional._norms import normalized
from ..functional.wasserstein import NULL, wasserstein_uniformity


class WassersteinUniformityLoss(torch.nn.Module):
    """Wasserstein uniformity (Fang et al. 2024) of the online projections of all views together.

        L = W2( N(m, S), N(0, I/D) ),   L^2 = |m|^2 + 1 + tr S - 2/sqrt(D) tr S^(1/2)

    m, S: mean and covariance (with 1/N) of all rows. Meant as an auxiliary: the method's loss +
    weight * this one. The official code concatenates both online views, of unit norm, before mean
    and covariance; so does this one, normalising them.

    Args:
        eps: relative threshold of null directions, as in `functional.wasserstein_uniformity`.
        normalize: rows to unit norm first; False where the method has done it.
        group: process group: one distance for the rows of all ranks.

    Source: statsle/WassersteinSSL a16a931, module.py, without its jitter.
    Cost: `functional.wasserstein_uniformity`: one decomposition of the smaller Gram gives value
        and gradient.
    """

    def __init__(self, eps: float = NULL, normalize: bool = True, group: Any = None):
        super().__init__()
        self.eps = positive("eps", eps)
        self.normalize, self.group = normalize, by_name(group)

    def forward(self, *views: Tensor) -> Tensor:
        """W2, 0-d, of one or more views (N, D) of one width."""
        if not views:
            raise ValueError("pass the views' projections: loss(z0, z1)")
        for i, view in enumerate(views):
            matrix(f"views[{i}]", view)
            if view.shape[1] != views[0].shape[1]:
                raise ValueError(
                    f"views must have one width, got {tuple(views[0].shape)}, {tuple(view.shape)}"
                )
        z = views[0] if len(views) == 1 else torch.cat(views)
        z = normalized(z) if self.normalize else z
        return wasserstein_uniformity(z, eps=self.eps, group=self.group)

    def extra_repr(self) -> str:
        return f"eps={self.eps}, normalize={self.normalize}"


class MMCRLoss(torch.nn.Module):
    """MMCR (Yerxa et al. 2023): a capacity of manifolds, by nuclear norms.

        L = -|C|_* + weight mean_b |Z_b|_*

    Z_b (2K, D): all views of sample b from both networks; C (B, D): their means. Nothing is
    normalised inside.

    Args:
        weight: of the manifolds' own nuclear norms, >= 0; lmda of Lightly.
        group: process group: one loss for the samples of all ranks.

    Source: MMCRLoss in lightly 1.5, value and gradient, except that a singular value of 0 has
        gradient 0.
    Cost: one eigendecomposition min(B, D) wide and B of min(2K, D), forward; products of
        B D min(B, D) operations. No singular vectors are kept.
    """

    def __init__(self, weight: float = 5e-3, group: Any = None):
        super().__init__()
        self.weight, self.group = at_least_zero("weight", weight), by_name(group)

    def forward(self, online: Tensor, momentum: Tensor) -> Tensor:
        """The loss, 0-d, of K views a sample from both networks, each (B, K, D)."""
        return spectral.mmcr(online, momentum, weight=self.weight, group=self.group)

    def extra_repr(self) -> str:
        return f"weight={self.weight}"


class FroSSLLoss(torch.nn.Module):
    """FroSSL (Skean et al. 2024): Frobenius-norm entropy of each view and distance to their mean.

        L = sum_v log |Z_v^T Z_v / tr|_F^2 + weight V sum_v |Z_v - mean|_F^2 / N

    weight: `invariance_weight`. Columns are normalised over the batch inside.

    Args:
        invariance_weight: >= 0.
        group: process group: views of all ranks are gathered, with gradients.

    Source: the value of FroSSLLoss in lightly 1.5.
    Cost: one Gram of min(N, D) a view and a product of its size, forward. Kept for backward: the
        views and their gradients.
    """

    def __init__(self, invariance_weight: float = 1.0, group: Any = None):
        super().__init__()
        self.invariance_weight = at_least_zero("invariance_weight", invariance_weight)
        self.group = by_name(group)

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        """The loss, 0-d, of two or more views (N, D)."""
        return spectral.frossl(views, invariance_weight=self.invariance_weight, group=self.group)

    def extra_repr(self) -> str:
        return f"invariance_weight={self.invariance_weight}"


class MECLoss(torch.nn.Module):
    """MEC (Liu et al. 2022): maximum entropy coding by a Taylor polynomial of degree 4.

        L = -l/(2N) [ tr log(I + P_0 Z_1^T / l) + tr log(I + P_1 Z_0^T / l) ],   l = slack N eps / D
        tr log(I + C) = tr C - tr C^2 / 2 + tr C^3 / 3 - tr C^4 / 4

    Rows are normalised inside, after gathering. Teacher views carry no gradient when the momentum
    network runs without one, as it does in the code.

    Args:
        eps: distortion, > 0; the code's 64 belongs to D = 2048.
        group: process group: views of all ranks are gathered, with gradients.

    Source: xinliu20/MEC 35045dc.
    Cost: C and C^2 alone are formed, min(N, D) square; higher powers enter as inner products.
    """

    def __init__(self, eps: float = 64.0, group: Any = None):
        super().__init__()
        self.eps, self.group = positive("eps", eps), by_name(group)

    def forward(
        self, predictions: Sequence[Tensor], targets: Sequence[Tensor], slack: float = 1.0
    ) -> Tensor:
        """The loss, 0-d, of two predicted and two target views (N, D).

        `slack` multiplies the distortion: the code lets it fall from 8 to 1 over ten epochs.
        """
        return spectral.mec(predictions, targets, eps=self.eps, slack=slack, group=self.group)

    def extra_repr(self) -> str:
        return f"eps={self.eps}"
