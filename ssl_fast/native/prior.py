"""Mean softmax and its gradient in C++ (CPU): pointers, sizes, threads."""

import torch
from torch import Tensor

from . import DTYPE_CODES, cpu, cuda_kernels, matrix, pointer
from .cross_entropy import _target

_NO_TARGET = (0, 0, DTYPE_CODES[torch.float32], 0.0, 0, 0)


def forward(logits: Tensor, inv_temperature: float, targets) -> tuple[Tensor, Tensor]:
    """As `reference.prior.forward`."""
    if logits.is_cuda:
        return cuda_kernels().prior_forward(logits, inv_temperature, targets)
    rows, columns = logits.shape
    row_stats = torch.empty(4, rows, dtype=torch.float64)
    log_mass = torch.empty(columns, dtype=torch.float64)
    cpu().prior_forward(
        *matrix(logits), inv_temperature, *_target_or_none(targets), row_stats.data_ptr(), rows,
        log_mass.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return row_stats, log_mass


def backward(
    logits: Tensor,
    inv_temperature: float,
    targets,
    row_stats: Tensor,
    prior: Tensor,
    d_loss: Tensor | None,
    factor: float,
    out: Tensor | None = None,
) -> Tensor:
    """As `reference.prior.backward`."""
    if logits.is_cuda:
        return cuda_kernels().prior_backward(
            logits, inv_temperature, targets, row_stats, prior, d_loss, factor, out
        )
    out = torch.empty_like(logits) if out is None else out
    cpu().prior_backward(
        *matrix(logits), inv_temperature, *_target_or_none(targets), row_stats.data_ptr(),
        row_stats.stride()[0], prior.data_ptr(), pointer(d_loss), factor, out.data_ptr(),
        out.stride()[0], DTYPE_CODES[out.dtype], torch.get_num_threads(),
    )  # fmt: skip
    return out


def _target_or_none(targets) -> tuple:
    return _NO_TARGET if targets is None else _target(targets)
