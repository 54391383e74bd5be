"""Whitening of rows: by Cholesky, by the inverse square root, by Newton's steps towards it.

Backward passes are closed forms: autograd through decompositions takes several times the products,
and repeated eigenvalues would disturb it.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._autograd import ClosedForm, apply
from ._operator import full_precision


def standardised(x: Tensor, features: bool) -> Tensor:
    """(x - mean) / sqrt(var + 1e-5) of rows (V, r, n), biased; else / (std + 1e-4), unbiased."""
    return apply(_Standardised, x, features)


def whitened_diagonal(z: Tensor, divisor: int, shrinkage: float, eps: float) -> Tensor:
    """sum_i (c_ii - 1)^2, c the correlation of both z (2, r, n), their rows whitened."""
    return apply(_Diagonal, z, divisor, shrinkage, eps)


def cholesky_whiten(x: Tensor, eps: float) -> Tensor:
    """L^-1 (x - mean) of (..., n, D) over n."""
    return apply(_Cholesky, x, eps)


def zca_whiten(x: Tensor, shuffle: Tensor | None, groups: int, eps: float) -> Tensor:
    """S^-1/2 x of (V, S, n, D) centred over D, group by group of the channels in `shuffle`.

    S: the n x n Gram / (d - 1) of a group; shuffle: (V, S, D), None for the order as it is.
    """
    return apply(_ZCA, x, shuffle, groups, eps)


def iterative_norm(x: Tensor, iterations: int) -> Tensor:
    """IterNorm over the last dimension: (V, n, d) centred there, n x n normalised."""
    x = x - x.mean(2, keepdim=True)
    gram = x @ x.mT / (x.shape[2] - 1)
    trace = gram.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    trace = torch.where(trace > 0, trace, 1.0)  # a collapsed view stays at zero
    gram = gram / trace
    root = torch.eye(x.shape[1]).to(x).expand_as(gram)
    for _ in range(iterations):
        root = torch.baddbmm(root, torch.matrix_power(root, 3), gram, beta=1.5, alpha=-0.5)
    return root * trace.rsqrt() @ x


def _outside_autocast(backward: Callable) -> Callable:
    """Its products are float32 where `backward()` is called under autocast, too."""

    @functools.wraps(backward)
    def run(*args: Any) -> Any:
        return full_precision(backward, args)

    return run


class _Standardised(ClosedForm):
    """z = s (x - mean), of s = 1 / sqrt(var + 1e-5) for features, else 1 / (std + 1e-4).

    dx = s (dz - mean dz) - k <z, dz> z,   k = s / n for features, else 1 / ((n - 1) std)
    """

    @staticmethod
    def forward(x: Tensor, features: bool) -> tuple[Tensor, Tensor, Tensor]:
        count = x.shape[-1]
        x = x - x.mean(-1, keepdim=True)
        norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float64)
        if features:
            scale = (norms.square() / count + 1e-5).rsqrt()
            k = scale / count
        else:
            norms = norms / math.sqrt(count - 1)
            scale = (norms + 1e-4).reciprocal()
            k = (norms.clamp(min=1e-30) * (count - 1)).reciprocal()
        scale, k = scale.to(x.dtype), k.to(x.dtype)
        return x * scale, scale, k

    @staticmethod
    def keep(ctx: Any, inputs: tuple, outputs: tuple) -> None:
        ctx.save_for_backward(*outputs)

    @staticmethod
    @_outside_autocast
    def backward(ctx: Any, d_z: Tensor) -> tuple[Tensor]:
        z, scale, k = ctx.saved_tensors
        along = (z * d_z).sum(-1, keepdim=True) * k
        return (torch.addcmul((d_z - d_z.mean(-1, keepdim=True)) * scale, z, along, value=-1),)


class _Diagonal(ClosedForm):
    """sum_i (c_ii - 1)^2 of w = R z, with c_ii = <w_0i, w_1i> / n and R a constant.

    dz_v = R_v dw_v,   dw_0i = 2 (c_ii - 1) / n w_1i
    """

    @staticmethod
    def forward(z: Tensor, divisor: int, shrinkage: float, eps: float) -> tuple[Tensor, ...]:
        values, vectors = _eigh(_shrunk(z @ z.mT / divisor, shrinkage))
        scale = (values.clamp(min=0) + eps).rsqrt()
        rotation = (vectors * scale[:, None]) @ vectors.mT
        white = rotation @ z
        excess = (white[0] * white[1]).sum(1) / z.shape[2] - 1
        return excess.square().sum(), rotation, white, excess

    @staticmethod
    def keep(ctx: Any, inputs: tuple, outputs: tuple) -> None:
        ctx.save_for_backward(inputs[0], *outputs[1:])

    @staticmethod
    @_outside_autocast
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor]:
        _z, rotation, white, excess = ctx.saved_tensors
        return ((rotation * (2 / white.shape[2] * d_loss * excess)) @ white.flip(0),)


class _Cholesky(ClosedForm):
    """w = x L^-T of x (..., n, D) centred over n, with L L^T = (1 - eps) x^T x / (n - 1) + eps I.

    With P the lower triangle of dw^T w, mirrored:  dx = (dw - (1 - eps) / (n - 1) w P) L^-1.
    """

    @staticmethod
    def forward(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        x = x - x.mean(-2, keepdim=True)
        covariance = _shrunk(x.mT @ x / (x.shape[-2] - 1), eps)
        factor, info = torch.linalg.cholesky_ex(covariance)
        if _eager() and bool(info.any()) and _finite(x):
            raise ValueError(_collapsed(x.shape[-2], x.shape[-1]))
        return torch.linalg.solve_triangular(factor.mT, x, upper=True, left=False), factor

    @staticmethod
    def keep(ctx: Any, inputs: tuple, outputs: tuple) -> None:
        ctx.eps = inputs[1]
        ctx.save_for_backward(*outputs)

    @staticmethod
    @_outside_autocast
    def backward(ctx: Any, d_white: Tensor) -> tuple[Tensor]:
        white, factor = ctx.saved_tensors
        lower = (d_white.mT @ white).tril()
        mirrored = lower + lower.tril(-1).mT
        scale = (1 - ctx.eps) / (white.shape[-2] - 1)
        inner = d_white - white @ (scale * mirrored)
        d_x = torch.linalg.solve_triangular(factor, inner, upper=False, left=False)
        return (d_x - d_x.mean(-2, keepdim=True),)


class _ZCA(ClosedForm):
    """w = R x of each group x (n, d), with R = S^-1/2 and S = (1 - eps) x x^T / (d - 1) + eps I.

    dx = R dw + (1 - eps) / (d - 1) (dS + dS^T) x,   dR = dw x^T
    """

    @staticmethod
    def forward(x: Tensor, shuffle: Tensor | None, groups: int, eps: float) -> tuple[Tensor, ...]:
        parts = _split(x - x.mean(-1, keepdim=True), shuffle, groups)
        gram = _shrunk(parts @ parts.mT / (parts.shape[-1] - 1), eps)
        root, *spectrum = inverse_root(gram)
        return _joined(root @ parts, shuffle, x), parts, root, *spectrum

    @staticmethod
    def keep(ctx: Any, inputs: tuple, outputs: tuple) -> None:
        ctx.groups, ctx.eps = inputs[2:]
        ctx.save_for_backward(*inputs[:2], *outputs[1:])

    @staticmethod
    @_outside_autocast
    def backward(ctx: Any, d_white: Tensor) -> tuple[Tensor]:
        x, shuffle, parts, root, *spectrum = ctx.saved_tensors
        d_white = _split(d_white, shuffle, ctx.groups)
        d_gram = through_inverse_root(d_white @ parts.mT, *spectrum)
        scale = 2 * (1 - ctx.eps) / (parts.shape[-1] - 1)
        d_parts = torch.baddbmm(root @ d_white, d_gram, parts, alpha=scale)
        d_x = _joined(d_parts, shuffle, x)
        return (d_x - d_x.mean(-1, keepdim=True),)


def inverse_root(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """V diag(1 / l) V^T of symmetric positive matrices V diag(l^2) V^T, and l and V."""
    values, vectors = _eigh(matrix)
    size = matrix.shape[-1]
    least = size * torch.finfo(matrix.dtype).eps * values[..., -1]
    if _eager() and bool((values[..., 0] <= least).any()):  # False for NaN
        raise ValueError(_collapsed(size, None))
    roots = values.sqrt()
    return (vectors / roots[..., None, :]) @ vectors.mT, roots, vectors


def through_inverse_root(d_root: Tensor, roots: Tensor, vectors: Tensor) -> Tensor:
    """The symmetric part of -V ((V^T dR V) / (l_i l_j (l_i + l_j))) V^T.

    No repeated eigenvalue makes it infinite.
    """
    rows, columns = roots[..., :, None], roots[..., None, :]
    inner = vectors.mT @ d_root @ vectors
    inner = (inner + inner.mT) / (-2 * rows * columns * (rows + columns))
    return vectors @ inner @ vectors.mT


def _split(x: Tensor, shuffle: Tensor | None, groups: int) -> Tensor:
    """(V S G, n, d), the channels of (V, S, n, D) shuffled into groups."""
    if shuffle is not None:
        x = x.gather(-1, shuffle[:, :, None].expand_as(x))
    return x.unflatten(-1, (groups, -1)).transpose(2, 3).flatten(0, 2)


def _joined(parts: Tensor, shuffle: Tensor | None, like: Tensor) -> Tensor:
    """The inverse of `_split`, and its adjoint."""
    batches, (rows, width) = like.shape[:2], like.shape[2:]
    x = parts.view(*batches, -1, *parts.shape[1:]).transpose(2, 3).reshape(*batches, rows, width)
    if shuffle is None:
        return x
    return x.gather(-1, shuffle.argsort(-1)[:, :, None].expand_as(x))


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """torch.linalg.eigh, NaN where it would raise for values that are not finite."""
    if not _eager() or _finite(matrix):
        return torch.linalg.eigh(matrix)
    nan = torch.full_like(matrix, math.nan)
    return nan[..., 0], nan


def _finite(matrix: Tensor) -> bool:
    """Whether all entries are. Only where their sum is not need they be looked at one by one."""
    return math.isfinite(matrix.sum()) or bool(matrix.isfinite().all())


def _eager() -> bool:
    """Whether values may be looked at: a compiled graph cannot branch on them."""
    return not torch.compiler.is_compiling()


def _shrunk(matrix: Tensor, eps: float) -> Tensor:
    if eps == 0:
        return matrix
    return (1 - eps) * matrix + eps * torch.eye(matrix.shape[-1]).to(matrix)


def _collapsed(rows: int, width: int | None) -> str:
    what = f"{rows} x {rows} Gram" if width is None else f"{width} x {width} covariance"
    return (
        f"the {what} of a sub-batch is singular, so that it cannot be whitened: embeddings have "
        "collapsed, or rows repeat. Use a larger eps (1e-3 or more), or a lower learning rate"
    )
