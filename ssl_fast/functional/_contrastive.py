"""The operators behind the contrastive losses. Kernels form log-sum-exps over negatives; here the
positives join them, and rows of unit norm get the gradient of the rows that they came from.

    loss_i = log(exp(lse_i) + exp(p_i)) - p_i,   share_i = exp(lse_i) / (exp(lse_i) + exp(p_i))
    dloss_i / dp_i = -share_i,                   dloss_i / dl_ij = share_i P_ij

Kept for backward: the inputs, some numbers a row, and `pull`, the gradient of lse_i, formed in the
forward visit. The negatives themselves are kept only where they need a gradient: a queue may take
the next keys before backward runs.
"""

from typing import Any

import torch
from torch import Tensor

from .. import backend
from . import _distributed
from ._autograd import ClosedForm
from ._norms import inverse_norms, through_norms, unit
from ._operator import operator
from ._stats import upstream
from ._tiles import product_dtype

# What is brought to unit norm.
NOTHING, ROWS, ALL = 0, 1, 2


def _fake_rows_forward(x, w, pair, inv_temperature, column_scale, pair_scale, lo, hi, normalize,
                       reduction, want_pull, name, group):  # fmt: skip
    wide, rows = product_dtype(x), x.shape[0]
    return (
        x.new_empty((rows,) if reduction == "none" else (), dtype=wide),
        x.new_empty(rows, dtype=torch.float64),
        x.new_empty(rows, dtype=torch.float64),
        x.new_empty(x.shape, dtype=wide) if want_pull else x.new_empty(0),
        x.new_empty((), dtype=torch.float64) if group else x.new_empty(0),
    )


@operator(_fake_rows_forward)
def contrastive_rows_forward(
    x: Tensor,  # (N, D)
    w: Tensor,  # (K, D) negatives
    pair: Tensor | None,  # (N, D) positives; without them a row's loss is lse_i
    inv_temperature: float,
    column_scale: Tensor | None,  # (K,)
    pair_scale: Tensor | None,  # (N,)
    lo: Tensor | None,  # (N,) columns lo_i <= j < hi_i are no negatives of row i
    hi: Tensor | None,
    normalize: int,
    reduction: str,
    want_pull: bool,
    name: str,
    group: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss, lse (N,) and share (N,) in float64, pull (N, D), and with a group all ranks' rows."""
    kernels = backend.implementation(name, "contrastive")
    a = inverse_norms(x) if normalize else None
    b = inverse_norms(w, x) if normalize == ALL else column_scale
    lse, pull = kernels.rows_forward(x, w, a, b, inv_temperature, lo, hi, want_pull)
    losses, share = lse, torch.ones_like(lse)
    if pair is not None:
        c = inverse_norms(pair) if normalize else pair_scale
        products = (unit(x, a) * unit(pair, c)).sum(1).double()
        gap = lse - products * inv_temperature
        losses, share = torch.logaddexp(gap, gap.new_zeros(())), gap.sigmoid()
    count = _distributed.all_reduce(lse.new_full((), len(lse)), "sum", group) if group else None
    if reduction != "none":
        losses = _distributed.all_reduce(losses.sum(), "sum", group)
        if reduction == "mean":
            losses = losses / (len(lse) if count is None else count)
    outputs: Any = losses.to(product_dtype(x)), lse, share, pull, count
    return outputs


def _fake_rows_backward(x, w, pair, *rest: Any):
    need_x, need_w, need_pair = rest[-5:-2]
    return tuple(
        torch.empty_like(t) if need else x.new_empty(0)
        for t, need in ((x, need_x), (w, need_w), (pair, need_pair))
    )


@operator(_fake_rows_backward)
def contrastive_rows_backward(
    x: Tensor,  # (N, D)
    w: Tensor | None,  # (K, D), where it needs a gradient
    pair: Tensor | None,  # (N, D)
    inv_temperature: float,
    column_scale: Tensor | None,
    pair_scale: Tensor | None,
    lo: Tensor | None,
    hi: Tensor | None,
    normalize: int,
    lse: Tensor,  # (N,)
    share: Tensor,  # (N,)
    pull: Tensor,  # (N, D)
    d_loss: Tensor,  # 0-d, or (N,)
    factor: float,
    need_x: bool,
    need_w: bool,
    need_pair: bool,
    paired: bool,  # pair is w: d_w has both gradients, whose parts may be beyond half's range
    name: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """(d_x, d_w, d_pair); None for what is not needed."""
    a = inverse_norms(x) if normalize else None
    weight = d_loss.double() * (factor * inv_temperature) * share  # (N,)
    narrow = weight.to(product_dtype(x))[:, None]
    d_x = d_w = d_pair = None
    if need_x or need_pair:
        c = pair_scale if pair is None or not normalize else inverse_norms(pair)
    if need_x:
        d_x = pull if pair is None else pull - unit(pair, c)
        d_x = d_x * narrow
        d_x = d_x.to(x.dtype) if a is None else through_norms(d_x, x, a)
    if need_pair:
        assert pair is not None
        d_pair = unit(x, a) * -narrow
        if normalize and c is not None:
            d_pair = through_norms(d_pair, pair, c)
        else:
            d_pair = (d_pair if c is None else d_pair * c[:, None]).to(pair.dtype)
    if need_w:
        assert w is not None
        kernels = backend.implementation(name, "contrastive")
        b = inverse_norms(w, x) if normalize == ALL else column_scale
        d_w = kernels.rows_backward(x, w, a, b, inv_temperature, lo, hi, lse, weight)
        if paired:
            d_w -= unit(x, a) * narrow
        if normalize == ALL and b is not None:
            d_w = through_norms(d_w, w, b)
        else:
            d_w = (d_w if b is None else d_w * b[:, None]).to(w.dtype)
    outputs: Any = d_x, d_w, d_pair
    return outputs


class Rows(ClosedForm):
    """(loss, lse, share, pull, rows) of x, w, pair; only the loss is for the caller."""

    @staticmethod
    def forward(*args):
        return contrastive_rows_forward(*args[:-2])

    @staticmethod
    def keep(ctx, inputs, outputs):
        x, w, pair, inv_temperature, *vectors, normalize, reduction, _, name, group = inputs[:-2]
        want_w, paired = inputs[-2:]
        ctx.numbers = inv_temperature, normalize, reduction, paired, name, group
        _, lse, share, pull, count = outputs
        w = w if want_w else None
        ctx.save_for_backward(x, w, pair, *vectors, lse, share, pull, count)

    @staticmethod
    def backward(ctx, d_loss):
        x, w, pair, *vectors, lse, share, pull, count = ctx.saved_tensors
        inv_temperature, normalize, reduction, paired, name, group = ctx.numbers
        d_loss, factor = upstream(d_loss, count, len(x), group, reduction)
        need_x, need_w, need_pair = ctx.needs_input_grad[:3]
        needs = need_x, need_w, need_pair and not paired
        d_x, d_w, d_pair = contrastive_rows_backward(
            x, w, pair, inv_temperature, *vectors, normalize, lse, share, pull, d_loss, factor,
            *needs, paired, name,
        )  # fmt: skip
        return d_x, d_w, None if paired else d_pair
