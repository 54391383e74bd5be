"""Cross-entropy from embeddings: logits = x @ weight.T tile by tile on tensor cores.

    loss_i = a_i LSE_k(l_ik) - sum_k q_ik l_ik,   d_ik = g_i / T (a_i P_ik - q_ik)
    d_x = d @ weight,   d_weight = d.T @ x

Not stored: logits, softmax, q, d. A program owns a block of rows and visits the columns (a range of
them where rows are few); the transposed problem serves the columns: symmetric statistics, d_weight.
Scores of a factored target are a second product of the same visit. Operations: 2 N K D forward;
backward each gradient takes 2 N K D for the tile and, for half inputs, twice that for d = hi + lo,
both of that type: d keeps 16 bits (22 in float16) and is never rounded to one half. No atomics.

Float32 inputs: three TF32 products (tf32x3), float32's accuracy; a single TF32 product where
torch.backends.cuda.matmul.fp32_precision is "tf32".

Wijmans et al. 2024 (cut cross-entropy); Dao 2023 (FlashAttention-2), for the visit.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import (
    INTERPRETED,
    assignment,
    cdiv,
    choose,
    factored_assignment,
    launch,
)
from ._statistics import (
    accumulate,
    columns_of_program,
    empty_statistics,
    merge,
    parts,
    softmax,
    store_part,
    total_loss,
)

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


def linear_forward(
    x: Tensor, weight: Tensor, inv_temperature: float, targets, symmetric: bool, factor: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `forward` of logits = x @ weight.T, with x (N, D) and weight (K, D)."""
    row_stats = _statistics(_Problem(x, weight, targets), inv_temperature)
    col_stats = None
    if symmetric:
        col_stats = _statistics(_Problem(x, weight, targets).transposed(), inv_temperature)
    loss = total_loss(row_stats, col_stats, factor)
    return loss, row_stats, None if col_stats is None else col_stats[:3]


