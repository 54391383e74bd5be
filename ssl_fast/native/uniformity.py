"""Uniformity in C++ (CPU): torch's products by tiles of pairs, kernels on the tiles."""

import math

import torch
from torch import Tensor

from . import cpu, matrix, pointer

# N^2 (D + 64) up to which pairs one by one cost less than calls of the library do.
FEW = 1 << 20
# Rows up to -> side of a tile: half of the diagonal tiles' work is done twice.
SIDES = ((4096, 256), (16384, 512), (1 << 62, 1024))


def potential(
    x: Tensor, first: int, last: int, t: float, want_grad: bool
) -> tuple[float, Tensor | None]:
    """As `reference.uniformity.potential`."""
    (n, d), kernels, threads = x.shape, cpu(), torch.get_num_threads()
    wide = torch.promote_types(x.dtype, torch.float32)
    if n * n * (d + 64) <= FEW:
        moved = x.new_empty((last - first, d), dtype=wide) if want_grad else None
        return kernels.few_pairs(matrix(x), first, last, t, matrix(moved)), moved
    z = x.new_empty((n, d), dtype=wide)
    norms = z.new_empty(n)
    kernels.pair_rows(matrix(x), matrix(z), norms.data_ptr(), threads)
    # Of own rows: sum_j w_ij x_j and sum_j w_ij, at one shift of exponents.
    moments = z.new_zeros((last - first, d)) if want_grad else None
    counts = z.new_zeros(last - first) if want_grad else None
    sums = 0.0, math.inf
    # The triangle of tiles where all rows are ours. In rows as they lie in memory: the columns'
    # sums of a strip stay in cache.
    side = next(side for limit, side in SIDES if n <= limit)
    whole = (first, last) == (0, n)
    columns = z.split(side)
    rows = columns if whole else z[first:last].split(side)
    parts = moments.split(side) if moments is not None else ()
    for r, own in enumerate(rows):
        for c in range(r if whole else 0, len(columns)):
            other, mirrored = columns[c], whole and c > r
            tile = torch.mm(own, other.t())
            sums = kernels.pair_weights(
                matrix(tile), matrix(x), norms.data_ptr(), first + r * side, c * side, mirrored,
                t, sums, first, matrix(moments), pointer(counts), threads,
            )  # fmt: skip
            if parts:
                parts[r].addmm_(tile, other)
                if mirrored:
                    parts[c].addmm_(tile.t(), own)
    total = sums[0] or 1.0  # none where all squares are beyond the type's range
    if moments is not None:  # -4t / S * (count_i x_i - moment_i)
        factor = 4 * t / total
        kernels.pair_moments(matrix(moments), matrix(z), first, pointer(counts), factor, threads)
    return math.log(total) - t * sums[1], moments


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
