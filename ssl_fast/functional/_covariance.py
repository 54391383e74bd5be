"""The operators behind the covariance losses, and their gradients in closed form.

With n rows, c_d the centred squares of column d, s_d = sqrt(c_d / (n - 1) + eps), V views:

    d variance / dz    = -[s_d < gamma] (z - mean) / (V D (n - 1) s_d)
    d covariance / dz  = 4 Z (Z^T Z - diag c) / ((n - 1)^2 D)           zero column means already
    d invariance / dz0 = 2 (z0 - z1) / (n D)
"""

from typing import Any

import torch
from torch import Tensor

from .. import backend
from . import _distributed
from ._autograd import ClosedForm, OfTwo, scaled
from ._covariance_blocks import covariances, push
from ._covariance_products import Rows, covariance, dual_gradient, is_dual
from ._cross_correlation import correlation, own_correlation
from ._operator import operator
from ._tiles import product_dtype


def _fake_forward(z0, z1, gamma, eps, blocks, parts, want_grad, name, group):
    columns, views, double = z0.shape[1], 1 if z1 is None else 2, torch.float64
    shape = _kept_shape(z0, views, blocks, parts, want_grad, group)
    return (
        z0.new_empty(3, dtype=product_dtype(z0)),
        z0.new_empty((views, 2, columns), dtype=double),
        z0.new_empty(shape, dtype=product_dtype(z0)),
        z0.new_empty((), dtype=double),
    )


