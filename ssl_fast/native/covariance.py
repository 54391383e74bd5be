"""The pieces of the covariance losses in C++ and CUDA C++: pointers, sizes, threads or stream.

Sums are floats on a CPU, 0-d tensors on a GPU.
"""

from typing import Any

import torch
from torch import Tensor

from . import cpu, matrix, pointer
from .cuda import covariance as cuda
from .cuda.covariance import off_diagonal_squares, rescue_gradient

__all__ = [
    "center",
    "gradient",
    "inner",
    "moments",
    "off_diagonal_squares",
    "on_device",
    "rescue_gradient",
    "squared_distance",
    "triangle",
]


def moments(z: Tensor, stats: Tensor, out: Tensor | None, eps: float | None) -> None:
    """As `reference.covariance.moments`."""
    if z.is_cuda:
        return cuda.moments(z, stats, out, eps)
    cpu().column_moments(
        matrix(z), stats.data_ptr(), stats.stride()[0], matrix(out), eps is not None,
        eps or 0.0, torch.get_num_threads(),
    )  # fmt: skip


def center(z: Tensor, mean: Tensor, scale: Tensor | None, out: Tensor) -> None:
    """As `reference.covariance.center`."""
    if z.is_cuda:
        return cuda.center(z, mean, scale, out)
    cpu().center(matrix(z), mean.data_ptr(), pointer(scale), matrix(out), torch.get_num_threads())


def inner(a: Tensor, b: Tensor) -> Any:
    """As `reference.covariance.inner`."""
    if a.is_cuda:
        return cuda.inner(a, b)
    return cpu().inner(matrix(a), matrix(b), torch.get_num_threads())


def squared_distance(a: Tensor, b: Tensor) -> Any:
    """As `reference.covariance.squared_distance`."""
    if a.is_cuda:
        return cuda.squared_distance(a, b)
    return cpu().squared_distance(matrix(a), matrix(b), torch.get_num_threads())


def triangle(tile: Tensor, scale: float) -> Any:
    """As `reference.covariance.triangle`."""
    if tile.is_cuda:
        return cuda.triangle(tile, scale)
    return cpu().triangle(matrix(tile), scale, torch.get_num_threads())


def gradient(
    push: Tensor | None, z: Tensor, other: Tensor | None, mean: Tensor, beta: Tensor,
    factors: Tensor, out: Tensor,
) -> None:  # fmt: skip
    """As `reference.covariance.gradient`."""
    if z.is_cuda:
        return cuda.gradient(push, z, other, mean, beta, factors, out)
    cpu().covariance_gradient(
        matrix(push), matrix(z), matrix(other), mean.data_ptr(), beta.data_ptr(),
        factors.data_ptr(), matrix(out), torch.get_num_threads(),
    )  # fmt: skip


def on_device(z: Tensor) -> bool:
    """Whether `off_diagonal_squares` and `rescue_gradient` are to be had."""
    return z.is_cuda
