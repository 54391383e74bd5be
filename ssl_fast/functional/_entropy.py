"""Mean entropy of the anchors' predictions (MSN's third term), by tiles, formed twice, kept never.

H_i = -sum_k P_ik log P_ik,   P = softmax(l),   l = cosines / temperature
dH_i / dl_ik = -P_ik (log P_ik + H_i)
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from . import _check, _distributed
from ._autograd import OfTwo, apply
from ._linear_cross_entropy import Products
from ._operator import operator
from ._tiles import product, product_dtype, row_slices
from ._unit import UnitRows

_PLAIN = "reference"


def mean_entropy(
    anchors: Tensor, prototypes: Tensor, *, temperature: float, group: Any = None
) -> Tensor:
    """The mean over the anchors (N, D) of all ranks, 0-d; prototypes (K, D), both normalised here.

    Cost: one product forward, three backward; N numbers kept beside the inputs. Plain PyTorch on
    every backend.
    """
    anchors, prototypes = _check.autocast(anchors, prototypes)
    _check.factors("anchors", anchors, "prototypes", prototypes)
    inv_temperature = 1.0 / _check.positive("temperature", temperature)
    name = _check.group_name(group)
    return apply(_MeanEntropy, anchors, prototypes, inv_temperature, name)


def _fake_forward(anchors: Tensor, *_: Any) -> Any:
    wide = product_dtype(anchors)
    return (
        anchors.new_empty((), dtype=wide),
        anchors.new_empty(anchors.shape[0], dtype=wide),
        anchors.new_empty((), dtype=torch.float64),
    )


@operator(_fake_forward)
def entropy_forward(
    anchors: Tensor,  # (N, D)
    prototypes: Tensor,  # (K, D)
    inv_temperature: float,
    group: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean over all ranks, (N,) entropies of this rank's rows, and the rows of all ranks."""
    a, c = (UnitRows(x, _PLAIN).rows for x in (anchors, prototypes))
    entropy = torch.cat(
        [-(log_p.exp() * log_p).sum(1) for _, log_p in _log_softmax(a, c, inv_temperature)]
    )
    total = entropy.sum(dtype=torch.float64)
    both = torch.stack([total, torch.full_like(total, len(a))])
    total, count = _distributed.all_reduce(both, "sum", group).unbind()
    return (total / count).to(entropy.dtype), entropy, count.clone()


class _MeanEntropy(OfTwo):
    """(mean, entropies of the rows, rows of all ranks); only the mean is for the caller."""

    run = entropy_forward

    @staticmethod
    def backward(ctx, d_mean):
        anchors, prototypes, entropy, count = ctx.saved_tensors
        inv_temperature, group = ctx.numbers
        d_rows = (d_mean * (_distributed.world_size(group) / count)).to(entropy.dtype)
        need = ctx.needs_input_grad[:2]
        return entropy_backward(anchors, prototypes, inv_temperature, entropy, d_rows, *need)


def _fake_backward(anchors: Tensor, prototypes: Tensor, *rest: Any) -> Any:
    need = rest[-2:]
    pairs = zip((anchors, prototypes), need, strict=True)
    return tuple(torch.empty_like(x) if n else x.new_empty(0) for x, n in pairs)


@operator(_fake_backward)
def entropy_backward(
    anchors: Tensor,  # (N, D)
    prototypes: Tensor,  # (K, D)
    inv_temperature: float,
    entropy: Tensor,  # (N,)
    d_rows: Tensor,  # 0-d, of each row's entropy
    need_anchors: bool,
    need_prototypes: bool,
) -> tuple[Tensor, Tensor]:
    """(d_anchors, d_prototypes); None for what is not needed."""
    a, c = (UnitRows(x, _PLAIN) for x in (anchors, prototypes))
    sums = Products(
        a.rows, c.rows, need_anchors, need_prototypes, d_loss=d_rows, factor=inv_temperature
    )
    for rows, log_p in _log_softmax(a.rows, c.rows, inv_temperature):
        sums.add(rows, log_p.exp().mul_(log_p.add_(entropy[rows, None])).neg_())
    d_a, d_c = sums.result()
    gradients: Any = (
        None if d_a is None else a.backward(d_a),
        None if d_c is None else c.backward(d_c),
    )
    return gradients


def _log_softmax(a: Tensor, c: Tensor, inv_temperature: float) -> Iterator[tuple[slice, Tensor]]:
    for rows in row_slices(0, a.shape[0], c.shape[0]):
        yield rows, product(a[rows], c).mul_(inv_temperature).log_softmax(1)
