"""Contrastive losses in C++ (CPU) and CUDA C++: library products by tiles, native work on them.

Rows and columns are visited in tiles that stay in cache; nothing of size N x K exists.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from . import cpu, cuda, matrix, pointer

# (rows, columns) of a tile. CPU: narrow for pairs, whose tiles on the diagonal do half their work
# twice, and high, since the library takes up to twice as long for low and wide ones. CUDA:
# unmeasured.
ROW_TILE = {"cpu": (512, 2048), "cuda": (2048, 8192)}
PAIR_TILE = {"cpu": (2048, 256), "cuda": (8192, 2048)}
# Exponents that span at most this are formed in float32 relative to one shift; see numeric.h.
_NARROW = 64.0


def rows_forward(
    x: Tensor,
    w: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    scale: float,
    lo: Tensor | None,
    hi: Tensor | None,
    want_pull: bool,
) -> tuple[Tensor, Tensor | None]:
    """As `reference.contrastive.rows_forward`."""
    u = _scaled(x, a, -1.0 if scale < 0 else 1.0)  # the kernels take maxima
    stats, pull = _visit(u, w, b, abs(scale), lo, hi, want_pull)
    shift, sums = stats.unbind()
    if pull is not None:
        pull /= sums.clamp_min(1e-300)[:, None]  # 0 / 0 of a row without negatives
    return shift * abs(scale) + sums.log(), pull


def queue(
    u: Tensor, v: Tensor, w: Tensor, b: Tensor | None, scale: float, weight: float,
    want_u: bool, want_v: bool,
) -> tuple[float, Tensor | None, Tensor | None]:  # fmt: skip
    """As `reference.contrastive.queue`, on a CPU."""
    stats, pull = _visit(u, w, b, scale, None, None, want_u)
    d_v = torch.empty(v.shape, dtype=v.dtype) if want_v else None
    total = cpu().contrastive_queue(
        matrix(u), matrix(v), stats.data_ptr(), scale, weight, matrix(pull), matrix(d_v),
        torch.get_num_threads(),
    )  # fmt: skip
    return total, pull, d_v


def rows_backward(
    x: Tensor,
    w: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    scale: float,
    lo: Tensor | None,
    hi: Tensor | None,
    lse: Tensor,
    weight: Tensor,
) -> Tensor:
    """As `reference.contrastive.rows_backward`."""
    u = _scaled(x, a)
    b = None if b is None else b.to(u.dtype)
    push = u.new_empty(w.shape)
    weight = weight.double()
    for rows in _slices(u, ROW_TILE, 0):
        for columns, _, tile in _tiles(u[rows], w):
            _run("contrastive_rows_backward", tile, pointer(b, columns.start), scale,
                 _ranges(lo, hi, rows, columns), pointer(lse, rows.start),
                 pointer(weight, rows.start))  # fmt: skip
            push[columns].addmm_(tile.t(), u[rows], beta=0 if rows.start == 0 else 1)
    return push


def in_batch(tile: Tensor, first: int, scale: float, weight: float, store: bool) -> float:
    """As `reference.contrastive.in_batch`; without `store` the tile is undefined afterwards."""
    return cpu().contrastive_in_batch(
        matrix(tile), first, scale, weight, store, torch.get_num_threads()
    )


def pairs_at_once(
    u: Tensor, scale: float, views: int, weights: Tensor | None, decoupled: bool, store: bool
) -> tuple[float, Tensor]:
    """As `reference.contrastive.pairs_at_once`, on a CPU; the gradient in u's type."""
    shift, narrow = _shift(u, None, abs(scale))
    tile = torch.mm(u, u.t())
    if not narrow:
        _mirror(tile)
    if scale < 0:  # the kernel takes maxima
        tile.neg_()
    total = cpu().contrastive_pairs_at_once(
        matrix(tile), abs(scale), shift, views, pointer(weights), decoupled, narrow, store,
        torch.get_num_threads(),
    )  # fmt: skip
    return total, tile


