"""Cross-entropy in C++ (CPU) and CUDA C++: pointers, sizes, threads or stream."""

import torch
from torch import Tensor

from . import cpu, matrix, pointer, stats, target
from .cuda import cross_entropy as cuda


def forward(
    logits: Tensor, inv_temperature: float, targets, symmetric: bool, factor: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `reference.cross_entropy.forward`."""
    if logits.is_cuda:
        return cuda.forward(logits, inv_temperature, targets, symmetric, factor)
    rows, columns = logits.shape
    double = logits.dtype == torch.float64
    loss = torch.empty((), dtype=torch.float64 if double else torch.float32)
    row_stats = torch.empty(4, rows, dtype=torch.float64)
    col_stats = torch.empty(3, columns, dtype=torch.float64) if symmetric else None
    cpu().cross_entropy_forward(
        matrix(logits), inv_temperature, target(targets), stats(row_stats, col_stats), factor,
        loss.data_ptr(), torch.get_num_threads(),
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
    if logits.is_cuda:
        return cuda.backward(
            logits, inv_temperature, targets, row_stats, col_stats, d_loss, factor, out
        )
    out = torch.empty_like(logits) if out is None else out
    stride = d_loss.stride()[0] if d_loss is not None and d_loss.dim() else 0
    cpu().cross_entropy_backward(
        matrix(logits), inv_temperature, target(targets), stats(row_stats, col_stats),
        pointer(d_loss), stride, factor, matrix(out), torch.get_num_threads(),
    )  # fmt: skip
    return out


def at_once(logits: Tensor, inv_temperature: float, targets, factor: float) -> Tensor:
    """As `reference.cross_entropy.at_once`."""
    if logits.is_cuda:
        return cuda.at_once(logits, inv_temperature, targets, factor)
    loss = torch.empty((), dtype=logits.dtype)
    cpu().cross_entropy_at_once(
        matrix(logits), inv_temperature, target(targets), factor, loss.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return loss


def token_weights(mask: Tensor, factor: float, out: Tensor) -> int:
    """out (1, M) = factor / (marks of the image) for each mark of the mask (B, ...), on a CPU.

    Returns how many marks there are.
    """
    images, mask = len(mask), mask.contiguous()
    return cpu().token_weights(mask.data_ptr(), images, mask.numel() // images, factor, matrix(out))
