"""What stands on top of an encoder: encoding h -> embedding z -> prediction."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import MLP

Last = Literal["none", "plain", "affine"]


def projector(dim: int, hidden: int, out: int) -> nn.Module:
    """ReSA's: three layers with batch norm and ReLU; the last norm has no affine parameters."""
    layers = MLP(dim, [hidden, hidden, out], norm_layer=nn.BatchNorm1d, bias=False)
    return nn.Sequential(layers, nn.BatchNorm1d(out, affine=False))


def predictor(dim: int, hidden: int) -> nn.Module:
    """Two layers, batch norm and ReLU between."""
    return MLP(dim, [hidden, dim], norm_layer=nn.BatchNorm1d, bias=False)


def mlp(dims: Sequence[int], *, norm: bool = True, last: Last = "none") -> nn.Sequential:
    """Linear layers dims[0] -> ... -> dims[-1] with ReLU between, after batch norm if `norm`.

    `last` is the batch norm of the output: none (the layer has a bias then), without or with
    affine parameters.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(dims[:-1]):
        layers += [nn.Linear(inputs, outputs, bias=not norm)]
        layers += [nn.BatchNorm1d(outputs), nn.ReLU()] if norm else [nn.ReLU()]
    layers.append(nn.Linear(dims[-2], dims[-1], bias=last == "none"))
    if last != "none":
        layers.append(nn.BatchNorm1d(dims[-1], affine=last == "affine"))
    return nn.Sequential(*layers)


class DINOHead(nn.Sequential):
    """Three layers with GELU, then unit norm: what DINO and iBOT multiply with prototypes."""

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__(
            nn.Linear(dim, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, out),
        )
        for layer in self:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, h: Tensor) -> Tensor:
        return F.normalize(super().forward(h), dim=-1)


class Prototypes(nn.Module):
    """(K, D) rows, unit norm after `normalize_`."""

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        if count < 2:
            raise ValueError(f"prototypes must be at least 2, got {count}")
        bound = dim**-0.5  # as nn.Linear(dim, count) without bias
        self.weight = nn.Parameter(torch.empty(count, dim).uniform_(-bound, bound))
        self.normalize_()

    @torch.no_grad()
    def normalize_(self) -> None:
        self.weight.copy_(F.normalize(self.weight, dim=1))
