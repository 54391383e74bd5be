"""Sinkhorn-Knopp: the dense assignment, and the potentials that `Assignment` keeps."""

from typing import Any

import torch
from torch import Tensor

from .. import backend
from . import _check, _distributed
from ._operator import operator
from ._stats import Targets
from ._tiles import (
    Tiles,
    is_one_tile,
    joined,
    kept_rows,
    nbytes,
    product,
    product_dtype,
    row_slices,
)


def sinkhorn(
    scores: Tensor,
    *,
    epsilon: float = 0.05,
    iterations: int = 3,
    prior: Tensor | None = None,
    group: Any = None,
) -> Tensor:
    """Assign N samples to K prototypes with marginals 1 (samples, exact) and `prior` (prototypes).

        q_ik = exp(s_ik / epsilon + row_i + col_k)

    with SwAV's order: prototypes first, samples last, `iterations` times. Equal to
    `Assignment.sinkhorn(scores, ...).dense()`, in one call. A constant: scores are detached.

    Args:
        scores: (N, K), float64, float32, bfloat16 or float16; finite, and to some 1e9 epsilon in
            size: float64 potentials cancel larger ones, and q loses digits.
        epsilon: entropy weight, in units of the scores, > 0.
        iterations: at least 1.
        prior: (K,) non-negative, sums to 1 within 1e-3; None is uniform.
        group: process group; ranks hold their own rows and share the K column sums.

    Returns:
        (N, K), rows sum to one; float32 for half scores, else the scores' type.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.

    Source: Caron et al. 2020 (SwAV), listing 1; facebookresearch/swav 06b1b7c.
    Cost: iterations + 1 reads of the scores and one write.
    """
    if not isinstance(scores, Tensor):
        raise TypeError(
            f"scores must be a tensor (N, K), got {type(scores).__name__}; for a pair "
            "(z, prototypes) call Assignment.sinkhorn((z, prototypes)).dense()"
        )
    _check.matrix("scores", scores)
    scores = _check.rows_contiguous(scores.detach())
    scale, log_prior, group = sinkhorn_arguments(
        epsilon, iterations, prior, scores.shape[1], scores.device, group
    )
    name = backend.select("sinkhorn", scores.device, scores.dtype)
    return sinkhorn_dense(scores, scale, log_prior, iterations, name, group)


def sinkhorn_arguments(
    epsilon: Any, iterations: Any, prior: Any, columns: int, device: torch.device, group: Any
) -> tuple[float, Tensor | None, str]:
    """Checked: 1 / epsilon, log prior or None, and the group's name."""
    scale = 1.0 / _check.positive("epsilon", epsilon)
    _check.count("iterations", iterations)
    log_prior = None
    if prior is not None:
        log_prior = _check.prior(prior, columns, device).double().log()
    return scale, log_prior, _check.group_name(group)


def _fake_dense(scores: Tensor, *_: Any) -> Tensor:
    return scores.new_empty(scores.shape, dtype=product_dtype(scores))


@operator(_fake_dense)
def sinkhorn_dense(
    scores: Tensor,  # (N, K)
    scale: float,
    log_prior: Tensor | None,  # (K,) float64
    iterations: int,
    name: str,
    group: str,
) -> Tensor:
    kernels = backend.implementation(name, "sinkhorn")
    if not group:
        return kernels.dense(scores, scale, log_prior, iterations, False)
    row, col = sinkhorn_potentials(scores, None, scale, log_prior, iterations, False, name, group)
    return kernels.evaluate(scores, scale, row, col)


def _fake_potentials(scores: Tensor, prototypes: Tensor | None, *_: Any) -> tuple[Tensor, Tensor]:
    columns = scores.shape[1] if prototypes is None else prototypes.shape[0]
    double = torch.float64
    return scores.new_empty(scores.shape[0], dtype=double), scores.new_empty(columns, dtype=double)


@operator(_fake_potentials)
def sinkhorn_potentials(
    scores: Tensor,  # (N, K), or z (N, D) with prototypes (K, D)
    prototypes: Tensor | None,
    scale: float,
    log_prior: Tensor | None,  # (K,) float64
    iterations: int,
    softmax_start: bool,
    name: str,
    group: str,
) -> tuple[Tensor, Tensor]:
    """Row (N,) and column (K,) potentials, float64."""
    kernels = backend.implementation(name, "sinkhorn")
    if not group and (prototypes is None or is_one_tile(scores, prototypes)):
        whole = scores if prototypes is None else product(scores, prototypes)
        return kernels.potentials(whole, scale, log_prior, iterations, softmax_start)
    tiles = score_tiles(scores, prototypes)
    columns = scores.shape[1] if prototypes is None else prototypes.shape[0]
    zeros = torch.zeros(columns, dtype=torch.float64, device=scores.device)
    log_prior = zeros if log_prior is None else log_prior
    col: Any = zeros if softmax_start else None
    for _ in range(iterations):
        parts = [kernels.step(tile, scale, col)[1] for _, tile in tiles]
        local = torch.logsumexp(torch.stack(parts), 0)
        col = log_prior - _distributed.log_sum_exp(local, group)
    return joined([kernels.row_potential(tile, scale, col) for _, tile in tiles]), col


def _fake_row(scores: Tensor, *_: Any) -> Tensor:
    return scores.new_empty(scores.shape[0], dtype=torch.float64)


@operator(_fake_row)
def softmax_potential(
    scores: Tensor,  # (N, K), or z (N, D) with prototypes (K, D)
    prototypes: Tensor | None,
    scale: float,
    col: Tensor | None,  # (K,) float64
    name: str,
) -> Tensor:
    """-LSE_k(scale * s_ik + col_k), (N,) float64."""
    kernels = backend.implementation(name, "sinkhorn")
    tiles = score_tiles(scores, prototypes)
    return joined([kernels.row_potential(tile, scale, col) for _, tile in tiles])


def _fake_evaluate(scores: Tensor, prototypes: Tensor | None, *_: Any) -> Tensor:
    columns = scores.shape[1] if prototypes is None else prototypes.shape[0]
    return scores.new_empty((scores.shape[0], columns), dtype=product_dtype(scores))


@operator(_fake_evaluate)
def evaluate(
    scores: Tensor,  # (N, K), or z (N, D) with prototypes (K, D)
    prototypes: Tensor | None,
    scale: float,
    row: Tensor,  # (N,) float64
    col: Tensor | None,  # (K,) float64
    name: str,
) -> Tensor:
    """exp(scale * s + row + col), (N, K)."""
    kernels = backend.implementation(name, "sinkhorn")
    if prototypes is None:
        return kernels.evaluate(scores, scale, row, col)
    targets = Targets(None, scores, prototypes, scale, row, col, name)
    tiles = [targets.tile(rows) for rows in row_slices(0, len(scores), len(prototypes))]
    return joined([kernels.evaluate(tile.values, scale, tile.row, col) for tile in tiles])


def score_tiles(scores: Tensor, prototypes: Tensor | None) -> Any:
    """(rows, tile) pairs: the scores whole, or z @ prototypes.T by tiles with a bounded cache."""
    if prototypes is None:
        return [(slice(0, scores.shape[0]), scores)]
    kept = 0
    if not is_one_tile(scores, prototypes):
        kept = kept_rows(nbytes(scores, prototypes), scores, prototypes.shape[0])
    return Tiles(scores, prototypes, kept)
