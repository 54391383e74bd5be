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


def gelu_mlp(dim: int, hidden: int, out: int, *, norm: bool = False) -> nn.Sequential:
    """Three layers with GELU between: the heads of DINO and iBOT; with batch norm, of MSN."""
    layers: list[nn.Module] = []
    for inputs in (dim, hidden):
        layers.append(nn.Linear(inputs, hidden))
        layers += [nn.BatchNorm1d(hidden), nn.GELU()] if norm else [nn.GELU()]
    network = nn.Sequential(*layers, nn.Linear(hidden, out))
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    return network


class Prototypes(nn.Module):
    """K rows of D numbers, called for (K, D); with unit norm, or as they are."""

    def __init__(self, count: int, dim: int, *, unit: bool) -> None:
        super().__init__()
        if count < 2:
            raise ValueError(f"prototypes must be at least 2, got {count}")
        bound = dim**-0.5  # as nn.Linear(dim, count) without bias
        self.weight = nn.Parameter(torch.empty(count, dim).uniform_(-bound, bound))
        self.unit = unit

    def forward(self) -> Tensor:
        return F.normalize(self.weight) if self.unit else self.weight
