"""The CUDA kernels of the cross-correlation loss, beside covariance's."""

from torch import Tensor

from .. import matrix, pointer
from . import double, launch
from .covariance import center, inner, moments, on_device, summed

__all__ = ["center", "dots", "gradient", "inner", "moments", "on_device", "penalty"]


def penalty(tile: Tensor, first: int, count: int, weight: float) -> Tensor:
    """As `reference.cross_correlation.penalty`."""
    return summed("cross_correlation_penalty", tile, matrix(tile), first, 1.0 / count, weight)


def dots(
    push: Tensor, own: Tensor, other: Tensor | None, alpha: float, beta: Tensor | None
) -> Tensor:
    """As `reference.cross_correlation.dots`."""
    dots = double(own, own.shape[1])
    launch(
        "cross_correlation_dots", own, matrix(push), matrix(own), matrix(other), alpha,
        pointer(beta), dots.data_ptr(),
    )  # fmt: skip
    return dots


def gradient(
    push: Tensor, own: Tensor, other: Tensor | None, alpha: float, beta: Tensor | None,
    dots: Tensor, scale: Tensor, out: Tensor,
) -> None:  # fmt: skip
    """As `reference.cross_correlation.gradient`."""
    launch(
        "cross_correlation_gradient", own, matrix(push), matrix(own), matrix(other), alpha,
        pointer(beta), dots.data_ptr(), scale.data_ptr(), matrix(out),
    )  # fmt: skip