def linear_backward(
    x: Tensor,
    weight: Tensor,
    inv_temperature: float,
    targets,
    row_stats: Tensor,
    col_stats: Tensor | None,
    d_loss: Tensor | None,
    factor: float,
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """(d_x (N, D), d_weight (K, D)) in the inputs' type, accumulated in float32."""
    problem = _Problem(x, weight, targets)
    scaling = inv_temperature * factor
    d_x = d_weight = None
    if need_x:
        d_x = _gradient(problem, row_stats, col_stats, d_loss, None, inv_temperature, scaling)
    if need_weight:
        d_weight = _gradient(
            problem.transposed(), col_stats, row_stats, None, d_loss, inv_temperature, scaling
        )
    return d_x, d_weight


class _Problem:
    """The operands as a kernel sees them: rows that programs own, against all other rows."""

    def __init__(self, x: Tensor, weight: Tensor, targets):
        self.own, self.other = x, weight
        self.values, self.scale = targets.values, targets.scale or 0.0
        self.potentials = (targets.row, targets.col)
        self.factors = (None, None)
        self.strides = (0, 0)
        if self.values is None:
            self.factors = (targets.z, targets.prototypes)
        else:
            self.strides = self.values.stride()

    def transposed(self) -> "_Problem":
        self.own, self.other = self.other, self.own
        self.potentials, self.factors = self.potentials[::-1], self.factors[::-1]
        self.strides = self.strides[::-1]
        return self

    def operands(self) -> list:
        z, prototypes = self.factors
        return [
            self.own, self.own.stride(0), self.other, self.other.stride(0),
            z, 0 if z is None else z.stride(0),
            prototypes, 0 if prototypes is None else prototypes.stride(0),
            self.values, *self.strides, self.scale, *self.potentials,
            self.own.shape[0], self.other.shape[0], *self.widths(),
        ]  # fmt: skip

    def widths(self) -> tuple[int, int]:
        """D and H, the widths of x and z; H = 0 when values are given."""
        z = self.factors[0]
        return self.own.shape[1], 0 if z is None else z.shape[1]

    def settings(self, table: dict[int, tuple]) -> tuple:
        """(rows, columns, width or None, warps, stages) of a tile."""
        tensors = [self.own, *(z for z in self.factors[:1] if z is not None)]
        itemsize = max(t.element_size() for t in tensors)
        return choose(table[itemsize], itemsize * sum(_padded(t.shape[1]) for t in tensors))

    def tile(self, rows: int, columns: int, width: int | None) -> dict:
        """The compile-time arguments that both kernels share."""
        width_x, width_z = self.widths()
        return {
            "ROWS": rows,
            "COLUMNS": columns,
            "WIDTH": width or _padded(width_x),
            "WIDTH_Z": width or _padded(width_z),
            "WHOLE": width is None,
            "PRECISION": _input_precision(),
        }


def _statistics(problem: _Problem, inv_temperature: float) -> Tensor:
    """(4, own) float64: shift, log, mass, loss."""
    rows, columns, width, warps, stages = problem.settings(FORWARD)
    size, others = problem.own.shape[0], problem.other.shape[0]
    blocks = cdiv(size, rows)
    count = parts(blocks, cdiv(others, columns), problem.own.device)
    partial = _empty(problem.own, (count, 4, size))
    launch(
        _statistics_kernel, (blocks, count), problem.own,
        *problem.operands(), inv_temperature, partial, **problem.tile(rows, columns, width),
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return merge(partial, inv_temperature)


def _gradient(
    problem: _Problem,
    own_stats: Tensor | None,  # (3 or more, own), for the softmax over the others
    other_stats: Tensor | None,  # (3 or more, other)
    own_d_loss: Tensor | None,  # 0-d, or (own,)
    other_d_loss: Tensor | None,  # 0-d, or (other,)
    inv_temperature: float,
    scaling: float,
) -> Tensor:
    """(own, D): d_own of the problem, in its type."""
    rows, columns, width, warps, stages = problem.settings(BACKWARD)
    own, dim = problem.own, problem.own.shape[1]
    slice_width = min(_padded(dim), WIDEST[own.element_size()])
    blocks = cdiv(own.shape[0], rows)
    count = parts(blocks, cdiv(problem.other.shape[0], columns), own.device)
    partial = torch.empty(
        (count, *own.shape), dtype=own.dtype if count == 1 else torch.float32, device=own.device
    )
    launch(
        _gradient_kernel, (blocks, count, cdiv(dim, slice_width)), own,
        *problem.operands(), inv_temperature, scaling, *_with_stride(own_stats),
        *_with_stride(other_stats), *_with_stride(own_d_loss), *_with_stride(other_d_loss),
        partial, **problem.tile(rows, columns, width), SLICE=slice_width,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return partial[0] if count == 1 else partial.sum(0).to(own.dtype)


def _with_stride(tensor: Tensor | None) -> tuple[Tensor | None, int]:
    return tensor, 0 if tensor is None or tensor.dim() == 0 else tensor.stride(0)


def _padded(width: int) -> int:
    """The width of a tile that holds a whole row: a power of two, at least a product's 16."""
    return max(16, triton.next_power_of_2(width))


def _input_precision() -> str:
    tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if tf32 else "tf32x3"


def _empty(like: Tensor, shape: tuple) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


@triton.jit
def _statistics_kernel(
    x,  # (N, D)
    x_stride,
    weight,  # (K, D)
    weight_stride,
    z,  # (N, H), or None
    z_stride,
    prototypes,  # (K, H), or None
    prototypes_stride,
    values,  # (N, K), or None
    values_stride_row,
    values_stride_col,
    scale: tl.float64,
    row,  # (N,) float64, or None
    col,  # (K,) float64, or None
    N,
    K,
    D,
    H,
    inv_temperature,
    partial,  # (P, 4, N) float32, out
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_Z: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    first_row = tl.program_id(0) * ROWS
    rows = first_row + tl.arange(0, ROWS)
    if WHOLE:
        x_tile = _load(x, x_stride, rows, N, 0, D, WIDTH)
        if z is not None:
            z_tile = _load(z, z_stride, rows, N, 0, H, WIDTH_Z)
    shift, total, mass, distance = empty_statistics(ROWS)
    begin, end = columns_of_program(K, COLUMNS)
    for first_col in range(begin, end, COLUMNS):
        cols = first_col + tl.arange(0, COLUMNS)
        if WHOLE:
            weight_tile = _load(weight, weight_stride, cols, K, 0, D, WIDTH)
            logits = _dot(x_tile, tl.trans(weight_tile), None, PRECISION)
        else:
            logits = _product(
                x, x_stride, rows, N, weight, weight_stride, cols, K, D, WIDTH, PRECISION
            )
        if z is None:
            q = assignment(
                values, values_stride_row, values_stride_col, scale, row, col, rows, cols, N, K,
                first_row, first_col,
            )  # fmt: skip
        else:
            if WHOLE:
                prototypes_tile = _load(prototypes, prototypes_stride, cols, K, 0, H, WIDTH_Z)
                scores = _dot(z_tile, tl.trans(prototypes_tile), None, PRECISION)
            else:
                scores = _product(
                    z, z_stride, rows, N, prototypes, prototypes_stride, cols, K, H, WIDTH_Z,
                    PRECISION,
                )  # fmt: skip
            q = factored_assignment(scores, scale, row, col, rows, cols, N, K, first_row)
        mask = (cols < K)[None, :] & (rows < N)[:, None]
        shift, total, mass, distance = accumulate(
            shift, total, mass, distance, logits, q, mask, inv_temperature
        )
    store_part(partial, tl.program_id(1), shift, total, mass, distance, rows, N)


@triton.jit
def _gradient_kernel(
    x,  # (N, D)
    x_stride,
    weight,  # (K, D)
    weight_stride,
    z,  # (N, H), or None
    z_stride,
    prototypes,  # (K, H), or None
    prototypes_stride,
    values,  # (N, K), or None
    values_stride_row,
    values_stride_col,
    scale: tl.float64,
    row,  # (N,) float64, or None
    col,  # (K,) float64, or None
    N,
    K,
    D,
    H,
    inv_temperature,
    scaling,
    row_stats,  # (3, N) float64, or None
    row_stats_stride,
    col_stats,  # (3, K) float64, or None
    col_stats_stride,
    row_d_loss,  # (N,), or 0-d with stride 0, or None
    row_d_loss_stride,
    col_d_loss,  # (K,), or 0-d with stride 0, or None
    col_d_loss_stride,
    d_x,  # (P, N, D), out
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_Z: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
    SLICE: tl.constexpr,
):
    first_row = tl.program_id(0) * ROWS
    rows = first_row + tl.arange(0, ROWS)
    first = tl.program_id(2) * SLICE
    if WHOLE:
        x_tile = _load(x, x_stride, rows, N, 0, D, WIDTH)
        if z is not None:
            z_tile = _load(z, z_stride, rows, N, 0, H, WIDTH_Z)
    d = tl.zeros((ROWS, SLICE), tl.float32)
    begin, end = columns_of_program(K, COLUMNS)
    for first_col in range(begin, end, COLUMNS):
        cols = first_col + tl.arange(0, COLUMNS)
        weight_tile = _load(weight, weight_stride, cols, K, first, D, SLICE)
        if WHOLE:
            logits = _dot(x_tile, tl.trans(weight_tile), None, PRECISION)
        else:
            logits = _product(
                x, x_stride, rows, N, weight, weight_stride, cols, K, D, WIDTH, PRECISION
            )
        if z is None:
            q = assignment(
                values, values_stride_row, values_stride_col, scale, row, col, rows, cols, N, K,
                first_row, first_col,
            )  # fmt: skip
        else:
            if WHOLE:
                prototypes_tile = _load(prototypes, prototypes_stride, cols, K, 0, H, WIDTH_Z)
                scores = _dot(z_tile, tl.trans(prototypes_tile), None, PRECISION)
            else:
                scores = _product(
                    z, z_stride, rows, N, prototypes, prototypes_stride, cols, K, H, WIDTH_Z,
                    PRECISION,
                )  # fmt: skip
            q = factored_assignment(scores, scale, row, col, rows, cols, N, K, first_row)
        # a_i P_ik - q_ik, and the same of the columns
        d_logits = tl.zeros((ROWS, COLUMNS), tl.float32)
        if row_stats is not None:
            p = softmax(logits, row_stats, row_stats_stride, rows, N, inv_temperature, 1)
            d_logits += p - q
        if col_stats is not None:
            p = softmax(logits, col_stats, col_stats_stride, cols, K, inv_temperature, 0)
            d_logits += p - q
        if col_d_loss is not None:
            g = tl.load(col_d_loss + cols * col_d_loss_stride, mask=cols < K, other=0.0)
            d_logits *= g.to(tl.float32)[None, :]
        mask = (cols < K)[None, :] & (rows < N)[:, None]
        d = _gradient_product(tl.where(mask, d_logits, 0.0), weight_tile, d, PRECISION)
    if row_d_loss is not None:
        g = tl.load(row_d_loss + rows * row_d_loss_stride, mask=rows < N, other=0.0)
        d *= g.to(tl.float32)[:, None]
    columns = first + tl.arange(0, SLICE)
    offsets = (tl.program_id(1).to(tl.int64) * N + rows)[:, None] * D + columns[None, :]
    mask = (rows < N)[:, None] & (columns < D)[None, :]
    tl.store(d_x + offsets, (d * scaling).to(d_x.dtype.element_ty), mask=mask)


@triton.jit
def _load(pointer, stride, index, size, first, width, WIDTH: tl.constexpr):
    """Rows `index`, columns from `first`: (R, WIDTH), 0 outside."""
    columns = first + tl.arange(0, WIDTH)
    mask = (index < size)[:, None] & (columns < width)[None, :]
    offsets = index.to(tl.int64)[:, None] * stride + columns[None, :]
    return tl.load(pointer + offsets, mask=mask, other=0.0)


@triton.jit
def _product(a, a_stride, rows, N, b, b_stride, cols, K, D, WIDTH: tl.constexpr,
             PRECISION: tl.constexpr):  # fmt: skip
    """a[rows] @ b[cols].T, float32, by slices of WIDTH."""
    out = tl.zeros((rows.shape[0], cols.shape[0]), tl.float32)
    for first in range(0, D, WIDTH):
        a_tile = _load(a, a_stride, rows, N, first, D, WIDTH)
        b_tile = _load(b, b_stride, cols, K, first, D, WIDTH)
        out = _dot(a_tile, tl.trans(b_tile), out, PRECISION)
    return out


@triton.jit
def _gradient_product(d, weight, out, PRECISION: tl.constexpr):
    """out + d @ weight for d (R, C) float32: half weights meet d as a high and a low half."""
    if weight.dtype == tl.float32:
        out = _dot(d, weight, out, PRECISION)
    elif weight.dtype == tl.bfloat16:
        high = d.to(tl.bfloat16)
        low = (d - high.to(tl.float32)).to(tl.bfloat16)
        out = _dot(low, weight, _dot(high, weight, out, PRECISION), PRECISION)
    else:
        # float16 has no room for large or small d: bring each row to 2^13.
        unit = 8192.0 / tl.maximum(tl.max(tl.abs(d), 1), 1e-30)
        d *= unit[:, None]
        high = d.to(tl.float16)
        low = (d - high.to(tl.float32)).to(tl.float16)
        product = _dot(low, weight, _dot(high, weight, None, PRECISION), PRECISION)
        out += product / unit[:, None]
    return out


@triton.jit
def _dot(a, b, out, PRECISION: tl.constexpr):
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, out, input_precision=PRECISION)
