"""Sinkhorn-Knopp in potentials (Caron et al. 2020, SwAV; Cuturi 2013).

    q_ik = exp(scale * s_ik + row_i + col_k),    scale = 1 / epsilon

Prototypes first, samples last, `iterations` times, from row = 0:

    col_k = log prior_k - LSE_i(scale * s_ik + row_i)
    row_i =             - LSE_k(scale * s_ik + col_k)

Everything is float64 and in the log domain: nothing overflows, nothing needs a shift.
"""

import torch
from torch import Tensor


def step(scores: Tensor, scale: float, col: Tensor | None) -> tuple[Tensor, Tensor]:
    """One iteration: the row potentials under `col`, and each column's LSE_i(scale * s + row).

    `col` None stands for the start: row = 0.
    """
    exponents = scores.double() * scale
    if col is None:
        row = exponents.new_zeros(scores.shape[0])
    else:
        row = -torch.logsumexp(exponents + col, dim=1)
    return row, torch.logsumexp(exponents + row[:, None], dim=0)


def row_potential(scores: Tensor, scale: float, col: Tensor | None) -> Tensor:
    """-LSE_k(scale * s_ik + col_k), float64 (N,): the potential that makes every row sum to one."""
    exponents = scores.double() * scale
    return -torch.logsumexp(exponents if col is None else exponents + col, dim=1)


def potentials(
    scores: Tensor, scale: float, log_prior: Tensor | None, iterations: int, softmax_start: bool
) -> tuple[Tensor, Tensor]:
    """(row, col), float64, after `iterations`; `softmax_start`: from row = -LSE_k(scale * s)."""
    zeros = torch.zeros(scores.shape[1], dtype=torch.float64, device=scores.device)
    log_prior = zeros if log_prior is None else log_prior
    col = zeros if softmax_start else None
    for _ in range(iterations):
        col = log_prior - step(scores, scale, col)[1]
    assert col is not None
    return row_potential(scores, scale, col), col


def evaluate(scores: Tensor, scale: float, row: Tensor, col: Tensor | None) -> Tensor:
    """exp(scale * s + row + col), (N, K): float32 for half scores, else the scores' type."""
    exponents = scores.double() * scale + row[:, None]
    exponents = exponents if col is None else exponents + col
    return exponents.exp().to(torch.promote_types(scores.dtype, torch.float32))


def dense(
    scores: Tensor, scale: float, log_prior: Tensor | None, iterations: int, softmax_start: bool
) -> Tensor:
    """The assignment itself, (N, K)."""
    row, col = potentials(scores, scale, log_prior, iterations, softmax_start)
    return evaluate(scores, scale, row, col)
