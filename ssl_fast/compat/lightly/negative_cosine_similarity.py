"""`lightly.loss.negative_cosine_similarity`."""

import torch
from torch import Tensor

from ...functional.cosine import mean_cosine
from ._common import as_lightly


class NegativeCosineSimilarity(torch.nn.Module):
    """Minus the mean cosine, as Lightly's class of that name.

        loss = -mean <x0, x1> / (max(|x0|, eps) max(|x1|, eps))

    Nothing is detached. Half of Lightly's symmetrised SimSiam loss; BYOL's is four times this.

    Args:
        dim: along which the vectors lie.
        eps: least norm.

    Source: lightly 1.6.0 (the same in 1.5.26).
    """

    def __init__(self, dim: int = 1, eps: float = 1e-8) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        """The loss, 0-d, of two tensors of shapes that broadcast."""
        if x0.shape != x1.shape:
            x0, x1 = torch.broadcast_tensors(x0, x1)
        dtype = torch.promote_types(x0.dtype, x1.dtype)
        rows = (self._rows(x.to(dtype)) for x in (x0, x1))
        return as_lightly(-mean_cosine(*rows, eps=self.eps), dtype)

    def _rows(self, x: Tensor) -> Tensor:
        if x.dim() == 2 and self.dim in (1, -1):
            return x
        x = x.movedim(self.dim, -1)
        return x.reshape(-1, x.shape[-1])
