"""Sinkhorn-Knopp in CUDA C++."""

import torch
from torch import Tensor

from .. import DTYPE_CODES, matrix, pointer
from . import double, launch, rows, scratch


def step(scores: Tensor, scale: float, col: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `reference.sinkhorn.step`."""
    scores = rows(scores)
    memory = _scratch(scores)
    row, column_lse = double(scores, scores.shape[0]), double(scores, scores.shape[1])
    launch(
        "sinkhorn_step", scores, matrix(scores), scale, pointer(col), row.data_ptr(),
        column_lse.data_ptr(), memory.data_ptr(),
    )  # fmt: skip
    return row, column_lse


def row_potential(scores: Tensor, scale: float, col: Tensor | None) -> Tensor:
    """As `reference.sinkhorn.row_potential`."""
    scores = rows(scores)
    memory, row = _scratch(scores), double(scores, scores.shape[0])
    launch(
        "row_potential", scores, matrix(scores), scale, pointer(col), row.data_ptr(),
        memory.data_ptr(),
    )  # fmt: skip
    return row


def potentials(
    scores: Tensor, scale: float, log_prior: Tensor | None, iterations: int, softmax_start: bool
) -> tuple[Tensor, Tensor]:
    """As `reference.sinkhorn.potentials`."""
    return run(rows(scores), scale, log_prior, iterations, softmax_start, None)[:2]


def dense(
    scores: Tensor, scale: float, log_prior: Tensor | None, iterations: int, softmax_start: bool
) -> Tensor:
    """As `reference.sinkhorn.dense`."""
    q = scores.new_empty(scores.shape, dtype=torch.float32)
    run(rows(scores), scale, log_prior, iterations, softmax_start, q)
    return q


def evaluate(scores: Tensor, scale: float, row: Tensor, col: Tensor | None) -> Tensor:
    """As `reference.sinkhorn.evaluate`."""
    scores = rows(scores)
    memory = scratch("cross_entropy", scores, False)
    q = scores.new_empty(scores.shape, dtype=torch.float32)
    launch(
        "evaluate", scores, matrix(scores), scale, row.data_ptr(), pointer(col), q.data_ptr(),
        memory.data_ptr(),
    )  # fmt: skip
    return q


def run(
    scores: Tensor,
    scale: float,
    log_prior: Tensor | None,
    iterations: int,
    softmax_start: bool,
    q: Tensor | None,
    on_chip: bool = True,
) -> tuple[Tensor, Tensor, bool]:
    """row, col, and whether the scores stayed on chip; `q` is filled when given."""
    memory = _scratch(scores)
    row, col = double(scores, scores.shape[0]), double(scores, scores.shape[1])
    ran_on_chip = launch(
        "sinkhorn", scores, matrix(scores), scale, pointer(log_prior), iterations, softmax_start,
        pointer(q), row.data_ptr(), col.data_ptr(), on_chip, memory.data_ptr(),
    )  # fmt: skip
    return row, col, ran_on_chip


def _scratch(scores: Tensor) -> Tensor:
    return scratch("sinkhorn", scores, DTYPE_CODES[scores.dtype])
