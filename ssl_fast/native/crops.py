"""Students against shared teachers in C++ (CPU), on tiles with prototypes as rows."""

import torch
from torch import Tensor

from . import DTYPE_CODES, cpu, matrix, pointer, target

_LARGE = 4 << 20  # bytes whose page faults cost more than the advice does


def workspace(like: Tensor, rows: int, columns: int) -> Tensor:
    """Memory that is about to be written, on huge pages where it is large."""
    memory = like.new_empty((rows, columns))
    cpu().advise_huge_pages(memory.data_ptr(), memory.numel() * memory.element_size(), _LARGE)
    return memory


def forward(
    tile: Tensor,  # (K, V r): logits of r samples in V views, becomes exp(l - shift)
    targets: list[Tensor],  # V times (K, r), of the tile's type
    inv_temperature: float,
    row_stats: Tensor,  # (4, V, r) float64: shift, log, mass, loss
    mass: Tensor | None,  # (K,) float64, to which the column sums of P are added
) -> None:
    cpu().crops_forward(
        _tile(tile, targets), inv_temperature, _stats(row_stats), pointer(mass),
        torch.get_num_threads(),
    )  # fmt: skip


def backward(
    tile: Tensor,  # (K, V r): logits, or what forward left; becomes d_logits / inv_temperature
    targets: list[Tensor],
    inv_temperature: float,
    has_exp: bool,
    row_stats: Tensor,  # (4, V, r)
    prior: Tensor | None,  # (2, K), as in `prior.backward`
) -> None:
    cpu().crops_backward(
        _tile(tile, targets), inv_temperature, has_exp, _stats(row_stats), pointer(prior),
        torch.get_num_threads(),
    )  # fmt: skip


def logits_forward(
    students: list[Tensor],  # V times (r, K)
    inv_temperature: float,
    teachers: list,  # targets of the same samples
    skip_same: bool,
    row_stats: Tensor,  # (4, V, r)
) -> None:
    cpu().logit_crops_forward(
        [matrix(own) for own in students], len(students), inv_temperature,
        _teachers(teachers, skip_same), _stats(row_stats), torch.get_num_threads(),
    )  # fmt: skip


def logits_backward(
    students: list[Tensor],
    inv_temperature: float,
    teachers: list,
    skip_same: bool,
    row_stats: Tensor,
    d_loss: Tensor,  # 0-d
    factor: float,
    out: list[Tensor],
) -> None:
    cpu().logit_crops_backward(
        [matrix(own) for own in students], len(students), inv_temperature,
        _teachers(teachers, skip_same), _stats(row_stats), d_loss.data_ptr(), factor,
        [matrix(own) for own in out], torch.get_num_threads(),
    )  # fmt: skip


def _teachers(teachers: list, skip_same: bool) -> tuple:
    return [target(own) for own in teachers], len(teachers), skip_same


def _tile(tile: Tensor, targets: list[Tensor]) -> tuple:
    return (
        tile.data_ptr(),
        tile.shape[0],
        len(targets),
        targets[0].shape[1],
        DTYPE_CODES[tile.dtype],
        [q.data_ptr() for q in targets],
    )


def _stats(row_stats: Tensor) -> tuple[int, int, int]:
    return row_stats.data_ptr(), row_stats.stride()[0], row_stats.stride()[1]
