"""The pieces of the cross-correlation loss in C++ and CUDA C++, beside covariance's."""

from typing import Any

import torch
from torch import Tensor

from . import cpu, matrix, pointer
from .covariance import center, inner, moments, on_device
from .cuda import cross_correlation as cuda

__all__ = [
    "center",
    "diagonal",
    "dots",
    "gradient",
    "inner",
    "moments",
    "on_device",
    "penalty",
    "standardised",
]


def penalty(tile: Tensor, first: int, count: int, weight: float) -> Any:
    """As `reference.cross_correlation.penalty`."""
    if tile.is_cuda:
        return cuda.penalty(tile, first, count, weight)
    return cpu().cross_correlation_penalty(
        matrix(tile), first, count, weight, torch.get_num_threads()
    )


def dots(
    push: Tensor, own: Tensor, other: Tensor | None, alpha: float, beta: Tensor | None
) -> Tensor:
    """As `reference.cross_correlation.dots`."""
    if own.is_cuda:
        return cuda.dots(push, own, other, alpha, beta)
    dots = own.new_empty(own.shape[1], dtype=torch.float64)
    cpu().cross_correlation_dots(
        matrix(push), matrix(own), matrix(other), alpha, pointer(beta), dots.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return dots


def gradient(
    push: Tensor, own: Tensor, other: Tensor | None, alpha: float, beta: Tensor | None,
    dots: Tensor, scale: Tensor, out: Tensor,
) -> None:  # fmt: skip
    """As `reference.cross_correlation.gradient`."""
    if own.is_cuda:
        return cuda.gradient(push, own, other, alpha, beta, dots, scale, out)
    cpu().cross_correlation_gradient(
        matrix(push), matrix(own), matrix(other), alpha, pointer(beta), dots.data_ptr(),
        scale.data_ptr(), matrix(out), torch.get_num_threads(),
    )  # fmt: skip


def diagonal(first: Tensor, second: Tensor, weight: float) -> tuple[float, float, Tensor]:
    """sum c^2, sum (c - 1)^2 and (2 (c - 1) - 2 weight c) / N of c = C_dd; on a CPU."""
    beta = first.new_empty(first.shape[1], dtype=torch.float64)
    sums = cpu().cross_correlation_diagonal(
        matrix(first), matrix(second), weight, beta.data_ptr(), torch.get_num_threads()
    )
    return *sums, beta


def standardised(
    push: Tensor, own: Tensor, other: Tensor | None, alpha: float, beta: Tensor | None,
    squares: Tensor, eps: float, out: Tensor,
) -> None:  # fmt: skip
    """`dots` and `gradient` of all rows at once, from the columns' centred squares; on a CPU."""
    cpu().cross_correlation_standardised(
        matrix(push), matrix(own), matrix(other), alpha, pointer(beta), squares.data_ptr(), eps,
        matrix(out), torch.get_num_threads(),
    )  # fmt: skip
