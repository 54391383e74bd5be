"""Contrastive losses over ranks: this rank's rows against the rows of all."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import backend
from . import _distributed
from ._autograd import apply
from ._contrastive import ALL, NOTHING, Rows
from ._norms import normalized, positives
from ._tiles import product_dtype


def first_row(rows: Tensor, group: str) -> Tensor | int:
    """The index of this rank's first row among the rows of all ranks; no synchronisation."""
    if not group:
        return 0
    counts = rows.new_zeros(_distributed.world_size(group), dtype=torch.int64)
    rank = _distributed.rank(group)
    counts[rank] = len(rows)
    return _distributed.all_reduce(counts, "sum", group)[:rank].sum()


def pairs_over_ranks(
    views: Sequence[Tensor], weights: Tensor | None, inv_temperature: float, normalize: bool,
    decoupled: bool, group: str, local: bool = False,
) -> Tensor:  # fmt: skip
    """`nt_xent` and its kin: the positives are this rank's, the negatives everyone's.

    The mean over all ranks' rows, or over this rank's alone where `local`.
    """
    samples, count = len(views[0]), len(views)
    own = torch.stack(list(views), 1)
    x = own.flatten(0, 1)
    everyone = _distributed.gather(x, group)
    if len(everyone) < 2 * count:
        raise ValueError("one sample alone has no samples to be told from: use a larger batch")
    sample = first_row(own, group) + torch.arange(samples, device=x.device)
    lo = sample.repeat_interleave(count) * count
    negatives = apply(
        Rows, x, everyone, None, inv_temperature, None, None, lo, lo + count,
        ALL if normalize else NOTHING, "none", x.requires_grad,
        backend.select("contrastive", x.device, x.dtype), "", everyone.requires_grad,
        False,
    ).double()  # fmt: skip
    unit = normalized(own.double()) if normalize else own.double()
    own_logits = positives(unit, inv_temperature)[0].flatten()
    if decoupled:
        weights = own_logits.new_ones(()) if weights is None else weights.to(own_logits).flatten()
        losses = negatives - weights * own_logits
    else:
        losses = torch.logaddexp(negatives - own_logits, own_logits.new_zeros(()))
    loss = losses.mean() if local else _MeanOverRanks.apply(losses.sum(), len(x), group)
    return loss.to(product_dtype(x))


class _MeanOverRanks(torch.autograd.Function):
    """sum over ranks / rows over ranks; the gradient times the ranks' number, as DDP divides."""

    @staticmethod
    def forward(ctx, total, rows, group):
        both = torch.stack([total, total.new_full((), rows)])
        total, ctx.count = _distributed.all_reduce(both, "sum", group)
        ctx.world = _distributed.world_size(group)
        return total / ctx.count

    @staticmethod
    def backward(ctx, d_mean):
        return d_mean * ctx.world / ctx.count, None, None
