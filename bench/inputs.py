"""Inputs of losses that no benchmark of a stem has."""

from collections.abc import Callable

import torch
from torch import Tensor

from .cases import unit

Function = Callable[..., Tensor]
Inputs = Callable[..., list[Tensor]]


def views(count: int, queue: bool = False) -> Inputs:
    """`count` tensors (N, D); after them a queue (K, D) of unit rows, the shape being (N, K, D)."""

    def inputs(shape, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
        rows, *length, width = shape
        drawn = [torch.randn(rows, width, device=device).to(dtype) for _ in range(count)]
        return [*drawn, unit(*length, width, device).to(dtype)] if queue else drawn

    return inputs


def masked(shape, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Student's and teacher's logits (M, K) of the tokens in the mask (B, T): a third of them."""
    images, tokens, prototypes = shape
    mask = torch.arange(tokens, device=device).expand(images, tokens) % 3 == 0
    return [*views(2)((int(mask.sum()), prototypes), dtype, device), mask]


def clustered(shape, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Query and key (N, D), centroids (K, D), concentrations (K,), clusters in turn (N,)."""
    rows, count, _ = shape
    concentration = torch.rand(count, device=device) * 0.1 + 0.1
    index = torch.arange(rows, device=device) % count
    return [*views(2, queue=True)(shape, dtype, device), concentration, index]


def maps(shape, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Of two views: features (N, D), maps (N, P, C), and where these lie (N, P, 2)."""
    rows, width, positions, channels = shape
    sizes = (rows, width), (rows, positions, channels), (rows, positions, 2)
    return [torch.randn(size, device=device).to(dtype) for size in sizes for _ in range(2)]


def regional(loss: Function) -> Function:
    """Maps come as rows of positions; the losses take images of them."""

    def call(z0, z1, map0, map1, where0, where1) -> Tensor:
        images = [x[:, None] for x in (map0, map1, where0, where1)]
        return loss([(z0, images[0]), (z1, images[1])], images[2:])

    return call
