"""Rows of unit norm in C++ (CPU)."""

import torch
from torch import Tensor

from . import cpu, matrix


def forward(x: Tensor) -> tuple[Tensor, Tensor]:
    """x / max(|x|, 1e-12) by rows, (N, D), and the norms (N,): float32 for half inputs."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    unit, norm = torch.empty(x.shape, dtype=dtype), torch.empty(x.shape[0], dtype=dtype)
    cpu().unit_rows_forward(matrix(x), unit.data_ptr(), norm.data_ptr(), torch.get_num_threads())
    return unit, norm


def backward(d_unit: Tensor, unit: Tensor, norm: Tensor, dtype: torch.dtype) -> Tensor:
    """d_x in `dtype`, into d_unit where that is its type."""
    out = d_unit if d_unit.dtype == dtype else torch.empty(d_unit.shape, dtype=dtype)
    cpu().unit_rows_backward(
        matrix(d_unit), unit.data_ptr(), norm.data_ptr(), matrix(out),
        torch.get_num_threads(),
    )  # fmt: skip
    return out
