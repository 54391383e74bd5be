"""The Kozachenko-Leonenko term: distances to nearest neighbours, found by tiles."""

from typing import Any

import torch
from torch import Tensor

from .. import backend
from . import _check, _distributed
from ._autograd import Scaled, apply
from ._nearest import nearest_rows
from ._operator import fake_loss, full_precision, operator
from ._tiles import product, product_dtype, row_slices
from ._unit import UnitRows


def koleo(x: Tensor, *, eps: float = 1e-8, group: Any = None) -> Tensor:
    """-mean_i log(||z_i - z_n(i) + eps|| + eps), z the rows of x at unit norm, n(i) the nearest.

    Documented at `losses.KoLeoLoss`.
    """
    _check.matrix("x", x)
    eps = _check.positive("eps", eps)
    name = _check.group_name(group)
    if name:
        return full_precision(_over_ranks, (x, eps, name))
    _enough(x)
    return own_koleo(x, 2.0, eps)


def own_koleo(x: Tensor, p: float, eps: float) -> Tensor:
    """`koleo` of this process's rows by the p-norm; a row alone is its own neighbour."""
    if not p > 0:
        raise ValueError(f"p must be > 0, that of a norm, got {p}")
    name = backend.select("cosine", x.device, x.dtype)
    want = torch.is_grad_enabled() and x.requires_grad
    return apply(_KoLeo, _check.rows_contiguous(x), float(p), eps, want, name)


def _fake_forward(x: Tensor, p: float, eps: float, want: bool, name: str) -> tuple[Tensor, ...]:
    return fake_loss(x, (x, want))


@operator(_fake_forward)
def koleo_forward(
    x: Tensor,  # (N, D)
    p: float,
    eps: float,
    want: bool,
    name: str,
) -> tuple[Tensor, Tensor]:
    """The loss and, if wanted, d_x (N, D) in `product_dtype`."""
    units = UnitRows(x, name, eps)
    index = nearest_rows(units.rows, name)
    loss, d_u = backend.implementation(name, "cosine").koleo(units.rows, index, p, eps, want)
    outputs: Any = loss, None if d_u is None else units.backward(d_u, product_dtype(x))
    return outputs


class _KoLeo(Scaled):
    """(loss, d_x) at an upstream gradient of 1."""

    run = koleo_forward


def _over_ranks(x: Tensor, eps: float, group: str) -> Tensor:
    wide = x.to(product_dtype(x))
    zero = wide.detach().abs().amax(1, keepdim=True) == 0
    wide = torch.where(zero, wide.detach(), wide)  # a zero row gets a zero gradient
    unit = torch.nn.functional.normalize(wide, dim=1, eps=eps)
    everything = _distributed.gather(unit, group)
    _enough(everything)
    neighbours = _neighbours(unit.detach(), everything.detach(), group)
    difference = everything - everything[neighbours] + eps
    return -(torch.linalg.vector_norm(difference, dim=1) + eps).log().mean()


def _enough(x: Tensor) -> None:
    if x.shape[0] < 2:
        raise ValueError("x must hold at least 2 rows: one alone has no nearest neighbour; got 1")


def _neighbours(own: Tensor, everything: Tensor, group: str) -> Tensor:
    """The row nearest to each row but itself, (all rows,): every rank searches for its own."""
    rank = _distributed.rank(group)
    owner = _distributed.gather(own.new_full((len(own),), rank, dtype=torch.int64), group)
    rows = (owner == rank).nonzero()[:, 0]
    found = []
    for tile in row_slices(0, own.shape[0], everything.shape[0]):
        cosines = product(own[tile], everything)
        found.append(cosines.scatter_(1, rows[tile, None], -torch.inf).argmax(1))
    return _distributed.gather(torch.cat(found), group)
