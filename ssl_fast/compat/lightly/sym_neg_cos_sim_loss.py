"""`lightly.loss.sym_neg_cos_sim_loss`, of Lightly before 1.6."""

import torch
from torch import Tensor

from ...functional.cosine import mean_cosine
from ._common import as_lightly, warn


class SymNegCosineSimilarityLoss(torch.nn.Module):
    """SimSiam's loss, as the class of that name in Lightly before 1.6.

        loss = -(cos(p0, z1) + cos(p1, z0)) / 2,   z detached

    Source: lightly 1.5.26; there and here it is deprecated in favour of NegativeCosineSimilarity.
    """

    def __init__(self) -> None:
        super().__init__()
        warn(
            "SymNegCosineSimiliarityLoss will be deprecated in favor of NegativeCosineSimilarity "
            "in the future.",
            DeprecationWarning,
        )

    def forward(self, out0: tuple[Tensor, Tensor], out1: tuple[Tensor, Tensor]) -> Tensor:
        """The loss, 0-d, of (z0, p0) and (z1, p1): projections and predictions (N, D)."""
        (z0, p0), (z1, p1) = out0, out1
        there, back = self._neg_cosine_simililarity(p0, z1), self._neg_cosine_simililarity(p1, z0)
        return there / 2 + back / 2

    def _neg_cosine_simililarity(self, x: Tensor, y: Tensor) -> Tensor:
        rows = (t.reshape(-1, t.shape[-1]) for t in (x, y.detach()))
        return as_lightly(-mean_cosine(*rows), x.dtype)
