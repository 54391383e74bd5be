"""Cosines of paired rows in C++ (CPU): pointers, sizes, threads."""

import torch
from torch import Tensor

from . import cpu, matrix, pointer


def forward(x: Tensor, y: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As `reference.cosine.forward`."""
    stats = torch.empty(3, x.shape[0], dtype=torch.float64)
    total = cpu().cosine_forward(
        matrix(x), matrix(y), eps, stats.data_ptr(), torch.get_num_threads()
    )
    return torch.tensor(total, dtype=torch.float64), stats


def backward(
    x: Tensor,
    y: Tensor,
    eps: float,
    stats: Tensor,
    d_value: Tensor,
    factor: float,
    need_x: bool,
    need_y: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """As `reference.cosine.backward`."""
    d_x = x.new_empty(x.shape) if need_x else None
    d_y = y.new_empty(y.shape) if need_y else None
    cpu().cosine_backward(
        matrix(x), matrix(y), eps, stats.data_ptr(), float(d_value) * factor,
        pointer(d_x), pointer(d_y), torch.get_num_threads(),
    )  # fmt: skip
    return d_x, d_y


def nearest(tile: Tensor, own: Tensor | None = None) -> Tensor:
    """As `reference.cosine.nearest`; the tile is overwritten in the columns `own`."""
    if own is None:
        own = torch.full((tile.shape[0],), tile.shape[1])
    index = torch.empty(tile.shape[0], dtype=torch.int64)
    cpu().nearest(matrix(tile), own.data_ptr(), index.data_ptr(), torch.get_num_threads())
    return index


def koleo(
    u: Tensor, index: Tensor, p: float, eps: float, want_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """As `reference.cosine.koleo`."""
    d_u = torch.empty_like(u) if want_grad else None
    loss = cpu().koleo(matrix(u), index.data_ptr(), p, eps, pointer(d_u), torch.get_num_threads())
    return u.new_full((), loss), d_u
