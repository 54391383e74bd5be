"""`lightly.loss.hypersphere_loss`."""

import torch
from torch import Tensor

from ...functional.uniformity import sphere
from ._common import as_lightly


class HypersphereLoss(torch.nn.Module):
    """Alignment and uniformity on the sphere, as Lightly's class of that name.

        loss = mean_i |x_i - y_i|^alpha + lam / 2 * (U(x) + U(y)),   x, y of unit norm
        U(x) = log mean_{i < j} exp(-t |x_i - x_j|^2)

    The paper's t is 2, Lightly's default 1.

    Args:
        t: > 0.
        lam: weight of the uniformity.
        alpha: exponent of the alignment, > 0.

    Source: lightly 1.6.0 (the same in 1.5.26). One sample alone raises; there it gives NaN.
    """

    def __init__(self, t: float = 1.0, lam: float = 1.0, alpha: float = 2.0):
        super().__init__()
        self.t = t
        self.lam = lam
        self.alpha = alpha

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """The loss, 0-d, of two views (N, D), N >= 2, normalised here."""
        loss = sphere(z_a, z_b, t=self.t, weight=self.lam / 2, alpha=self.alpha)
        return as_lightly(loss, z_a.dtype)
