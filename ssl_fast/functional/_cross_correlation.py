"""The products behind the cross-correlation of two views, Z0^T Z1 / N, both standardised.

    dual     D >= 2 N:  sum_de C_de^2 = <Z0 Z0^T, Z1 Z1^T> / N^2, by chunks of columns
    direct   else:      strips of columns of C^T; each is summed and multiplied back into both
                        gradients. They are high: the library forms and takes those faster than low

Both end in the gradient through the standardisation, g - own * (own's projection), by columns.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _distributed
from ._covariance_products import (
    Rows,
    add_gram,
    block,
    cancels,
    chunks,
    mirror,
    on_device,
    scratch,
)
from ._tiles import product_dtype

# Columns of a strip, fewest and most, and between them half of all: more than for covariances, for
# of symmetry no use is made. Measured on 2 cores.
STRIPS = 256, 512


def correlation(
    kernels: Any, views: list[Tensor], rows: Rows, weight: float, eps: float, kept: Tensor | None
) -> Any:
    """sum_d (C_dd - 1)^2 + weight sum_{d != e} C_de^2, float64; kept (2, N, D): its gradients."""
    z, columns = views[0], views[0].shape[1]
    stats = [z.new_empty((2, columns), dtype=torch.float64) for _ in views]
    dual = rows.dual(columns)
    gathered = rows.group and (dual or rows.gathers(z, columns))
    if gathered:
        views = [_distributed.gather(view, rows.group) for view in views]
    if dual:
        form = functools.partial(_dual_correlation, kernels, views, rows, stats, weight, eps, kept)
        loss = form(product_dtype(z))
        return loss if loss is not None else form(torch.float64)
    wide = product_dtype(z)
    own = [scratch(view, len(view), columns, wide, i) for i, view in enumerate(views)]
    for view, s, o in zip(views, stats, own, strict=True):
        if rows.group and not gathered:
            rows.moments(kernels, view, s)
            kernels.center(view, s[0], (s[1] / rows.count + eps).rsqrt(), o)
        else:
            kernels.moments(view, s, o, eps)
    reduce = rows.sum if rows.group and not gathered else None
    mine = [o[rows.mine] for o in own] if gathered else own
    loss = _direct_correlation(kernels, own, mine, rows, weight, kept, reduce)
    if kept is not None:
        for push, o, s in zip(kept, mine, stats, strict=True):
            _standardised(kernels, push, o, None, 1.0, None, rows, s[1], eps, push)
    return loss


def own_correlation(
    kernels: Any, views: list[Tensor], rows: Rows, weight: float, eps: float, kept: Tensor | None
) -> Tensor:
    """`correlation` of views that every rank has standardised by its own rows' statistics."""
    z, alone = views[0], Rows(views[0], "")
    stats = [z.new_empty((2, z.shape[1]), dtype=torch.float64) for _ in views]
    own = [view.new_empty(view.shape, dtype=product_dtype(z)) for view in views]
    for view, s, o in zip(views, stats, own, strict=True):
        kernels.moments(view, s, o, eps)
    loss = _direct_correlation(kernels, own, own, rows, weight, kept, rows.sum)
    if kept is not None:
        for push, o, s in zip(kept, own, stats, strict=True):
            _standardised(kernels, push, o, None, 1.0, None, alone, s[1], eps, push)
    return loss


