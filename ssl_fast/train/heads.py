"""What stands on top of an encoder: encoding h -> embedding z -> prediction."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torchvision.ops import MLP

from .masks import Grid
from .models import sine_positions

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


def widths(dim: int, hidden: int, layers: int, out: int) -> list[int]:
    """Of an `mlp` with that many hidden layers."""
    if layers < 0:
        raise ValueError(f"hidden_layers must be at least 0, got {layers}")
    return [dim, *[hidden] * layers, out]


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


class PatchDecoder(nn.Module):
    """MAE's: tokens of the patches that were seen -> `out` numbers for every patch.

    A learnt token stands for each patch that was not.
    """

    def __init__(self, dim: int, out: int, grid: Grid, width: int, depth: int, heads: int) -> None:
        super().__init__()
        if depth < 1 or heads < 1 or width % heads:
            raise ValueError(
                f"a decoder needs blocks, and a width that its heads divide, got {depth} blocks of "
                f"width {width} with {heads} heads"
            )
        self.patches = grid[0] * grid[1]
        self.embed = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width).normal_(std=0.02))
        self.positions: Tensor
        self.register_buffer("positions", sine_positions(grid, width), persistent=False)
        self.blocks = nn.Sequential(*(Block(width, heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.predict = nn.Linear(width, out)

    def forward(self, tokens: Tensor, keep: Tensor) -> Tensor:  # (N, T, out)
        """`tokens` (N, 1 + k, dim): class token, then the first k of the patches `keep`."""
        keep = keep[:, : tokens.shape[1] - 1]
        seen = self.embed(tokens)
        hidden = self.mask_token.to(seen.dtype).expand(len(seen), self.patches, -1)
        index = keep[:, :, None].expand_as(seen[:, 1:])
        x = torch.cat([seen[:, :1], hidden.scatter(1, index, seen[:, 1:])], 1)
        return self.predict(self.norm(self.blocks(x + self.positions))[:, 1:])
