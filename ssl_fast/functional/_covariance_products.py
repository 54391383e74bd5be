"""The products behind the covariance losses: Gram dual, or strips of Z^T Z; ranks; float64 guard.

    dual     D >= 2 N:  G = Z Z^T by chunks of columns;  sum off^2 = ||G||^2 - sum c_d^2
    direct   else:      rows of the upper triangle of Z^T Z, strip by strip; each is summed and
                        multiplied back into the gradient before the next, none is stored

Over ranks, Z is gathered where that moves fewer bytes than summing the strips does.
"""

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _distributed
from ._tiles import product_dtype

# Bytes of a centred chunk of columns, and rows of a strip: measured on 2 cores.
CHUNK_BYTES = 2 << 20
GPU_CHUNK_BYTES = 64 << 20  # unmeasured
KEPT_BYTES = 8 << 20  # the largest buffer that outlives a call
STRIP = 128
# sum c_d^2 over ||G||^2 beyond which the dual's difference cancels digits: float64 then. Columns of
# like variance stay below a half by their rank; one column 1000 times larger than all others does
# not.
CANCELS = 0.75
_HALVES = 128  # rows from which half a Gram is worth two products


class Rows:
    """Whose rows a sum runs over: this process's, or all ranks' with `mine` among them."""

    def __init__(self, z: Tensor, group: str):
        self.group = group
        counts = _distributed.row_counts(z, group) if group else [z.shape[0]]
        self.count = sum(counts)
        if self.count < 2:
            raise ValueError(
                f"a variance needs at least 2 rows{' over all ranks' * bool(group)}, got "
                f"{self.count}: pass a larger batch"
            )
        rank = _distributed.rank(group) if group else 0
        first = sum(counts[:rank])
        self.mine = slice(first, first + counts[rank])

    def dual(self, columns: int) -> bool:
        return is_dual(self.count, columns)

    def gathers(self, z: Tensor, columns: int) -> bool:
        """Whether all rows move fewer bytes than the strips of a (columns, columns) product."""
        wide = product_dtype(z).itemsize
        return bool(self.group) and self.count * z.element_size() <= columns * wide

    def sum(self, value: Any) -> Any:
        """Of a tensor over the ranks."""
        return _distributed.all_reduce(value, "sum", self.group) if self.group else value

    def moments(self, kernels: Any, z: Tensor, stats: Tensor) -> None:
        """Mean and centred squares (2, D) of all rows (Chan et al.) from each rank's own."""
        kernels.moments(z, stats, None, None)
        if self.group:
            local, rows = stats[0].clone(), z.shape[0]
            stats[0] = self.sum(local * rows) / self.count
            stats[1] = self.sum(stats[1] + rows * (local - stats[0]).square())


def is_dual(rows: int, columns: int) -> bool:
    return columns >= 2 * rows


def covariance(kernels: Any, z: Tensor, rows: Rows, stats: Tensor, kept: Tensor | None) -> Any:
    """sum_{d != e} C_de^2, C = Z^T Z / (n - 1), float64; fills `stats` (2, D) and `kept`.

    kept: the Gram (N, N) in the dual on one process, else Z (Z^T Z - diag c) of this rank's rows.
    """
    group, columns = rows.group, z.shape[1]
    dtype = product_dtype(z)
    if rows.dual(columns):
        everything = _distributed.gather(z, group)
        g = _gram(kernels, everything, stats, dtype, None if group else kept)
        whole, squares = kernels.inner(g, g), stats[1].square().sum()
        rescue = on_device(kernels, z)
        if not rescue and cancels(whole, squares, g):
            g = _gram(kernels, everything, stats, torch.float64, None)
            whole, squares = kernels.inner(g, g), stats[1].square().sum()
        if group and kept is not None:
            _gathered_push(kernels, everything, g, rows, stats, kept)
        total = (whole - squares) / (rows.count - 1.0) ** 2
        if rescue:
            flag, scale = _flag(whole, squares), 1.0 / (rows.count - 1)
            exact = kernels.off_diagonal_squares(everything, stats[0], scale, flag)
            total = torch.where(flag, exact, total)
        return total
    scale = 1.0 / (rows.count - 1)
    if rows.gathers(z, columns):
        everything = _distributed.gather(z, group)
        centred = everything.new_empty(everything.shape, dtype=dtype)
        kernels.moments(everything, stats, centred, None)
        return _direct(kernels, centred, centred[rows.mine], scale, kept, None)
    centred = scratch(z, z.shape[0], columns, dtype, 0)
    if not group:
        kernels.moments(z, stats, centred, None)
        return _direct(kernels, centred, centred, scale, kept, None)
    rows.moments(kernels, z, stats)
    kernels.center(z, stats[0], None, centred)
    return _direct(kernels, centred, centred, scale, kept, rows.sum)


def on_device(kernels: Any, z: Tensor) -> bool:
    """Whether the backend replaces coarse results where they are, without telling the host."""
    return hasattr(kernels, "on_device") and kernels.on_device(z)


def cancels(whole: Any, squares: Any, g: Tensor) -> bool:
    """Whether a float32 Gram is too coarse for whole - squares; inf and NaN count as coarse."""
    return g.dtype != torch.float64 and not float(squares) <= CANCELS * float(whole)


def _flag(whole: Tensor, squares: Tensor) -> Tensor:
    return ~(squares <= CANCELS * whole)


