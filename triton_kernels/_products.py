"""Products of rows against rows, tile by tile on tensor cores, and the tiles that launches choose.

Half operands meet as they are; a float32 factor meets half rows as d = hi + lo, both of that type:
d keeps 16 bits (22 in float16) and is never rounded to one half.

Float32 operands: three TF32 products (tf32x3), float32's accuracy; a single TF32 product where
torch.backends.cuda.matmul.fp32_precision is "tf32".
"""

import torch
import triton
import triton.language as tl

from ._common import INTERPRETED

# Bytes of a row of every operand, padded, at most -> rows, columns and width of a tile (None: the
# whole row, read once), warps, stages.                                                  unmeasured
FORWARD = {
    2: ((256, 128, 64, None, 8, 3), (512, 128, 64, None, 8, 2), (1 << 62, 128, 64, 64, 8, 3)),
    4: ((256, 64, 64, None, 8, 2), (1 << 62, 64, 64, 32, 8, 2)),
}
BACKWARD = {
    2: ((128, 128, 64, None, 8, 2), (512, 128, 32, None, 8, 2), (1 << 62, 128, 32, 64, 8, 2)),
    4: ((256, 64, 32, None, 4, 2), (1 << 62, 64, 32, 32, 4, 2)),
}
# Bytes of an element -> widest slice of a gradient that one program accumulates.        unmeasured
WIDEST = {2: 256, 4: 128}


def padded(width: int) -> int:
    """The width of a tile that holds a whole row: a power of two, at least a product's 16."""
    return max(16, triton.next_power_of_2(width))


def input_precision() -> str:
    tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if tf32 else "tf32x3"


@triton.jit
def load_rows(pointer, stride, index, size, first, width, WIDTH: tl.constexpr):
    """Rows `index`, columns from `first`: (R, WIDTH), 0 outside."""
    columns = first + tl.arange(0, WIDTH)
    mask = (index < size)[:, None] & (columns < width)[None, :]
    offsets = index.to(tl.int64)[:, None] * stride + columns[None, :]
    return tl.load(pointer + offsets, mask=mask, other=0.0)


@triton.jit
def product(a, a_stride, rows, N, b, b_stride, cols, K, D, WIDTH: tl.constexpr,
            PRECISION: tl.constexpr):  # fmt: skip
    """a[rows] @ b[cols].T, float32, by slices of WIDTH."""
    out = tl.zeros((rows.shape[0], cols.shape[0]), tl.float32)
    for first in range(0, D, WIDTH):
        a_tile = load_rows(a, a_stride, rows, N, first, D, WIDTH)
        b_tile = load_rows(b, b_stride, cols, K, first, D, WIDTH)
        out = dot(a_tile, tl.trans(b_tile), out, PRECISION)
    return out


@triton.jit
def gradient_product(d, weight, out, PRECISION: tl.constexpr):
    """out + d @ weight for d (R, C) float32: half weights meet d as a high and a low half."""
    if weight.dtype == tl.float32:
        out = dot(d, weight, out, PRECISION)
    elif weight.dtype == tl.bfloat16:
        high = d.to(tl.bfloat16)
        low = (d - high.to(tl.float32)).to(tl.bfloat16)
        out = dot(low, weight, dot(high, weight, out, PRECISION), PRECISION)
    else:
        # float16 has no room for large or small d: bring each row to 2^13.
        unit = 8192.0 / tl.maximum(tl.max(tl.abs(d), 1), 1e-30)
        d *= unit[:, None]
        high = d.to(tl.float16)
        low = (d - high.to(tl.float32)).to(tl.float16)
        halves = dot(low, weight, dot(high, weight, None, PRECISION), PRECISION)
        out += halves / unit[:, None]
    return out


@triton.jit
def dot(a, b, out, PRECISION: tl.constexpr):
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, out, input_precision=PRECISION)
