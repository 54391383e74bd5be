"""The pieces of the covariance losses in C++ (CPU): pointers, sizes, threads; sums are floats."""

import torch
from torch import Tensor

from . import cpu, matrix, pointer

_ABSENT = (0, 0, 0, 0, 0)


def moments(z: Tensor, stats: Tensor, out: Tensor | None, eps: float | None) -> None:
    """As `reference.covariance.moments`."""
    cpu().column_moments(
        *matrix(z), stats.data_ptr(), stats.stride()[0], *_optional(out), eps is not None,
        eps or 0.0, torch.get_num_threads(),
    )  # fmt: skip


def center(z: Tensor, mean: Tensor, scale: Tensor | None, out: Tensor) -> None:
    """As `reference.covariance.center`."""
    cpu().center(*matrix(z), mean.data_ptr(), pointer(scale), *matrix(out), torch.get_num_threads())


def inner(a: Tensor, b: Tensor) -> float:
    """As `reference.covariance.inner`."""
    return cpu().inner(*matrix(a), *matrix(b), torch.get_num_threads())


def squared_distance(a: Tensor, b: Tensor) -> float:
    """As `reference.covariance.squared_distance`."""
    return cpu().squared_distance(*matrix(a), *matrix(b), torch.get_num_threads())


def triangle(tile: Tensor, scale: float) -> float:
    """As `reference.covariance.triangle`."""
    return cpu().triangle(*matrix(tile), scale, torch.get_num_threads())


def gradient(
    push: Tensor | None, z: Tensor, other: Tensor | None, mean: Tensor, beta: Tensor,
    factors: Tensor, out: Tensor,
) -> None:  # fmt: skip
    """As `reference.covariance.gradient`."""
    cpu().covariance_gradient(
        *_optional(push), *matrix(z), *_optional(other), mean.data_ptr(), beta.data_ptr(),
        factors.data_ptr(), *matrix(out), torch.get_num_threads(),
    )  # fmt: skip


def correlation_tile(tile: Tensor, first: int, count: int, weight: float) -> float:
    """As `reference.covariance.correlation_tile`."""
    return cpu().correlation_tile(*matrix(tile), first, count, weight, torch.get_num_threads())


def correlation_dots(
    push: Tensor, own: Tensor, other: Tensor | None, alpha: float, beta: Tensor | None
) -> Tensor:
    """As `reference.covariance.correlation_dots`."""
    dots = own.new_empty(own.shape[1], dtype=torch.float64)
    cpu().correlation_dots(
        *matrix(push), *matrix(own), *_optional(other), alpha, pointer(beta), dots.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return dots


def correlation_gradient(
    push: Tensor, own: Tensor, other: Tensor | None, alpha: float, beta: Tensor | None,
    dots: Tensor, scale: Tensor, out: Tensor,
) -> None:  # fmt: skip
    """As `reference.covariance.correlation_gradient`."""
    cpu().correlation_gradient(
        *matrix(push), *matrix(own), *_optional(other), alpha, pointer(beta), dots.data_ptr(),
        scale.data_ptr(), *matrix(out), torch.get_num_threads(),
    )  # fmt: skip


def _optional(tensor: Tensor | None) -> tuple[int, int, int, int, int]:
    return _ABSENT if tensor is None else matrix(tensor)
