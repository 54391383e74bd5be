"""`lightly.loss.dcl_loss`."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ...functional._contrastive_check import same_views
from ...functional._norms import normalized
from ...functional.contrastive import local_nt_xent
from ._common import as_lightly, check_gather, world


def negative_mises_fisher_weights(out0: Tensor, out1: Tensor, sigma: float = 0.5) -> Tensor:
    """2 - N softmax_i(<out0_i, out1_i> / sigma), (N,), without gradient."""
    similarity = torch.linalg.vecdot(out0.detach(), out1.detach()) / sigma
    return 2 - len(out0) * torch.softmax(similarity, dim=0)


class DCLLoss(torch.nn.Module):
    """Decoupled contrastive learning, as Lightly's class of that name.

        loss = 1/(2N) sum_i [ LSE_{j != i, p(i)} (u_i u_j / T) - w_i u_i u_p(i) / T ]

    All rows are normalised here. Each process returns its own rows' loss.

    Args:
        temperature: T, not 0.
        weight_fn: w, called with the normalised views (N, D) of this process, either of them
            first; returns (N,). Its gradient counts. None: ones.
        gather_distributed: negatives of all processes.

    Source: lightly 1.6.0 (the same in 1.5.26).
    """

    def __init__(
        self,
        temperature: float = 0.1,
        weight_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
        gather_distributed: bool = False,
    ):
        super().__init__()
        self.temperature = temperature
        self.weight_fn = weight_fn
        self.gather_distributed = gather_distributed
        check_gather("gather_distributed", gather_distributed)

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """The loss, 0-d, of two views (N, D)."""
        weights = self._weights(out0, out1) if self.weight_fn else None
        loss = local_nt_xent(
            [out0, out1],
            temperature=self.temperature,
            decoupled=True,
            weights=None if weights is None else weights.detach(),
            group=world(self.gather_distributed),
        )
        if weights is not None and weights.requires_grad:
            loss = loss + self._through_weights(out0, out1, weights)
        return as_lightly(loss, out0.dtype)

    def _weights(self, out0: Tensor, out1: Tensor) -> Tensor:
        """(N, 2)."""
        assert self.weight_fn is not None
        same_views([out0, out1])
        u0, u1 = normalized(out0), normalized(out1)
        return torch.stack([self.weight_fn(u0, u1), self.weight_fn(u1, u0)], 1).to(u0.dtype)

    def _through_weights(self, out0: Tensor, out1: Tensor, weights: Tensor) -> Tensor:
        """Zero, with the gradient of the loss with respect to the weights."""
        with torch.no_grad():
            positives = torch.linalg.vecdot(normalized(out0), normalized(out1)) / self.temperature
        return -((weights - weights.detach()) * positives[:, None]).mean()


class DCLWLoss(DCLLoss):
    """`DCLLoss` with weights `negative_mises_fisher_weights`, as Lightly's class of that name.

    Args:
        temperature: T, not 0.
        sigma: of the weights.
        gather_distributed: negatives of all processes.

    Source: lightly 1.6.0 (the same in 1.5.26).
    """

    def __init__(
        self, temperature: float = 0.1, sigma: float = 0.5, gather_distributed: bool = False
    ):
        super().__init__(
            temperature=temperature,
            weight_fn=partial(negative_mises_fisher_weights, sigma=sigma),
            gather_distributed=gather_distributed,
        )
