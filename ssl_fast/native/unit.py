"""Rows of unit norm in C++ (CPU)."""

import torch
from torch import Tensor

from . import cpu, matrix


def forward(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x / max(|x|, eps) by rows, (N, D), and the norms (N,): float32 for half inputs."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    unit, norm = torch.empty(x.shape, dtype=dtype), torch.empty(x.shape[0], dtype=dtype)
    cpu().unit_rows_forward(
        matrix(x), eps, unit.data_ptr(), norm.data_ptr(), torch.get_num_threads()
    )
    return unit, norm


def backward(d_unit: Tensor, unit: Tensor, norm: Tensor, eps: float, out: Tensor) -> None:
    """d_x into `out`, which may be d_unit."""
    cpu().unit_rows_backward(
        matrix(d_unit), eps, unit.data_ptr(), norm.data_ptr(), matrix(out),
        torch.get_num_threads(),
    )  # fmt: skip
