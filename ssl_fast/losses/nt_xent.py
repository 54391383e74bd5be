"""SimCLR: NT-Xent of two or more views (Chen et al. 2020)."""

from typing import Any

import torch
from torch import Tensor

from ..functional import multi_view_nt_xent
from ..functional._check import by_name, positive


class NTXentLoss(torch.nn.Module):
    """Each row finds the other views of its sample among all rows but itself.

        L = mean_i -log( sum_{p in pos(i)} e_ip / sum_{j != i} e_ij ),   e_ij = exp(u_i u_j / T)

    u: the rows of all V views, brought to unit norm inside. Two views have one positive a row.

    Args:
        temperature: > 0, of the cosines.
        group: process group; rows of all ranks are negatives.

    Source: Chen et al. 2020, Eq. 1. Two views: lightly e8d317fc NTXentLoss without memory bank;
        more: solo-learn 9187ea3 simclr_loss_func.
    Cost: `functional.nt_xent`: no matrix of similarities; each pair of rows is visited once.
    """

    def __init__(self, temperature: float = 0.5, group: Any = None):
        super().__init__()
        self.temperature = positive("temperature", temperature)
        self.group = by_name(group)

    def forward(self, *views: Tensor) -> Tensor:
        """The loss, 0-d, of two or more views (N, D)."""
        return multi_view_nt_xent(views, temperature=self.temperature, group=self.group)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"
