"""The CUDA kernels of the covariance losses; sums are 0-d float64 tensors."""

import torch
from torch import Tensor

from .. import matrix, pointer
from . import double, launch, partials


def moments(z: Tensor, stats: Tensor, out: Tensor | None, eps: float | None) -> None:
    """As `reference.covariance.moments`."""
    rows, columns = z.shape
    parts = max(1, min(64, rows // 64))
    partial = double(z, parts, 3, columns)
    launch("covariance_moments", z, matrix(z), parts, partial.data_ptr())
    sizes, means, squares = partial.unbind(1)
    mean = (sizes * means).sum(0) / rows
    stats.copy_(torch.stack([mean, (squares + sizes * (means - mean).square()).sum(0)]))
    if out is not None:
        center(z, stats[0], None if eps is None else (stats[1] / rows + eps).rsqrt(), out)


def center(z: Tensor, mean: Tensor, scale: Tensor | None, out: Tensor) -> None:
    """As `reference.covariance.center`."""
    launch("covariance_center", z, matrix(z), mean.data_ptr(), pointer(scale), matrix(out))


def inner(a: Tensor, b: Tensor) -> Tensor:
    """As `reference.covariance.inner`."""
    return summed("covariance_inner", a, matrix(a), matrix(b))


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """As `reference.covariance.squared_distance`."""
    return summed("covariance_distance", a, matrix(a), matrix(b))


def triangle(tile: Tensor, scale: float) -> Tensor:
    """As `reference.covariance.triangle`."""
    return summed("covariance_strip", tile, matrix(tile), scale)


def off_diagonal_squares(z: Tensor, mean: Tensor, scale: float, flag: Tensor | None) -> Tensor:
    """As in `triton_kernels.covariance`."""
    partial = partials("covariance_tiles", z, z.shape[1])
    launch(
        "covariance_squares", z, matrix(z), mean.data_ptr(), scale, pointer(flag),
        partial.data_ptr(),
    )  # fmt: skip
    return partial.sum()


def rescue_gradient(
    z: Tensor, rows: Tensor, other: Tensor | None, mean: Tensor, beta: Tensor, factors: Tensor,
    flag: Tensor, out: Tensor,
) -> None:  # fmt: skip
    """As in `triton_kernels.covariance`."""
    launch(
        "covariance_rescue", z, matrix(z), matrix(rows), matrix(other), mean.data_ptr(),
        beta.data_ptr(), factors.data_ptr(), flag.data_ptr(), matrix(out),
    )  # fmt: skip


def on_device(z: Tensor) -> bool:
    return True


def gradient(
    push: Tensor | None, z: Tensor, other: Tensor | None, mean: Tensor, beta: Tensor,
    factors: Tensor, out: Tensor,
) -> None:  # fmt: skip
    """As `reference.covariance.gradient`."""
    launch(
        "covariance_gradient", z, matrix(push), matrix(z), matrix(other),
        mean.data_ptr(), beta.data_ptr(), factors.data_ptr(), matrix(out),
    )  # fmt: skip


def summed(name: str, like: Tensor, *arguments) -> Tensor:
    """The sum of the partial sums that the kernel writes."""
    partial = partials("covariance_parts", like, *like.shape)
    launch(name, like, *arguments, partial.data_ptr())
    return partial.sum()