def _dual_correlation(
    kernels: Any, views: list[Tensor], rows: Rows, stats: list[Tensor], weight: float, eps: float,
    kept: Tensor | None, dtype: torch.dtype,
) -> Tensor | None:  # fmt: skip
    """`correlation` by the Grams of both views; None where float32 would cancel."""
    n, grams = rows.count, [z.new_empty((z.shape[0],) * 2, dtype=dtype) for z in views]
    parts = list(zip(chunks(views[0], dtype), chunks(views[1], dtype, 1), strict=True))
    squares, away, betas = 0.0, 0.0, []
    for (columns, first), (_, second) in parts:
        for z, s, g, own in zip(views, stats, grams, (first, second), strict=True):
            kernels.moments(block(z, columns), block(s, columns), own, eps)
            add_gram(g, own, columns.start > 0)
        more, further, beta = _diagonal(kernels, first, second, weight)
        squares, away = squares + more, away + further
        betas.append(beta)
    for g in grams:
        mirror(g)
    total = kernels.inner(*grams) / n**2
    if not on_device(kernels, views[0]) and cancels(total, squares, grams[0]):
        return None
    if kept is not None:
        for ((columns, first), (_, second)), beta in zip(parts, betas, strict=True):
            pair = first, second
            if len(parts) > 1:  # a single chunk is still there
                for view, s, o in zip(views, stats, pair, strict=True):
                    scale = (s[1, columns] / n + eps).rsqrt()
                    kernels.center(view[:, columns], s[0, columns], scale, o)
            for i in (0, 1):
                gram, mine, other = grams[1 - i], pair[i], pair[1 - i]
                if rows.group:
                    gram, mine, other = (t[rows.mine] for t in (gram, mine, other))
                _standardised(
                    kernels, gram @ pair[i], mine, other, 2 * weight / n**2, beta, rows,
                    block(stats[i][1], columns), eps, block(kept[i], columns),
                )  # fmt: skip
    return away + weight * (total - squares)


def _diagonal(kernels: Any, first: Tensor, second: Tensor, weight: float) -> tuple:
    """sum c^2, sum (c - 1)^2 and (2 (c - 1) - 2 weight c) / n of the columns' c = C_dd."""
    if _at_once(kernels, first):
        return kernels.diagonal(first, second, weight)
    n = len(first)
    c = kernels.dots(first, second, None, 1.0, None) / n
    beta = c * ((2 - 2 * weight) / n) - 2 / n
    return c.square().sum(), (c - 1).square().sum(), beta


def _direct_correlation(
    kernels: Any, own: list[Tensor], mine: list[Tensor], rows: Rows, weight: float,
    kept: Tensor | None, reduce: Callable | None,
) -> Any:  # fmt: skip
    """`correlation` by strips of columns of Z_1^T Z_0; kept: the derivatives by Z_0 and Z_1."""
    columns = own[0].shape[1]
    size = min(max(STRIPS[0], -(-columns // 2)), STRIPS[1])
    loss: Any = 0.0
    for first in range(0, columns, size):
        strip = slice(first, min(first + size, columns))
        tile = torch.mm(own[1].t(), own[0][:, strip])
        tile = tile if reduce is None else reduce(tile)
        loss += kernels.penalty(tile, first, rows.count, weight)
        if kept is not None:
            torch.mm(mine[1], tile, out=kept[0][:, strip])
            kept[1].addmm_(mine[0][:, strip], tile.t(), beta=float(first > 0))
    return loss


def _standardised(
    kernels: Any, push: Tensor, own: Tensor, other: Tensor | None, alpha: float,
    beta: Tensor | None, rows: Rows, squares: Tensor, eps: float, out: Tensor,
) -> None:  # fmt: skip
    """The gradient by z from that by its standardised rows, g = alpha push + beta_d other.

    Column means of g are zero, so only its projection on `own` comes off.
    """
    if not rows.group and _at_once(kernels, own):
        return kernels.standardised(push, own, other, alpha, beta, squares, eps, out)
    scale = (squares / rows.count + eps).rsqrt()
    dots = rows.sum(kernels.dots(push, own, other, alpha, beta)) / rows.count
    kernels.gradient(push, own, other, alpha, beta, dots, scale, out)


def _at_once(kernels: Any, z: Tensor) -> bool:
    """Whether the backend has columns' numbers and what follows from them in one kernel."""
    return hasattr(kernels, "standardised") and not z.is_cuda
