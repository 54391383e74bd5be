"""Alignment and uniformity (Wang and Isola 2020)."""

from typing import Any

import torch
from torch import Tensor

from ..functional import alignment, gaussian_uniformity
from ..functional._check import by_name, group_name, positive


class AlignUniformLoss(torch.nn.Module):
    """Alignment of positive pairs and uniformity of each view.

        L = align_w * mean_i |x_i - y_i|^alpha + unif_w * (U(x) + U(y)) / 2
        U(x) = log mean_{i < j} exp(-t |x_i - x_j|^2)

    Nothing is normalised inside: pass rows of unit norm, as the paper's code does.

    Args:
        align_w: weight of the alignment, > 0.
        unif_w: weight of the uniformity, > 0.
        alpha: exponent of the alignment, > 0.
        t: of the Gaussian potential, > 0.
        group: process group: alignment over all ranks' rows, uniformity over all ranks' pairs;
            DDP's mean of the gradients is exact.

    Source: SsnL/align_uniform e256d47, example: align_w = unif_w = 1, alpha = 2, t = 2. (Lightly's
        `HypersphereLoss` has t = 1 and normalises; SsnL/moco has t = 3 and align_w = 3.)
    Cost: `functional.gaussian_uniformity` twice; no N x N matrix is stored.
    """

    def __init__(
        self,
        align_w: float = 1.0,
        unif_w: float = 1.0,
        alpha: float = 2.0,
        t: float = 2.0,
        group: Any = None,
    ):
        super().__init__()
        self.align_w = positive("align_w", align_w)
        self.unif_w = positive("unif_w", unif_w)
        self.alpha = positive("alpha", alpha)
        self.t = positive("t", t)
        group_name(group)
        self.group = by_name(group)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss, 0-d, of two views (N, D), N >= 2; gradients reach both."""
        aligned = alignment(x, y, alpha=self.alpha, group=self.group)
        uniform = [gaussian_uniformity(view, t=self.t, group=self.group) for view in (x, y)]
        return self.align_w * aligned + self.unif_w / 2 * (uniform[0] + uniform[1])

    def extra_repr(self) -> str:
        return f"align_w={self.align_w}, unif_w={self.unif_w}, alpha={self.alpha}, t={self.t}"
