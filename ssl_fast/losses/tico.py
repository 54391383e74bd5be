"""TiCo: transformation invariance and covariance contrast (Zhu et al. 2022)."""

from typing import Any

import torch
from torch import Tensor

from ..functional import _check
from ..functional._tico import tico


class TiCoLoss(torch.nn.Module):
    """Agreement of two views, against the directions that embeddings have lately filled.

        L = 1 - mean_i <a_i, b_i> + rho mean_i a_i^T C a_i,   a, b: rows of z0, z1 of unit norm
        C <- beta C + (1 - beta) A^T A / N                    before use, without gradient

    Args:
        beta: how much of the moving second moment stays, in [0, 1).
        rho: weight of the contrast.
        group: process group: rows of all ranks are gathered; every rank returns the global loss,
            and DDP's mean of the gradients is exact.

    The second moment (D, D) is the buffer `moment`: zeros at first, part of the state dict once
    it has its size. It moves in training mode, unless `forward(..., update=False)` leaves it.

    Source: Eq. 8, Algorithm 1; lightly 1.6 for the order of update and use.
    Cost: two products of 2 N D^2 operations, in full precision also under autocast; the gradient
        reuses the second.
    """

    moment: Tensor

    def __init__(self, beta: float = 0.9, rho: float = 8.0, group: Any = None):
        super().__init__()
        self.beta = _check.share("beta", beta)
        self.rho = _check.at_least_zero("rho", rho)
        self.group = _check.by_name(group)
        self.register_buffer("moment", torch.zeros(0, 0))

    def forward(self, z0: Tensor, z1: Tensor, update: bool = True) -> Tensor:
        """The loss, 0-d.

        Args:
            z0: (N, D) of the online network.
            z1: (N, D) of the momentum network; gradients reach it if it requires them.
            update: whether the second moment moves.
        """
        held = self.moment if self.moment.numel() else None
        group = _check.group_name(self.group)
        loss, moment = tico(z0, z1, held, self.beta, self.rho, group)
        if update and self.training:
            self.moment = moment
        return loss

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *rest: Any) -> None:
        if f"{prefix}moment" in state_dict:
            self.moment = torch.empty_like(state_dict[f"{prefix}moment"])
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        return f"beta={self.beta}, rho={self.rho}"
