"""Cross-entropy in CUDA C++."""

import torch
from torch import Tensor

from .. import matrix, pointer, stats, target
from . import double, given_or_copied, gradient_like, launch, rows, scratch


def forward(
    logits: Tensor, inv_temperature: float, targets, symmetric: bool, factor: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `reference.cross_entropy.forward`."""
    logits = rows(logits)
    memory, values = scratch("cross_entropy", logits, symmetric), target_values(targets, logits)
    loss = logits.new_empty((), dtype=torch.float32)
    row_stats = double(logits, 4, logits.shape[0])
    col_stats = double(logits, 3, logits.shape[1]) if symmetric else None
    launch(
        "cross_entropy_forward", logits, matrix(logits), inv_temperature, target(targets, values),
        stats(row_stats, col_stats), factor, loss.data_ptr(), memory.data_ptr(),
    )  # fmt: skip
    return loss, row_stats, col_stats


def backward(
    logits: Tensor,
    inv_temperature: float,
    targets,
    row_stats: Tensor,
    col_stats: Tensor | None,
    d_loss: Tensor | None,
    factor: float,
    out: Tensor | None = None,
) -> Tensor:
    """As `reference.cross_entropy.backward`."""
    d_logits = gradient_like(logits, out)
    logits = rows(logits)
    memory, values = scratch("cross_entropy", logits, False), target_values(targets, logits)
    d_loss = None if d_loss is None else d_loss.float()
    d_loss_stride = d_loss.stride(0) if d_loss is not None and d_loss.dim() else 0
    launch(
        "cross_entropy_backward", logits, matrix(logits), inv_temperature, target(targets, values),
        stats(row_stats, col_stats), pointer(d_loss), d_loss_stride, factor, matrix(d_logits),
        memory.data_ptr(),
    )  # fmt: skip
    return given_or_copied(d_logits, out)


def at_once(logits: Tensor, inv_temperature: float, targets, factor: float) -> Tensor:
    """As `reference.cross_entropy.at_once`."""
    loss, row_stats, col_stats = forward(logits, inv_temperature, targets, True, factor)
    backward(logits, inv_temperature, targets, row_stats, col_stats, None, factor, logits)
    return loss


def target_values(targets, logits: Tensor) -> Tensor | None:
    """float32 or of the logits' type: the pairs that are compiled."""
    if targets is None:
        return None
    values = rows(targets.values)
    return values if values.dtype in (torch.float32, logits.dtype) else values.float()