@operator(_fake_forward)
def covariance_forward(
    z0: Tensor,  # (N, B D)
    z1: Tensor | None,
    gamma: float,
    eps: float,
    blocks: int,  # B: covariances are of columns within one block
    parts: str,  # names of "variance" and "covariance", those that are wanted
    want_grad: bool,
    name: str,
    group: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """terms (3,), stats (V, 2, B D), kept (V B, N, N or D), the number of rows on all ranks."""
    kernels = backend.implementation(name, "covariance")
    views: list[Tensor] = [z0] if z1 is None else [z0, z1]
    rows, columns = Rows(z0, group), z0.shape[1]
    stats = z0.new_empty((len(views), 2, columns), dtype=torch.float64)
    shape = _kept_shape(z0, len(views), blocks, parts, want_grad, group)
    kept = z0.new_empty(shape, dtype=product_dtype(z0))
    terms = z0.new_zeros(3, dtype=torch.float64)
    for i, z in enumerate(views):
        if "covariance" not in parts:
            rows.moments(kernels, z, stats[i])
            continue
        held = kept[i * blocks : (i + 1) * blocks] if want_grad else None
        terms[2] += _sum_of_blocks(kernels, z, blocks, rows, stats[i], held)
    terms[2] /= columns  # the mean over blocks of sums over D
    if "variance" in parts:
        deviation = (stats[:, 1] / (rows.count - 1) + eps).sqrt()
        terms[1] = (gamma - deviation).relu().mean()
    if z1 is not None:
        terms[0] = kernels.squared_distance(z0, z1) / (rows.count * columns)
        if group:
            terms[0] = rows.sum(terms[0].clone())
    return terms.to(product_dtype(z0)), stats, kept, terms.new_full((), rows.count)


class Terms(OfTwo):
    """(terms, stats, kept, count) of one or two views; only the terms are for the caller."""

    run = covariance_forward

    @staticmethod
    def backward(ctx, d_terms):
        gamma, eps, blocks, parts, _, name, group = ctx.numbers
        need = ctx.needs_input_grad[:2]
        return covariance_backward(
            *ctx.saved_tensors, d_terms, gamma, eps, blocks, parts, *need, name, group
        )


def _sum_of_blocks(
    kernels: Any, z: Tensor, blocks: int, rows: Rows, stats: Tensor, held: Tensor | None
) -> Any:
    total = covariances(kernels, z, blocks, rows.group, stats, held)
    if total is not None:
        return total
    return sum(
        covariance(kernels, z[:, block], rows, stats[:, block], None if held is None else held[b])
        for b, block in enumerate(_blocks(z.shape[1], blocks))
    )


def _fake_backward(z0, z1, *_):
    return z0.new_empty(z0.shape), z0.new_empty(0) if z1 is None else z1.new_empty(z1.shape)


@operator(_fake_backward)
def covariance_backward(
    z0: Tensor,
    z1: Tensor | None,
    stats: Tensor,
    kept: Tensor,
    count: Tensor,
    d_terms: Tensor,  # (3,)
    gamma: float,
    eps: float,
    blocks: int,
    parts: str,
    need0: bool,
    need1: bool,
    name: str,
    group: str,
) -> tuple[Tensor, Tensor]:
    """d_z0, d_z1, contiguous, in the inputs' type; what is not needed is empty."""
    kernels = backend.implementation(name, "covariance")
    columns = z0.shape[1]
    dual = not group and is_dual(z0.shape[0], columns // blocks)
    d_invariance, d_variance, d_covariance = d_terms.double() * _distributed.world_size(group)
    scale = 4 * d_covariance / ((count - 1) ** 2 * columns)
    beta = torch.zeros_like(stats[:, 1])
    if "variance" in parts:
        deviation = (stats[:, 1] / (count - 1) + eps).sqrt()
        slope = -d_variance / (stats[:, 1].numel() * (count - 1)) / deviation
        beta = torch.where(deviation < gamma, slope, beta)
    if "covariance" in parts and dual:
        beta = beta - scale * stats[:, 1]
    factors = torch.stack([scale, 2 * d_invariance / (count * columns)])
    grads = []
    for i, (z, other, need) in enumerate(((z0, z1, need0), (z1, z0, need1))):
        if z is None or not need:
            grads.append(z0.new_empty(0))
            continue
        held = kept[i * blocks : (i + 1) * blocks] if "covariance" in parts else None
        rest = stats[i], beta[i], factors
        grads.append(_by_blocks(kernels, z, other, blocks, group, held, dual, *rest))
    return grads[0], grads[1]


def _by_blocks(
    kernels: Any, z: Tensor, other: Tensor | None, blocks: int, group: str, held: Tensor | None,
    dual: bool, stats: Tensor, beta: Tensor, factors: Tensor,
) -> Tensor:  # fmt: skip
    """d_z of one view, as `kernels.gradient`."""
    d_z = z.new_empty(z.shape)
    whole = None if held is None else push(kernels, z, group, held, stats, dual)
    if whole is not None:
        kernels.gradient(whole, z, other, stats[0], beta, factors, d_z)
        return d_z
    for b, block in enumerate(_blocks(z.shape[1], blocks)):
        own = None if held is None else held[b]
        others = None if other is None else other[:, block]
        rest = beta[block], factors, d_z[:, block]
        if own is not None and dual:
            dual_gradient(kernels, z[:, block], others, own, stats[:, block], *rest)
        else:
            kernels.gradient(own, z[:, block], others, stats[0, block], *rest)
    return d_z


def _fake_correlation(z0, z1, weight, eps, own, want_grad, name, group):
    wide = product_dtype(z0)
    shape = (2, *z0.shape) if want_grad else (0,)
    return z0.new_empty((), dtype=wide), z0.new_empty(shape, dtype=wide)


@operator(_fake_correlation)
def cross_correlation_forward(
    z0: Tensor,  # (N, D)
    z1: Tensor,  # (N, D)
    weight: float,
    eps: float,
    own_statistics: bool,
    want_grad: bool,
    name: str,
    group: str,
) -> tuple[Tensor, Tensor]:
    """The loss, and if wanted its gradients (2, N, D), times the number of ranks."""
    kernels = backend.implementation(name, "cross_correlation")
    rows, wide = Rows(z0, group), product_dtype(z0)
    kept = z0.new_empty((2, *z0.shape) if want_grad else (0,), dtype=wide)
    form = own_correlation if own_statistics else correlation
    loss = form(kernels, [z0, z1], rows, weight, eps, kept if want_grad else None)
    if group:
        kept *= _distributed.world_size(group)
    loss = loss.to(wide) if isinstance(loss, Tensor) else kept.new_full((), loss)
    return loss, kept


class Correlation(ClosedForm):
    """(loss, both gradients), from z0 and z1; backward only scales."""

    run = cross_correlation_forward

    @staticmethod
    def keep(ctx, inputs, outputs):
        ctx.save_for_backward(inputs[0], outputs[1])  # z0 for its type, and to refuse d2/dz2

    @staticmethod
    def backward(ctx, d_loss):
        z0, kept = ctx.saved_tensors
        return scaled(kept.unbind(), d_loss, ctx.needs_input_grad, (z0, z0))


def _blocks(columns: int, blocks: int) -> list[slice]:
    width = columns // blocks
    return [slice(b * width, (b + 1) * width) for b in range(blocks)]


def _kept_shape(
    z: Tensor, views: int, blocks: int, parts: str, want_grad: bool, group: str
) -> tuple[int, ...]:
    """Grams in the dual on one process, else this rank's part of the gradient."""
    if "covariance" not in parts or not want_grad:
        return (0,)
    rows, width = z.shape[0], z.shape[1] // blocks
    dual = not group and is_dual(rows, width)
    return views * blocks, rows, rows if dual else width