def dual_gradient(
    kernels: Any, z: Tensor, other: Tensor | None, g: Tensor, stats: Tensor, beta: Tensor,
    factors: Tensor, out: Tensor,
) -> None:  # fmt: skip
    """out = f_0 G Z + beta_d Z + f_1 (z - other), chunk by chunk; all rows are here."""
    whole, squares = kernels.inner(g, g), stats[1].square().sum()
    if not on_device(kernels, z) and cancels(whole, squares, g):
        g = _gram(kernels, z, torch.empty_like(stats), torch.float64, None)
    for columns, centred in chunks(z, g.dtype):
        kernels.center(z[:, columns], stats[0, columns], None, centred)
        d = out[:, columns]
        push = torch.mm(g, centred, out=d if d.dtype == g.dtype else None)
        others = None if other is None else other[:, columns]
        kernels.gradient(push, z[:, columns], others, stats[0, columns], beta[columns], factors, d)
    if on_device(kernels, z):
        rest = beta + factors[0] * stats[1]  # without -c of the dual
        flag = _flag(whole, squares)
        kernels.rescue_gradient(z, z, other, stats[0], rest, factors, flag, out)


def _gathered_push(
    kernels: Any, z: Tensor, g: Tensor, rows: Rows, stats: Tensor, kept: Tensor
) -> None:
    """kept = G Z - Z diag c, this rank's rows."""
    factors = stats.new_tensor([1.0, 0.0])
    mine, z_mine = g[rows.mine], z[rows.mine]
    for columns, centred in chunks(z, g.dtype):
        kernels.center(z[:, columns], stats[0, columns], None, centred)
        mean, beta = stats[0, columns], -stats[1, columns]
        push = mine @ centred
        kernels.gradient(push, z_mine[:, columns], None, mean, beta, factors, kept[:, columns])
    if on_device(kernels, z):
        flag = _flag(kernels.inner(g, g), stats[1].square().sum())
        beta = torch.zeros_like(stats[1])
        kernels.rescue_gradient(z, z_mine, None, stats[0], beta, factors, flag, kept)


def _direct(
    kernels: Any, z: Tensor, mine: Tensor, scale: float, push: Tensor | None,
    reduce: Callable | None,
) -> Any:  # fmt: skip
    """sum (scale off)^2 by strips of rows of Z^T Z from the diagonal on.

    push = mine (Z^T Z - diag c)
    """
    columns = z.shape[1]
    if push is None and reduce is None and on_device(kernels, z):
        zeros = z.new_zeros(columns, dtype=torch.float64)
        return kernels.off_diagonal_squares(z, zeros, scale, None)
    total: Any = 0.0
    for first in range(0, columns, STRIP):
        last = min(first + STRIP, columns)
        tile = torch.mm(z[:, first:last].t(), z[:, first:])
        tile = tile if reduce is None else reduce(tile)
        total += kernels.triangle(tile, scale)
        if push is None:
            continue
        # The first strip spans all columns and finds uninitialised memory.
        push[:, first:].addmm_(mine[:, first:last], tile, beta=float(first > 0))
        if last < columns:
            push[:, first:last].addmm_(mine[:, last:], tile[:, last - first :].t())
    return total


def _gram(kernels: Any, z: Tensor, stats: Tensor, dtype: torch.dtype, out: Tensor | None) -> Tensor:
    """Z Z^T of the centred rows, (N, N) in `dtype`; fills stats (2, D)."""
    rows = z.shape[0]
    g = z.new_empty((rows, rows), dtype=dtype) if out is None else out
    for columns, centred in chunks(z, dtype):
        kernels.moments(z[:, columns], stats[:, columns], centred, None)
        add_gram(g, centred, columns.start > 0)
    mirror(g)
    return g


def add_gram(g: Tensor, z: Tensor, more: bool) -> None:
    """Z Z^T into g, without its upper right quarter: two products do three quarters of the work."""
    rows, half, beta = z.shape[0], z.shape[0] // 2, float(more)
    if rows < _HALVES:
        g.addmm_(z, z.t(), beta=beta)
        return
    g[:half, :half].addmm_(z[:half], z[:half].t(), beta=beta)
    g[half:].addmm_(z[half:], z.t(), beta=beta)


def mirror(g: Tensor) -> None:
    half = g.shape[0] // 2
    if g.shape[0] >= _HALVES:
        g[:half, half:] = g[half:, :half].t()


def chunks(z: Tensor, dtype: torch.dtype, which: int = 0) -> list[tuple[slice, Tensor]]:
    """Equal slices of the columns, and a buffer (N, w) that they share."""
    rows, columns = z.shape
    size = GPU_CHUNK_BYTES if z.is_cuda else CHUNK_BYTES
    width = max(64, size // (rows * dtype.itemsize) // 64 * 64)
    if columns <= width:
        return [(slice(0, columns), scratch(z, rows, columns + 16, dtype, which)[:, :columns])]
    count = -(-columns // width)
    width = -(-columns // (64 * count)) * 64
    # Rows a power of two apart would share cache sets.
    buffer = scratch(z, rows, min(width, columns) + 16, dtype, which)
    slices = [slice(first, min(first + width, columns)) for first in range(0, columns, width)]
    return [(each, buffer[:, : each.stop - each.start]) for each in slices]


def block(matrix: Tensor, columns: slice) -> Tensor:
    """These columns; the matrix itself, with no view made, where they are all."""
    return matrix if columns == slice(0, matrix.shape[-1]) else matrix[..., columns]


_kept = threading.local()


def scratch(z: Tensor, rows: int, columns: int, dtype: torch.dtype, which: int) -> Tensor:
    """(rows, columns), on a CPU in memory that a thread keeps: fresh pages cost more than sums."""
    size = rows * columns * dtype.itemsize
    if z.is_cuda or size > KEPT_BYTES:
        return z.new_empty((rows, columns), dtype=dtype)
    buffers = _kept.__dict__.setdefault("buffers", {})
    if which not in buffers or buffers[which].numel() < size:
        buffers[which] = torch.empty(size, dtype=torch.uint8)
    return buffers[which][:size].view(dtype).view(rows, columns)
