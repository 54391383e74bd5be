"""TiCo: transformation invariance and covariance contrast (Zhu et al. 2022)."""

from typing import Any

import torch
from torch import Tensor

from ..functional import _check
from ..functional._distributed import gather
from ..functional._operator import full_precision
from ..functional._rows import energy
from ..functional._unit import unit_rows


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
        _check.matrix("z0", z0)
        _check.matrix("z1", z1)
        _check.same("z0", z0, "z1", z1)
        if z0.shape != z1.shape:
            raise ValueError(
                f"z0 and z1 must have one shape, got z0 {tuple(z0.shape)}, z1 {tuple(z1.shape)}"
            )
        group = _check.group_name(self.group)
        a, b = (unit_rows(gather(z, group)) for z in (z0, z1))
        moment = full_precision(self._next_moment, (a.detach(),))
        if update and self.training:
            self.moment = moment
        return 1 + energy(a, moment, self.rho / len(a)) - (a * b).sum() / len(a)

    def _next_moment(self, a: Tensor) -> Tensor:
        width = a.shape[1]
        if self.moment.numel() == 0:
            return a.t() @ a * ((1 - self.beta) / len(a))
        if self.moment.shape[0] != width:
            raise ValueError(
                f"this loss holds the second moment of {self.moment.shape[0]} features and got "
                f"{width}: make a new TiCoLoss for another width"
            )
        moment = self.moment.to(a)
        return torch.addmm(moment, a.t(), a, beta=self.beta, alpha=(1 - self.beta) / len(a))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *rest: Any) -> None:
        if f"{prefix}moment" in state_dict:
            self.moment = torch.empty_like(state_dict[f"{prefix}moment"])
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        return f"beta={self.beta}, rho={self.rho}"
