"""Whitening of rows: by Cholesky, by the inverse square root, by Newton's steps towards it.

The inverse square root has a gradient of its own, which repeated eigenvalues do not disturb.
"""

import math
from typing import Any

import torch
from torch import Tensor

from ._autograd import ClosedForm, apply


def rotate(x: Tensor, divisor: int, shrinkage: float, eps: float) -> Tensor:
    """(r, n) rows whitened against each other; the rotation is a constant."""
    with torch.no_grad():
        gram = (1 - shrinkage) * (x @ x.T) / divisor
        values, vectors = _eigh(gram + shrinkage * torch.eye(len(x)).to(gram))
        rotation = (vectors * (values.clamp(min=0) + eps).rsqrt()) @ vectors.T
    return rotation @ x


def cholesky_whiten(x: Tensor, eps: float) -> Tensor:
    """L^-1 (x - mean) of (..., n, D) over n."""
    x = x - x.mean(-2, keepdim=True)
    covariance = x.mT @ x / (x.shape[-2] - 1)
    covariance = _shrunk(covariance, eps)
    factor, info = torch.linalg.cholesky_ex(covariance)
    if _eager() and bool(info.any()) and bool(x.isfinite().all()):
        raise ValueError(_collapsed(x.shape[-2], x.shape[-1]))
    return torch.linalg.solve_triangular(factor, x.mT, upper=False).mT


def zca_whiten(x: Tensor, eps: float) -> Tensor:
    """S^-1/2 x of (G, n, d), S the n x n Gram / (d - 1)."""
    gram = _shrunk(x @ x.mT / (x.shape[-1] - 1), eps)
    return apply(_InverseRoot, gram) @ x


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


class _InverseRoot(ClosedForm):
    """S^-1/2 of symmetric positive matrices (..., n, n).

    With S = V diag(l^2) V^T:  dS = -V ((V^T dR V) / (l_i l_j (l_i + l_j))) V^T, which no repeated
    eigenvalue makes infinite.
    """

    @staticmethod
    def forward(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values, vectors = _eigh(matrix)
        size = matrix.shape[-1]
        least = size * torch.finfo(matrix.dtype).eps * values[..., -1:].clamp(min=0)
        if _eager() and bool((values[..., :1] <= least).any()):  # False for NaN
            raise ValueError(_collapsed(size, None))
        roots = values.sqrt()
        return (vectors / roots[..., None, :]) @ vectors.mT, roots, vectors

    @staticmethod
    def keep(ctx: Any, inputs: tuple, outputs: tuple) -> None:
        ctx.save_for_backward(inputs[0], *outputs[1:])

    @staticmethod
    def backward(ctx: Any, d_root: Tensor) -> tuple[Tensor | None]:
        _matrix, roots, vectors = ctx.saved_tensors
        rows, columns = roots[..., :, None], roots[..., None, :]
        inner = vectors.mT @ d_root @ vectors / (rows * columns * (rows + columns))
        d_matrix = -(vectors @ inner @ vectors.mT)
        return ((d_matrix + d_matrix.mT) / 2,)


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """torch.linalg.eigh, NaN where it would raise for values that are not finite."""
    if not _eager() or bool(matrix.isfinite().all()):
        return torch.linalg.eigh(matrix)
    nan = torch.full_like(matrix, math.nan)
    return nan[..., 0], nan


def _eager() -> bool:
    """Whether values may be looked at: a compiled graph cannot branch on them."""
    return not torch.compiler.is_compiling()


def _shrunk(matrix: Tensor, eps: float) -> Tensor:
    return (1 - eps) * matrix + eps * torch.eye(matrix.shape[-1]).to(matrix)


def _collapsed(rows: int, width: int | None) -> str:
    what = f"{rows} x {rows} Gram" if width is None else f"{width} x {width} covariance"
    return (
        f"the {what} of a sub-batch is singular, so that it cannot be whitened: embeddings have "
        "collapsed, or rows repeat. Use a larger eps (1e-3 or more), or a lower learning rate"
    )
