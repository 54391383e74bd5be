"""Mean softmax and its gradient in C++ (CPU): pointers, sizes, threads."""

import torch
from torch import Tensor

from . import cpu, matrix, pointer, stats, target
from .cuda import prior as cuda


def forward(logits: Tensor, inv_temperature: float, targets) -> tuple[Tensor, Tensor]:
    """As `reference.prior.forward`."""
    if logits.is_cuda:
        return cuda.forward(logits, inv_temperature, targets)
    rows, columns = logits.shape
    row_stats = torch.empty(4, rows, dtype=torch.float64)
    log_mass = torch.empty(columns, dtype=torch.float64)
    cpu().prior_forward(
        matrix(logits), inv_temperature, target(targets), stats(row_stats), log_mass.data_ptr(),
        torch.get_num_threads(),
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
        return cuda.backward(
            logits, inv_temperature, targets, row_stats, prior, d_loss, factor, out
        )
    out = torch.empty_like(logits) if out is None else out
    cpu().prior_backward(
        matrix(logits), inv_temperature, target(targets), stats(row_stats), prior.data_ptr(),
        pointer(d_loss), factor, matrix(out), torch.get_num_threads(),
    )  # fmt: skip
    return out
