"""The operators behind `msn`: normalisation, teacher, students and prior over one set of tiles.

Normalised copies are formed again in backward: dividing costs less than the cache that they would
take from the tiles of d_logits.
"""

from typing import Any

import torch
from torch import Tensor

from . import _distributed
from ._autograd import ClosedForm
from ._column_crops import NARROW, ColumnCrops
from ._crops import Crops, Teachers
from ._operator import operator
from ._prior import divergence
from ._stats import Targets, upstream
from ._tiles import is_one_tile, kept_rows, nbytes, product_dtype
from ._unit import UnitRows
from .sinkhorn import sinkhorn_potentials, softmax_potential


def _fake_forward(anchors, targets, prototypes, inv_temperature, scale, log_prior, *rest):
    *_, want_grad, _, group, _ = rest
    double = torch.float64
    rows, samples, columns = anchors.shape[0], targets.shape[0], prototypes.shape[0]
    kept = _kept(anchors, prototypes, want_grad)
    return (
        anchors.new_empty((), dtype=product_dtype(anchors)),
        anchors.new_empty((4, rows), dtype=double),
        anchors.new_empty(samples, dtype=double),
        anchors.new_empty(columns, dtype=double),
        anchors.new_empty((2, columns), dtype=double),
        anchors.new_empty((), dtype=double) if group else anchors.new_empty(0),
        anchors.new_empty((kept, columns), dtype=product_dtype(anchors)),
    )


@operator(_fake_forward)
def msn_forward(
    anchors: Tensor,  # (V N, D)
    targets: Tensor,  # (N, D)
    prototypes: Tensor,  # (K, D)
    inv_temperature: float,
    scale: float,
    log_prior: Tensor | None,  # (K,) float64, or in eager mode a function of the mean (K,)
    prior_weight: float,
    reverse: bool,
    iterations: int,
    want_grad: bool,
    name: str,
    group: str,
    sinkhorn_group: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss, row_stats, the teacher's potentials, the prior's gradient, all ranks' rows, tiles."""
    a, t, c = (UnitRows(x, name).rows for x in (anchors, targets, prototypes))
    scores, teacher = None, (t, c)
    if _by_columns(a, inv_temperature, name) and is_one_tile(t, c):
        scores = torch.mm(c, t.t())  # one product for potentials and targets
        teacher = scores.t().contiguous(), None  # type: ignore[assignment]
    row, col = _potentials(*teacher, scale, iterations, name, sinkhorn_group)
    crops = _crops(a, t, c, scale, row, col, inv_temperature, name)
    crops.teachers.scores = scores
    rows_, log_mass, cache = crops.forward(_kept(anchors, prototypes, want_grad))
    total, count = rows_[3].sum(), None
    if group:
        both = torch.stack([total, total.new_full((), len(a))])
        total, count = _distributed.all_reduce(both, "sum", group)
        log_mass = _distributed.log_sum_exp(log_mass, group)
    number: Any = len(a) if count is None else count
    kl, prior = divergence(log_mass, number, log_prior, reverse, prior_weight)
    crops.finish_kept(cache, rows_, prior)
    loss = (total / number + kl).to(product_dtype(anchors))
    outputs: Any = loss, rows_, row, col, prior, count, cache
    return outputs


class MSN(ClosedForm):
    """As `msn_forward`; only the loss is for the caller."""

    run = msn_forward

    @staticmethod
    def keep(ctx, inputs, outputs):
        anchors, targets, prototypes, inv_temperature, scale = inputs[:5]
        ctx.numbers = inv_temperature, scale, *inputs[-3:-1]
        ctx.save_for_backward(anchors, targets, prototypes, *outputs[1:])

    @staticmethod
    def backward(ctx, d_loss):
        anchors, targets, prototypes, *statistics, count, cache = ctx.saved_tensors
        inv_temperature, scale, name, group = ctx.numbers
        d_loss, factor = upstream(d_loss, count, len(anchors), group)
        need_anchors, _, need_prototypes = ctx.needs_input_grad[:3]
        d_anchors, d_prototypes = msn_backward(
            anchors, targets, prototypes, inv_temperature, scale, *statistics, cache, d_loss,
            factor, need_anchors, need_prototypes, name,
        )  # fmt: skip
        return d_anchors, None, d_prototypes


def _fake_backward(anchors, targets, prototypes, *rest):
    need_anchors, need_prototypes = rest[-3:-1]
    d_anchors = torch.empty_like(anchors) if need_anchors else anchors.new_empty(0)
    return d_anchors, torch.empty_like(prototypes) if need_prototypes else anchors.new_empty(0)


@operator(_fake_backward)
def msn_backward(
    anchors: Tensor,  # (V N, D)
    targets: Tensor,  # (N, D)
    prototypes: Tensor,  # (K, D)
    inv_temperature: float,
    scale: float,
    row_stats: Tensor,  # (4, V N)
    row: Tensor,  # (N,)
    col: Tensor,  # (K,)
    prior: Tensor,  # (2, K)
    cache: Tensor,  # (kept, K)
    d_loss: Tensor,  # 0-d
    factor: float,
    need_anchors: bool,
    need_prototypes: bool,
    name: str,
) -> tuple[Tensor, Tensor]:
    """(d_anchors, d_prototypes); None for what is not needed."""
    a, t, c = (UnitRows(x, name) for x in (anchors, targets, prototypes))
    crops = _crops(a.rows, t.rows, c.rows, scale, row, col, inv_temperature, name)
    d_a, d_c = crops.backward(
        cache, row_stats, prior, d_loss, factor, need_anchors, need_prototypes
    )
    gradients: Any = (
        None if d_a is None else a.backward(d_a),
        None if d_c is None else c.backward(d_c),
    )
    return gradients


def _by_columns(a: Tensor, inv_temperature: float, name: str) -> bool:
    return name == "native" and not a.is_cuda and inv_temperature <= NARROW  # >= |logits|


def _potentials(
    scores: Tensor, prototypes: Tensor | None, scale: float, iterations: int, name: str, group: str
) -> tuple[Tensor, Tensor]:
    if iterations:
        return sinkhorn_potentials(scores, prototypes, scale, None, iterations, True, name, group)
    columns = scores.shape[1] if prototypes is None else len(prototypes)
    zeros = scores.new_zeros(columns, dtype=torch.float64)
    return softmax_potential(scores, prototypes, scale, None, name), zeros


def _crops(a, t, c, scale, row, col, inv_temperature, name) -> Crops:
    teacher = Targets(None, t, c, scale, row, col, name)
    teachers = Teachers([teacher], len(a) // len(t), False, name)
    kind = ColumnCrops if _by_columns(a, inv_temperature, name) else Crops
    return kind(a, c, teachers, inv_temperature)


def _kept(anchors: Tensor, prototypes: Tensor, want_grad: bool) -> int:
    """Rows of d_logits kept from forward to backward: the bytes of inputs and gradients."""
    budget = 2 * nbytes(anchors, prototypes)
    return kept_rows(budget, anchors, prototypes.shape[0]) if want_grad else 0
