"""Rows of unit norm in C++ (CPU)."""

import torch
from torch import Tensor

from . import cpu, matrix


def forward(x: Tensor, eps: float, unit: Tensor) -> Tensor:
    """x / max(|x|, eps) by rows into unit (N, D), float32 for half inputs; the norms (N,)."""
    norm = torch.empty(x.shape[0], dtype=unit.dtype)
    cpu().unit_rows_forward(matrix(x), eps, matrix(unit), norm.data_ptr(), torch.get_num_threads())
    return norm


def backward(d_unit: Tensor, unit: Tensor, norm: Tensor, eps: float, out: Tensor) -> None:
    """d_x into `out`, which may be d_unit."""
    cpu().unit_rows_backward(
        matrix(d_unit), eps, matrix(unit), norm.data_ptr(), matrix(out),
        torch.get_num_threads(),
    )  # fmt: skip