def pairs_forward(z: Tensor, a: Tensor | None, scale: float, views: int) -> Tensor:
    """As `reference.contrastive.pairs_forward`."""
    u = _scaled(z, a)
    shift, narrow = _shift(u, a, scale)
    if not narrow:
        return _wide_pairs(u, scale, views)
    sums = u.new_zeros(u.shape[0], dtype=torch.float64)
    for row, col, tile in _triangle(u, views):
        _run("contrastive_pairs_forward", tile, scale, shift, row, col, views, sums.data_ptr())
    return sums.log_().add_(shift * scale)


def pairs_backward(
    z: Tensor, a: Tensor | None, scale: float, views: int, lse: Tensor, blocks: Tensor
) -> Tensor:
    """As `reference.contrastive.pairs_backward`."""
    u = _scaled(z, a)
    shift, narrow = _shift(u, a, scale)
    d_u = torch.empty_like(u)
    blocks = blocks.to(u.dtype).contiguous()
    for row, col, tile in _triangle(u, views):
        if not narrow and row == col:
            _mirror(tile)
        _run("contrastive_pairs_backward", tile, scale, shift, row, col, views, lse.data_ptr(),
             blocks.data_ptr(), narrow)  # fmt: skip
        last, end = row + tile.shape[0], col + tile.shape[1]
        # The first columns' tiles are the first of every row.
        d_u[row:last].addmm_(tile, u[col:end], beta=0 if col == 0 else 1)
        below = max(row, end)
        if below < last:
            d_u[col:end].addmm_(tile[below - row :].t(), u[below:last])
    return d_u


