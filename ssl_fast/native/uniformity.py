"""Uniformity in C++ (CPU): torch's products by tiles of pairs, kernels on the tiles."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from . import cpu, matrix, pointer

# Rows up to -> side of a tile: half of the diagonal tiles' work is done twice.
SIDES = ((4096, 256), (16384, 512), (1 << 62, 1024))


def potential(
    x: Tensor, first: int, last: int, t: float, want_grad: bool
) -> tuple[float, Tensor | None]:
    """As `reference.uniformity.potential`."""
    (n, d), kernels, threads = x.shape, cpu(), torch.get_num_threads()
    z = x.new_empty((n, d), dtype=torch.promote_types(x.dtype, torch.float32))
    norms = z.new_empty(n)
    kernels.pair_rows(matrix(x), matrix(z), norms.data_ptr(), threads)
    # Of own rows: sum_j w_ij x_j and sum_j w_ij, at one shift of exponents.
    moments = z.new_zeros((last - first, d)) if want_grad else None
    counts = z.new_zeros(last - first) if want_grad else None
    sums = 0.0, math.inf
    for rows, cols, mirrored in tiles(n, first, last):
        own, other = z[rows], z[cols]
        tile = torch.mm(own, other.t())
        sums = kernels.pair_weights(
            matrix(tile), matrix(x), norms.data_ptr(), rows.start, cols.start, mirrored, t, sums,
            first, matrix(moments), pointer(counts), threads,
        )  # fmt: skip
        if moments is not None:
            moments[rows.start - first : rows.stop - first].addmm_(tile, other)
            if mirrored:
                moments[cols].addmm_(tile.t(), own)
    total = sums[0] or 1.0  # none where all squares are beyond the type's range
    if moments is not None:  # -4t / S * (count_i x_i - moment_i)
        factor = 4 * t / total
        kernels.pair_moments(matrix(moments), matrix(z), first, pointer(counts), factor, threads)
    return math.log(total) - t * sums[1], moments


def tiles(n: int, first: int, last: int) -> Iterator[tuple[slice, slice, bool]]:
    """(rows, columns, whether the mirrored tile counts too); the triangle where all rows are ours.

    In rows as they lie in memory: the columns' sums of a strip stay in cache.
    """
    side = next(side for limit, side in SIDES if n <= limit)
    whole = (first, last) == (0, n)
    for r in range(first, last, side):
        for c in range(r if whole else 0, n, side):
            rows, cols = slice(r, min(r + side, last)), slice(c, min(c + side, n))
            yield rows, cols, whole and c > r


def distance_power(x: Tensor, y: Tensor, alpha: float) -> Tensor:
    """As `reference.uniformity.distance_power`."""
    total = cpu().distance_power(matrix(x), matrix(y), alpha, torch.get_num_threads())
    return torch.tensor(total, dtype=torch.float64)


def distance_power_backward(
    x: Tensor, y: Tensor, alpha: float, d_value: Tensor, factor: float
) -> tuple[Tensor, Tensor]:
    """As `reference.uniformity.distance_power_backward`."""
    d_x, d_y = x.new_empty(x.shape), y.new_empty(y.shape)
    cpu().distance_power_backward(
        matrix(x), matrix(y), alpha, float(d_value) * factor, d_x.data_ptr(), d_y.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return d_x, d_y


def correlation(c: Tensor, inv_temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.uniformity.correlation`."""
    row, col = (torch.empty(2, size, dtype=torch.float64) for size in c.shape)
    value = cpu().correlation(
        matrix(c), inv_temperature, row.data_ptr(), col.data_ptr(), torch.get_num_threads()
    )
    return torch.tensor(value, dtype=torch.float64), row, col


def correlation_backward(
    c: Tensor, inv_temperature: float, row: Tensor, col: Tensor, d_value: Tensor, factor: float
) -> Tensor:
    """As `reference.uniformity.correlation_backward`."""
    d_c = c.new_empty(c.shape)
    g = float(d_value) * factor * inv_temperature / (c.shape[0] - 1)
    cpu().correlation_backward(
        matrix(c), inv_temperature, col.data_ptr(), g, d_c.data_ptr(), torch.get_num_threads()
    )
    return d_c
