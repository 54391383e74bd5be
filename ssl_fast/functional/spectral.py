"""Losses on the spectrum of the embeddings: MMCR, FroSSL, MEC.

Their Grams are taken on the smaller side: N x N or D x D, whichever is less.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backend
from . import _check, _distributed
from ._autograd import apply
from ._frossl import FroSSL
from ._mmcr import MMCR
from ._norms import normalized
from ._operator import full_precision
from .whitening import _views


def mmcr(online: Tensor, momentum: Tensor, *, weight: float = 5e-3, group: Any = None) -> Tensor:
    """Maximum manifold capacity: -|C|_* + weight * mean_b |Z_b|_*.

    Z_b (2K, D) holds all views of sample b, online and momentum; C (B, D) holds their means.

    Args:
        online: (B, K, D), used as given. Gradients reach those that require them.
        momentum: likewise.
        weight: of the manifolds' own norms, >= 0.
        group: process group: one loss for the samples of all ranks, and gradients such that DDP's
            mean is exact.

    Returns:
        0-d float32 (float64 for float64).

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.

    Source: Yerxa et al. 2023; the value of Lightly's MMCRLoss, without differentiating an SVD.
    Cost: one eigendecomposition min(B, D) wide and B of min(2K, D); products of B D min(B, D).
    """
    weight = _check.at_least_zero("weight", weight)
    _check.batch("online", online)
    _check.batch("momentum", momentum)
    _check.same("online", online, "momentum", momentum)
    if online.shape != momentum.shape:
        raise ValueError(
            f"online and momentum must have one shape, got {tuple(online.shape)} and "
            f"{tuple(momentum.shape)}"
        )
    name = backend.select("wasserstein", online.device, online.dtype)
    wants = [torch.is_grad_enabled() and z.requires_grad for z in (online, momentum)]
    return apply(MMCR, online, momentum, float(weight), *wants, name, _check.group_name(group))


def frossl(views: Sequence[Tensor], *, invariance_weight: float = 1.0, group: Any = None) -> Tensor:
    """Frobenius-norm entropy of each view plus the distance of the views to their mean.

        L = sum_v log |Z_v^T Z_v / tr|_F^2 + invariance_weight * V * sum_v |Z_v - mean|_F^2 / N

    with columns of unit norm over the batch.

    Args:
        views: V >= 2 tensors (N, D).
        invariance_weight: >= 0.
        group: process group: one loss for the rows of all ranks.

    Returns:
        0-d float32 (float64 for float64), differentiable once.

    Source: Skean et al. 2024; the value of Lightly's FroSSLLoss.
    Cost: a Gram of min(N, D) for each view and a product of its size, forward. Kept for backward:
        the views and their gradients.
    """
    invariance_weight = _check.at_least_zero("invariance_weight", invariance_weight)
    z = [_check.rows_contiguous(view) for view in _views(views)]
    name = backend.select("covariance", z[0].device, z[0].dtype)
    want = torch.is_grad_enabled() and any(view.requires_grad for view in z)
    return apply(FroSSL, invariance_weight, want, name, _check.group_name(group), *z)


def mec(
    predictions: Sequence[Tensor],
    targets: Sequence[Tensor],
    *,
    eps: float = 64.0,
    slack: float = 1.0,
    group: Any = None,
) -> Tensor:
    """Maximum entropy coding: -(l / N) * mean of tr log(I + P_0 Z_1^T / l) and of (P_1, Z_0).

    The logarithm is its Taylor polynomial of degree 4, whose traces need one product beside C:

        tr log(I + C) = tr C - <C, C^T> / 2 + <C^2, C^T> / 3 - <C^2, (C^2)^T> / 4

    Args:
        predictions: two views (N, D) of the student; normalised inside, gathered over the group.
        targets: the same two views of the teacher. Gradients reach those that require them.
        eps: distortion, > 0: l = N * eps / D * slack.
        slack: the code warms l up, from 8 times to 1, over the first epochs, > 0.
        group: process group: one loss for the rows of all ranks.

    Returns:
        0-d float32 (float64 for float64).

    Source: Liu et al. 2022; xinliu20/MEC 35045dc, whose eps is 64 at D = 2048. The paper's factor
        (N + D) / 2 is only in that code's log.
    Cost: two products of min(N, D)^2 max(N, D) and of min(N, D)^3 forward.
    """
    p, z = _views(predictions, "predictions"), _views(targets, "targets")
    if len(p) != 2 or len(z) != 2 or p[0].shape != z[0].shape:
        raise ValueError(
            "MEC compares two views: pass predictions [p0, p1] and targets [z0, z1] of one shape, "
            f"got {len(p)} of {tuple(p[0].shape)} and {len(z)} of {tuple(z[0].shape)}"
        )
    _check.same("targets[0]", z[0], "predictions[0]", p[0])
    eps, slack = _check.positive("eps", eps), _check.positive("slack", slack)
    name = _check.group_name(group)
    p, z = ([normalized(_distributed.gather(v, name)) for v in side] for side in (p, z))
    rows, width = p[0].shape
    scale = rows * eps / width * slack
    total = sum(full_precision(_log_trace, (p[i], z[1 - i], scale)) for i in range(2))
    return -scale / rows * total / 2


def _log_trace(p: Tensor, z: Tensor, scale: float) -> Tensor:
    """tr log(I + p z^T / scale) to degree 4; powers of the smaller of p z^T and z^T p."""
    c = (p @ z.T if p.shape[0] <= p.shape[1] else z.T @ p) / scale
    square = c @ c
    second, third = (c * c.T).sum(), (square * c.T).sum()
    return c.trace() - second / 2 + third / 3 - (square * square.T).sum() / 4
