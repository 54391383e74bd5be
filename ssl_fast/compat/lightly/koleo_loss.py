"""`lightly.loss.koleo_loss`."""

import torch
from torch import Tensor

from ...functional import _check
from ...functional._koleo import own_koleo
from ._common import as_lightly


class KoLeoLoss(torch.nn.Module):
    """The Kozachenko-Leonenko regularizer, as Lightly's class of that name.

        loss = -mean_i log(|u_i - u_n(i) + eps|_p + eps),   n(i) = argmax_{j != i} <u_i, u_j>

    with u the rows over max(norm, eps). A row alone is its own neighbour, as there.

    Args:
        p: of the norm.
        eps: added to every coordinate of the difference, and to the distance.

    Source: lightly 1.6.0 (the same in 1.5.26).
    """

    def __init__(self, p: float = 2, eps: float = 1e-8):
        super().__init__()
        self.p = p
        self.eps = eps
        self.pairwise_distance = torch.nn.PairwiseDistance(p=p, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """The loss, 0-d, of x (N, D)."""
        if not len(x):
            raise ValueError(f"KoLeoLoss needs a non-empty batch, got shape {tuple(x.shape)}")
        _check.matrix("x", x)
        return as_lightly(own_koleo(x, self.p, self.eps), x.dtype)
