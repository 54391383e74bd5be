"""Rows of unit norm, inside operators and as one of their own, and the gradient through them."""

from typing import Any

import torch
from torch import Tensor

from .. import backend
from . import _check
from ._autograd import ClosedForm, apply
from ._operator import operator
from ._tiles import product_dtype

TINY = 1e-12  # of torch.nn.functional.normalize


class UnitRows:
    """x / max(|x|, eps) by rows, in float32 or better; into `rows` where given."""

    def __init__(
        self, x: Tensor, name: str = "reference", eps: float = TINY, rows: Tensor | None = None
    ):
        self.kernels, self.eps, self.dtype = _kernels(x, name), eps, x.dtype
        if self.kernels is not None:
            self.rows = x.new_empty(x.shape, dtype=product_dtype(x)) if rows is None else rows
            self.norm = self.kernels.forward(x, eps, self.rows)
            return
        wide = x.to(product_dtype(x))
        self.norm = torch.linalg.vector_norm(wide, dim=1)
        self.rows = torch.div(wide, self.norm.clamp_min(eps)[:, None], out=rows)

    def backward(self, d_rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """d_x = (d - (d . u) u) / |x|, into d_rows where it fits; that of a zero row is zero."""
        dtype = dtype or self.dtype
        out = d_rows if d_rows.dtype == dtype else d_rows.new_empty(d_rows.shape, dtype=dtype)
        self.backward_into(d_rows, out)
        return out

    def backward_into(self, d_rows: Tensor, out: Tensor) -> None:
        """As `backward`, into `out` (N, D) of any type, which may be d_rows."""
        _through(d_rows, self.rows, self.norm, self.eps, self.kernels, out)


class TwoRows:
    """Rows of x and y in float32 or better, of unit norm where wanted."""

    def __init__(self, x: Tensor, y: Tensor, normalize: bool, name: str):
        self.units = [UnitRows(z, name) for z in (x, y)] if normalize else []
        self.dtype = product_dtype(x)
        self.rows = [u.rows for u in self.units] or [z.to(self.dtype) for z in (x, y)]

    def backward(self, *d_rows: Tensor | None) -> tuple[Tensor | None, ...]:
        """(d_x, d_y) from the gradients by the rows; None stays None."""
        if not self.units:
            return d_rows
        pairs = zip(self.units, d_rows, strict=True)
        return tuple(None if d is None else u.backward(d, self.dtype) for u, d in pairs)


def through_unit(d_rows: Tensor, x: Tensor, rows: Tensor, norm: Tensor, name: str) -> Tensor:
    """d_x, into d_rows, from the rows and norms that `unit_rows_forward` gave at TINY."""
    _through(d_rows, rows, norm, TINY, _kernels(x, name), d_rows)
    return d_rows


def unit_rows(x: Tensor, eps: float = TINY) -> Tensor:
    """As `UnitRows`, (N, D), with a gradient; that of a zero row is zero."""
    name = backend.select("cosine", x.device, x.dtype)
    return apply(_Unit, _check.rows_contiguous(x), eps, name)


def _fake_forward(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    dtype = product_dtype(x)
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(x.shape[0], dtype=dtype)


@operator(_fake_forward)
def unit_rows_forward(x: Tensor, eps: float, name: str) -> tuple[Tensor, Tensor]:
    """Rows (N, D) and norms (N,)."""
    units = UnitRows(x, name, eps)
    return units.rows, units.norm


class _Unit(ClosedForm):
    """(rows, norms) of x; only the rows are for the caller."""

    run = unit_rows_forward

    @staticmethod
    def keep(ctx, inputs, outputs):
        x, *ctx.numbers = inputs
        ctx.save_for_backward(x, *outputs)

    @staticmethod
    def backward(ctx, d_rows):
        return (unit_rows_backward(*ctx.saved_tensors, d_rows, *ctx.numbers),)


def _fake_backward(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


@operator(_fake_backward)
def unit_rows_backward(
    x: Tensor,  # (N, D)
    rows: Tensor,  # (N, D)
    norm: Tensor,  # (N,)
    d_rows: Tensor,  # (N, D)
    eps: float,
    name: str,
) -> Tensor:
    """d_x (N, D), in the type of x."""
    out = x.new_empty(x.shape)
    _through(_check.rows_contiguous(d_rows), rows, norm, eps, _kernels(x, name), out)
    return out


def _kernels(x: Tensor, name: str) -> Any:
    on_cpu = name == "native" and not x.is_cuda
    return backend.implementation(name, "unit") if on_cpu else None


def _through(
    d_rows: Tensor, rows: Tensor, norm: Tensor, eps: float, kernels: Any, out: Tensor
) -> None:
    if kernels is not None:
        return kernels.backward(d_rows, rows, norm, eps, out)
    along = (d_rows * rows).sum(1) * (norm > eps)
    inverse = norm.clamp_min(eps).reciprocal() * (norm > 0)
    d_x = torch.addcmul(d_rows, rows, along[:, None], value=-1)
    out.copy_(d_x.mul_(inverse[:, None]))
