"""Losses on whitened embeddings: W-MSE, CW-RGP, INTL, Zero-CL.

PyTorch's decompositions, of sub-batches, groups and views together; backward passes in closed form.
Half inputs are computed in float32.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _check, _distributed
from ._operator import full_precision
from ._tiles import product_dtype
from ._whiten import cholesky_whiten, iterative_norm, standardised, whitened_diagonal, zca_whiten
from .cosine import mean_cosine


def wmse(
    views: Sequence[Tensor],
    *,
    sub_batch: int = 128,
    iterations: int = 1,
    eps: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Whitened squared error: 2 - 2 cos of Cholesky-whitened views, mean over pairs of views.

        w = L^-1 (x - mean),   L L^T = (1 - eps) C + eps I,   C with 1 / (n - 1)

    over random sub-batches of n rows, the same rows in every view, drawn `iterations` times.

    Args:
        views: at least two (N, D), one for each view, same order of samples.
        sub_batch: rows n whitened together; N must be a multiple, and n > D unless eps > 0.
        iterations: partitions drawn.
        eps: shrinkage, 0 <= eps < 1.
        generator: on the CPU; None is PyTorch's own.

    Returns:
        0-d float32 (float64 for float64). Gradients reach every view, through the whitening.

    Raises:
        ValueError: sub-batches that are too small for their width, or that have collapsed.

    Source: Ermolov et al. 2021; htdt/self-supervised d9662c8.
    Cost: products of N D^2 a view and iteration, Cholesky of D x D for each sub-batch.
    """
    views = _views(views)
    rows, width = views[0].shape
    _check.count("sub_batch", sub_batch)
    _check.count("iterations", iterations)
    eps = _check.share("eps", eps)
    if rows % sub_batch:
        raise ValueError(
            f"{rows} rows do not divide into sub-batches of {sub_batch}: choose sub_batch among "
            "the divisors of the batch size, and drop_last=True in the loader"
        )
    if eps == 0 and sub_batch <= width:
        raise ValueError(
            f"a sub-batch of {sub_batch} rows cannot be whitened in {width} dimensions, its "
            f"covariance is singular: use sub_batch > {width} (better twice as many), a narrower "
            "projection, or eps > 0"
        )
    x = torch.stack(views)
    losses = []
    for _ in range(iterations):
        parts = _sub_batches(x, sub_batch, generator)
        losses.append(_mean_distance(full_precision(cholesky_whiten, (parts, eps)).flatten(1, 2)))
    return _mean(losses)


