"""The Kozachenko-Leonenko term: distances to nearest neighbours, found by tiles."""

from typing import Any

import torch
from torch import Tensor

from . import _check, _distributed
from ._operator import full_precision
from ._tiles import product, product_dtype, row_slices


def koleo(x: Tensor, *, eps: float = 1e-8, group: Any = None) -> Tensor:
    """-mean_i log(||z_i - z_n(i) + eps|| + eps), z the rows of x at unit norm, n(i) the nearest.

    Documented at `losses.KoLeoLoss`.
    """
    _check.matrix("x", x)
    eps = _check.positive("eps", eps)
    name = _check.group_name(group)
    return full_precision(_koleo, (x, eps, name))


def _koleo(x: Tensor, eps: float, group: str) -> Tensor:
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
    rows = torch.arange(own.shape[0], device=own.device)
    if group:
        rank = _distributed.rank(group)
        owner = _distributed.gather(torch.full_like(rows, rank), group)
        rows = (owner == rank).nonzero()[:, 0]
    found = []
    for tile in row_slices(0, own.shape[0], everything.shape[0]):
        cosines = product(own[tile], everything)
        found.append(cosines.scatter_(1, rows[tile, None], -torch.inf).argmax(1))
    return _distributed.gather(torch.cat(found), group)