def _visit(
    u: Tensor, w: Tensor, b: Tensor | None, scale: float, lo: Tensor | None, hi: Tensor | None,
    want_pull: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """(2, N) shift and sum of e = exp(scale (l - shift)); (N, D) sum of e w, if wanted."""
    b = None if b is None else b.to(u.dtype)
    pull = torch.empty_like(u) if want_pull else None
    parts = []
    for rows in _slices(u, ROW_TILE, 0):
        part = u.new_zeros((2, rows.stop - rows.start), dtype=torch.float64)
        part[0] = -torch.inf
        rescale = u.new_empty(part.shape[1]) if want_pull else None
        for columns, keys, tile in _tiles(u[rows], w):
            _run(
                "contrastive_rows_forward", tile, pointer(b, columns.start), scale,
                _ranges(lo, hi, rows, columns), part.data_ptr(), pointer(rescale),
            )  # fmt: skip
            if pull is not None and rescale is not None:
                _accumulate(pull[rows], tile, keys, rescale, first=columns.start == 0)
        parts.append(part)
    return (parts[0] if len(parts) == 1 else torch.cat(parts, 1)), pull


def _wide_pairs(u: Tensor, scale: float, views: int) -> Tensor:
    """`pairs_forward` where every row needs its own maximum.

    Both sides of a pair take one product, as in the backward pass: of logits of 1e4 two products,
    rounded apart, would make shares differ by 1e-3.
    """
    stats = u.new_zeros(2, u.shape[0], dtype=torch.float64)
    stats[0] = -torch.inf
    without = _blocks(u, views)

    def join(first: int, begin: int, tile: Tensor) -> None:
        rows, columns = (slice(i, i + n) for i, n in zip((first, begin), tile.shape, strict=True))
        part = stats[:, rows].contiguous()
        _run("contrastive_rows_forward", tile, 0, abs(scale), _ranges(*without, rows, columns),
             part.data_ptr(), 0)  # fmt: skip
        stats[:, rows] = part

    for row, col, tile in _triangle(u, views):
        if row == col:
            _mirror(tile)
        if scale < 0:  # the kernels take maxima
            tile.neg_()
        below = max(row, col + tile.shape[1])
        right = tile[below - row :].t().contiguous()
        join(row, col, tile)
        if right.shape[1]:
            join(col, below, right)
    return stats[0] * abs(scale) + stats[1].log()


def _mirror(tile: Tensor) -> None:
    """Rounds both sides of the tile's first square alike, which the library's product need not."""
    half = tile[: tile.shape[1]].mul_(0.5)
    half += half.t().contiguous()


def _scaled(x: Tensor, factors: Tensor | None, sign: float = 1.0) -> Tensor:
    """sign * factors * x in float32 (float64 for float64), rows contiguous."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if factors is not None:
        return x * (factors * sign).to(x.dtype)[:, None]
    return x.contiguous() if sign > 0 else -x


def _slices(u: Tensor, table: dict[str, tuple[int, int]], axis: int, views: int = 1) -> list[slice]:
    size = table[u.device.type][axis] // views * views or views
    return [slice(i, min(i + size, u.shape[0])) for i in range(0, u.shape[0], size)]


def _tiles(u: Tensor, w: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Columns, their rows of w in u's type, and the product; one buffer serves all tiles."""
    size = ROW_TILE[u.device.type][1]
    buffer = u.new_empty(u.shape[0] * min(size, w.shape[0]))
    for first in range(0, w.shape[0], size):
        columns = slice(first, min(first + size, w.shape[0]))
        keys = w[columns].to(u.dtype)
        shape = (u.shape[0], keys.shape[0])
        tile = buffer[: shape[0] * shape[1]].view(shape)
        yield columns, keys, torch.mm(u, keys.t(), out=tile)


def _triangle(u: Tensor, views: int) -> Iterator[tuple[int, int, Tensor]]:
    """First row, first column and product of the tiles at and below the diagonal."""
    height = PAIR_TILE[u.device.type][0]
    slices = _slices(u, PAIR_TILE, 1, views)
    buffer = u.new_empty((slices[0].stop) * min(height, u.shape[0]))
    for columns in slices:
        for row in range(columns.start, u.shape[0], height):
            shape = (min(height, u.shape[0] - row), columns.stop - columns.start)
            tile = buffer[: shape[0] * shape[1]].view(shape)
            torch.mm(u[row : row + shape[0]], u[columns].t(), out=tile)
            yield row, columns.start, tile


def _shift(u: Tensor, a: Tensor | None, scale: float) -> tuple[float, bool]:
    """A bound on the products, and whether exponents below it are narrow.

    Rows of unit norm bound them by 1. Reading another bound costs nothing on a CPU; elsewhere it
    would synchronise, and every row keeps its own maximum.
    """
    if a is None and not u.is_cuda:
        bound = float(torch.linalg.vector_norm(u, dim=1).amax()) ** 2
    else:
        bound = 1.0 if a is not None else float("inf")
    narrow = 2 * bound * abs(scale) <= _NARROW
    return (bound if scale > 0 else -bound) if narrow else 0.0, narrow


def _blocks(u: Tensor, views: int) -> tuple[Tensor, Tensor]:
    first = torch.arange(u.shape[0], device=u.device) // views * views
    return first, first + views


def _ranges(
    lo: Tensor | None, hi: Tensor | None, rows: slice, columns: slice
) -> tuple[int, int, int]:
    return pointer(lo, rows.start), pointer(hi, rows.start), columns.start


def _accumulate(out: Tensor, tile: Tensor, keys: Tensor, rescale: Tensor, first: bool) -> None:
    """out = rescale * out + tile @ keys; `first` finds uninitialised memory."""
    if first:
        torch.mm(tile, keys, out=out)
    else:
        out.mul_(rescale[:, None]).addmm_(tile, keys)


def _run(name: str, tile: Tensor, *arguments: Any) -> None:
    if tile.is_cuda:
        cuda.launch(name, tile, matrix(tile), *arguments)
    else:
        getattr(cpu(), name)(matrix(tile), *arguments, torch.get_num_threads())
