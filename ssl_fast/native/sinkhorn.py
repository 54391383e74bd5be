"""Sinkhorn-Knopp in C++ (CPU) and CUDA C++: pointers, sizes, threads or stream."""

import torch
from torch import Tensor

from . import cpu, matrix, pointer
from .cuda import sinkhorn as cuda


def step(scores: Tensor, scale: float, col: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `reference.sinkhorn.step`."""
    if scores.is_cuda:
        return cuda.step(scores, scale, col)
    row, column_lse = _double(scores, 0), _double(scores, 1)
    cpu().sinkhorn_step(
        matrix(scores), scale, pointer(col), row.data_ptr(), column_lse.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return row, column_lse


def row_potential(scores: Tensor, scale: float, col: Tensor | None) -> Tensor:
    """As `reference.sinkhorn.row_potential`."""
    if scores.is_cuda:
        return cuda.row_potential(scores, scale, col)
    row = _double(scores, 0)
    cpu().row_potential(
        matrix(scores), scale, pointer(col), row.data_ptr(), torch.get_num_threads()
    )
    return row


def centered(
    views: list[Tensor],  # each (N, K)
    center: Tensor,  # (1, K)
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Row potentials (V, N) under col (K,) = -scale * center, col, and the rows' mean (1, K)."""
    row = torch.empty(len(views), views[0].shape[0], dtype=torch.float64)
    col = _double(views[0], 1)
    mean = torch.empty(center.shape, dtype=torch.promote_types(views[0].dtype, center.dtype))
    cpu().centered(
        [matrix(view) for view in views], len(views), matrix(center), scale,
        row.data_ptr(), col.data_ptr(), matrix(mean), torch.get_num_threads(),
    )  # fmt: skip
    return row, col, mean


def potentials(
    scores: Tensor, scale: float, log_prior: Tensor | None, iterations: int, softmax_start: bool
) -> tuple[Tensor, Tensor]:
    """As `reference.sinkhorn.potentials`."""
    if scores.is_cuda:
        return cuda.potentials(scores, scale, log_prior, iterations, softmax_start)
    row, col = _double(scores, 0), _double(scores, 1)
    cpu().sinkhorn(
        matrix(scores), scale, pointer(log_prior), iterations, softmax_start, 0, row.data_ptr(),
        col.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return row, col


def dense(
    scores: Tensor, scale: float, log_prior: Tensor | None, iterations: int, softmax_start: bool
) -> Tensor:
    """As `reference.sinkhorn.dense`."""
    if scores.is_cuda:
        return cuda.dense(scores, scale, log_prior, iterations, softmax_start)
    q = _like(scores)
    cpu().sinkhorn(
        matrix(scores), scale, pointer(log_prior), iterations, softmax_start, q.data_ptr(), 0, 0,
        torch.get_num_threads(),
    )  # fmt: skip
    return q


def evaluate(scores: Tensor, scale: float, row: Tensor, col: Tensor | None) -> Tensor:
    """As `reference.sinkhorn.evaluate`."""
    if scores.is_cuda:
        return cuda.evaluate(scores, scale, row, col)
    q = _like(scores)
    cpu().evaluate(
        matrix(scores), scale, row.data_ptr(), pointer(col), q.data_ptr(), torch.get_num_threads()
    )
    return q


def _double(scores: Tensor, dim: int) -> Tensor:
    return torch.empty(scores.shape[dim], dtype=torch.float64)


def _like(scores: Tensor) -> Tensor:
    dtype = torch.float64 if scores.dtype == torch.float64 else torch.float32
    return torch.empty_like(scores, dtype=dtype, memory_format=torch.contiguous_format)
