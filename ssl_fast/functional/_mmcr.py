"""Maximum manifold capacity: the loss and its gradients, formed forward."""

import math
from typing import Any

import torch
from torch import Tensor

from . import _distributed
from ._autograd import Scaled
from ._operator import fake_gradient, operator
from ._tiles import product_dtype
from .wasserstein import NULL, wasserstein_forward


def _fake_mmcr(online, momentum, weight, want_online, want_momentum, name, group):
    loss = online.new_empty((), dtype=product_dtype(online))
    return loss, fake_gradient(online, want_online), fake_gradient(momentum, want_momentum)


@operator(_fake_mmcr)
def mmcr_forward(
    online: Tensor,  # (B, K, D)
    momentum: Tensor,  # (B, K, D)
    weight: float,
    want_online: bool,
    want_momentum: bool,
    name: str,
    group: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, d_online, d_momentum, in `product_dtype`; None for what is not wanted."""
    z, want = torch.cat([online, momentum], 1), want_online or want_momentum
    samples, views, _ = z.shape
    centres = z.mean(1, dtype=product_dtype(z))
    norm, d_centres = wasserstein_forward(centres, False, NULL, False, want, name, group)
    count = sum(_distributed.row_counts(z, group)) if group else samples
    norms, d_z = nuclear_norms(z, want)
    total = _distributed.all_reduce(norms.sum(), "sum", group)
    gradients: list[Tensor | None] = [None, None]
    if d_z is not None:
        halves = d_z.mul_(weight * _distributed.world_size(group) / count).chunk(2, 1)
        gradients = [
            torch.sub(half, d_centres[:, None], alpha=1 / views) if wanted else None
            for half, wanted in zip(halves, (want_online, want_momentum), strict=True)
        ]
    outputs: Any = total * (weight / count) - norm, *gradients
    return outputs


class MMCR(Scaled):
    """(loss, d_online, d_momentum) at an upstream gradient of 1."""

    run = mmcr_forward


def nuclear_norms(z: Tensor, want_grad: bool) -> tuple[Tensor, Tensor | None]:
    """(B,) norms of matrices (B, K, D), and their gradients, in `product_dtype`.

    Meant for small K or D: the smaller Grams are float64 and decomposed together.
    """
    wide = product_dtype(z)
    x = z.double()
    wide_side = x.shape[1] < x.shape[2]
    gram = x @ x.mT if wide_side else x.mT @ x
    finite = math.isfinite(gram.sum())  # eigh raises otherwise
    values, vectors = torch.linalg.eigh(gram if finite else torch.zeros_like(gram))
    s = values.clamp_(min=0).sqrt_()
    norms = s.sum(1) if finite else gram.sum((1, 2)) * float("nan")
    if not want_grad:
        return norms.to(wide), None
    inverse = torch.where(s > NULL * s[:, -1:], 1 / s, 0.0)
    root = (vectors * inverse[:, None, :]) @ vectors.mT
    gradient = root @ x if wide_side else x @ root
    gradient = gradient if finite else gradient * float("nan")
    return norms.to(wide), gradient.to(wide)