def cw_rgp(
    views: Sequence[Tensor],
    *,
    groups: int = 2,
    sub_batch: int | None = None,
    iterations: int = 1,
    eps: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Channel whitening with random group partition: 2 - 2 cos of the whitened views.

    Every sample is centred over its D channels; the channels are shuffled, for each view and
    sub-batch anew, into groups of d = D / groups; in each group the n samples are whitened against
    each other by S^-1/2, S = (1 - eps) X X^T / (d - 1) + eps I, n x n.

    Args:
        views: at least two (N, D).
        groups: divides D.
        sub_batch: samples n whitened together, a divisor of N; None takes all. n < D / groups
            unless eps > 0.
        iterations: partitions drawn.
        eps: shrinkage, 0 <= eps < 1.
        generator: on the CPU; None is PyTorch's own.

    Returns:
        0-d float32 (float64 for float64).

    Raises:
        ValueError: groups that do not divide D, or are too narrow for the sub-batch; collapse.

    Source: Weng et al. 2022; winci-ai/CW-RGP 24f6a20 (axis 0, ZCA, minus 1, random groups).
    Cost: products of N n D and an eigendecomposition of n x n for each sub-batch and group.
    """
    views = _views(views)
    rows, width = views[0].shape
    _check.count("groups", groups)
    _check.count("iterations", iterations)
    eps = _check.share("eps", eps)
    sub_batch = rows if sub_batch is None else _check.count("sub_batch", sub_batch)
    if width % groups:
        raise ValueError(f"groups must divide the width {width}, got {groups}")
    if rows % sub_batch:
        raise ValueError(f"{rows} rows do not divide into sub-batches of {sub_batch}")
    if width // groups < 2 or (eps == 0 and sub_batch >= width // groups):
        raise ValueError(
            f"a group of {width // groups} channels cannot whiten {sub_batch} samples, their Gram "
            f"is singular: use fewer groups, a sub_batch < {width // groups}, or eps > 0"
        )
    x = torch.stack(views)
    losses = []
    for _ in range(iterations):
        parts = _sub_batches(x, sub_batch, generator)
        shuffle = _shuffles(parts, generator) if groups > 1 else None
        whitened = full_precision(zca_whiten, (parts, shuffle, groups, eps))
        losses.append(_mean_distance(whitened.flatten(1, 2)))
    return _mean(losses)


def intl(
    views: Sequence[Tensor],
    *,
    iterations: int = 4,
    trade_off: float | None = None,
    axis: int = 0,
    group: Any = None,
) -> Tensor:
    """Iterative normalisation with trace loss, view 0 against every other.

        L = mean over i >= 1 of  2 - 2 cos(t_i, t_0) + trade_off (TL(t_i) + TL(t_0))
        t = IterNorm(z):   P <- (3 P - P^3 S / tr S) / 2  from I,   t = P / sqrt(tr S) applied
        TL(t) = sum_b (var(t_b) - 1)^2,   unbiased

    axis 0 centres every sample over its D channels and normalises the N x N Gram / (D - 1); axis 1
    centres channels over the batch, D x D / (N - 1).

    Args:
        views: at least two (N, D), gathered over the group.
        iterations: Newton's steps; few on purpose, the spectrum is modulated, not whitened.
        trade_off: of the trace loss; None takes the code's 0.01 (log2 N - 3) for axis 0, over all
            ranks, and 0.01 (log2 D - 3) for axis 1.
        axis: 0 or 1.
        group: process group: every rank returns the loss of all rows, and gradients such that
            DDP's mean is exact.

    Source: Weng et al. 2024; winci-ai/INTL 0aa69af, trade-off as its scripts set it.
    """
    views = [_distributed.gather(view, _check.group_name(group)) for view in _views(views)]
    _check.count("iterations", iterations)
    if axis not in (0, 1):
        raise ValueError(f"axis must be 0 (whiten samples) or 1 (whiten channels), got {axis!r}")
    size = views[0].shape[axis]
    if views[0].shape[1 - axis] < 2:
        raise ValueError(
            f"IterNorm with axis={axis} needs a variance over at least 2 entries, got views of "
            f"shape {tuple(views[0].shape)}"
        )
    if trade_off is None:
        trade_off = 0.01 * (math.log2(size) - 3)
    else:
        _check.at_least_zero("trade_off", trade_off)
    x = torch.stack(views)
    t = full_precision(iterative_norm, (x if axis == 0 else x.mT, iterations))
    trace = (t.var(2) - 1).square().sum(1)
    t = t if axis == 0 else t.mT
    loss = [_distance(t[i], t[0]) + trade_off * (trace[i] + trace[0]) for i in range(1, len(t))]
    return _mean(loss)


def zero_cl(
    z0: Tensor,
    z1: Tensor,
    *,
    mode: str = "feature",
    shrinkage: float | None = None,
    eps: float | None = None,
    group: Any = None,
) -> Tensor:
    """Zero-contrastive loss: sum_i (c_ii - 1)^2 of whitened views; no negatives.

    "feature" standardises columns (biased, 1e-5 inside the root), whitens D x D with C / (N - 1),
    and correlates columns over N. "instance" standardises rows (unbiased, + 1e-4), whitens N x N
    with S / D, and correlates rows over D. "both" is the sum, as the paper has it. The whitening
    matrix ((1 - shrinkage) S + shrinkage I + eps)^-1/2 is a constant: no gradient passes it.

    Args:
        z0: (N, D), N >= 2, D >= 2.
        z1: (N, D), N >= 2, D >= 2.
        mode: "feature", "instance" or "both".
        shrinkage: None takes 0.1 for features and 0 for instances.
        eps: added to the eigenvalues, > 0; None takes 1e-5 for features and 0.01 for instances.
        group: process group: the loss of all rows. The released instance mode sums Grams of
            different samples over ranks; here rows are gathered.

    Source: Zhang et al. 2022; Sherrylone/Zero-CL 5ae44f8: CIFAR main.py (features), ImageNet-100
        main.py (instances).
    """
    _check.choice("mode", mode, ("feature", "instance", "both"))
    name = _check.group_name(group)
    x, y = (_distributed.gather(view, name) for view in _views([z0, z1], "z0 and z1"))
    if min(x.shape) < 2:
        raise ValueError(
            f"standardisation needs at least 2 rows and columns, got shape {tuple(x.shape)}"
        )
    total = x.new_zeros(())
    if mode != "instance":
        fraction = 0.1 if shrinkage is None else _check.share("shrinkage", shrinkage)
        floor = 1e-5 if eps is None else _check.positive("eps", eps)
        z = standardised(torch.stack([x.T, y.T]), True)  # (2, D, N)
        total = total + _diagonal(z, len(x) - 1, fraction, floor)
    if mode != "feature":
        fraction = 0.0 if shrinkage is None else _check.share("shrinkage", shrinkage)
        floor = 1e-2 if eps is None else _check.positive("eps", eps)
        z = standardised(torch.stack([x, y]), False)  # (2, N, D)
        total = total + _diagonal(z, x.shape[1], fraction, floor)
    return total


def _diagonal(z: Tensor, *numbers: float) -> Tensor:
    return full_precision(whitened_diagonal, (z, *numbers))


def _sub_batches(x: Tensor, size: int, generator: torch.Generator | None) -> Tensor:
    """(V, S, n, D): the rows of (V, N, D) at random; as they are where all are whitened at once."""
    rows = x.shape[1]
    if size == rows:
        return x[:, None]
    order = torch.randperm(rows, generator=generator)
    return x.index_select(1, order.to(x.device)).unflatten(1, (-1, size))


def _shuffles(parts: Tensor, generator: torch.Generator | None) -> Tensor:
    """(V, S, D): an order of the channels for each view and sub-batch."""
    views, batches, _, width = parts.shape
    drawn = [torch.randperm(width, generator=generator) for _ in range(views * batches)]
    return torch.stack(drawn).view(views, batches, width).to(parts.device)


def _mean_distance(t: Tensor) -> Tensor:
    """2 - 2 cos, mean over rows and over pairs of views."""
    distances = [_distance(x, y) for x, y in itertools.combinations(t.unbind(), 2)]
    return _mean(distances)


def _mean(values: list[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(values).mean()


def _distance(x: Tensor, y: Tensor) -> Tensor:
    return 2 - 2 * mean_cosine(x, y, eps=1e-12)


def _views(views: Sequence[Tensor], name: str = "views") -> list[Tensor]:
    """Checked: at least two matrices of one shape and device, in float32 or float64."""
    if not isinstance(views, list | tuple):
        came = type(views).__name__
        raise TypeError(f"{name} must be a list of (N, D) tensors, got {came}: write [z0, z1]")
    if len(views) < 2:
        raise ValueError(f"{name} must hold at least two views, got {len(views)}")
    for i, view in enumerate(views):
        _check.matrix(f"{name}[{i}]", view)
        _check.device(f"{name}[{i}]", view, f"{name}[0]", views[0].device)
        if view.shape != views[0].shape:
            raise ValueError(
                f"{name} must have one shape, got {tuple(views[0].shape)} and {tuple(view.shape)}"
            )
    wide = product_dtype(views[0])
    return [view.to(wide) for view in views]
