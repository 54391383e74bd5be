"""Log-sum-exps of rows against each other, all but their own block.

Tiles at and right of the diagonal are visited once for the sums of both their sides; the parts of
those sums take M^2 / 16 bytes at 128 rows a tile, while forward runs.
"""

import triton
import triton.language as tl
from torch import Tensor

from ._common import LOG2_E, cdiv, empty, launch
from ._contrastive_tiles import (
    BLOCK,
    alike,
    factors_of,
    largest,
    left_out,
    merge,
    settings,
    tile_of,
)
from ._products import FORWARD, dot, load_rows, product
from ._statistics import LOWEST


def pairs_forward(z: Tensor, a: Tensor | None, scale: float, views: int) -> Tensor:
    """As `reference.contrastive.pairs_forward`."""
    (z,) = alike(z)
    rows, _, width, warps, stages = settings(z, FORWARD)
    blocks = cdiv(z.shape[0], rows)
    partial = empty(z, blocks, 2, z.shape[0])
    launch(
        _pair_statistics, (blocks, blocks), z, z, z.stride(0), a, *z.shape, scale, views, partial,
        **tile_of(z, rows, None, width), num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return merge(partial)


@triton.jit
def _pair_statistics(
    z,  # (M, D)
    stride,
    factors,  # (M,), or None
    M,
    D,
    scale,
    views,
    partial,  # (tiles a side, 2, M) float32, out: slot c of block r from tile (r, c) or (c, r)
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    r, c = tl.program_id(0), tl.program_id(1)
    if c < r:
        return
    rows, cols = r * ROWS + tl.arange(0, ROWS), c * ROWS + tl.arange(0, ROWS)
    if WHOLE:
        products = dot(
            load_rows(z, stride, rows, M, 0, D, WIDTH),
            tl.trans(load_rows(z, stride, cols, M, 0, D, WIDTH)), None, PRECISION,
        )  # fmt: skip
    else:
        products = product(z, stride, rows, M, z, stride, cols, M, D, WIDTH, PRECISION)
    factor = factors_of(factors, rows, M) * (scale * LOG2_E)
    logits = products * factor[:, None] * factors_of(factors, cols, M)[None, :]
    out = left_out(None, None, rows, M, cols, M, views, BLOCK)
    logits = tl.where(out, LOWEST, logits)
    top, sums = largest(logits, 1)
    pointers = partial + c.to(tl.int64) * 2 * M + rows
    tl.store(pointers, top, mask=rows < M)
    tl.store(pointers + M, sums, mask=rows < M)
    if c > r:
        top, sums = largest(logits, 0)
        pointers = partial + r.to(tl.int64) * 2 * M + cols
        tl.store(pointers, top, mask=cols < M)
        tl.store(pointers + M, sums, mask=cols < M)
