"""The mean assignment itself, for a function of it that is not `prior_kl`'s.

p = mean_i softmax(<a_i, c> / temperature),   rows of a and c at unit norm
"""

import math
from typing import Any

import torch
from torch import Tensor

from .. import backend
from . import _check, _distributed
from ._autograd import OfTwo, apply
from ._linear_cross_entropy import Products
from ._msn import UnitRows
from ._operator import operator
from ._tiles import joined, product, product_dtype, row_slices


def mean_softmax(
    anchors: Tensor, prototypes: Tensor, *, temperature: float, group: Any = None
) -> Tensor:
    """(K,), float32 or better, of anchors (N, D) and prototypes (K, D), both normalised here.

    With `group` the mean over all ranks; gradients as everywhere, for DDP's mean over ranks.
    Cost: one product forward, three backward; N numbers kept beside the inputs.
    """
    anchors, prototypes = _check.autocast(anchors, prototypes)
    _check.factors("anchors", anchors, "prototypes", prototypes)
    inv_temperature = 1.0 / _check.positive("temperature", temperature)
    name = backend.select("prior", anchors.device, anchors.dtype)
    return apply(_MeanSoftmax, anchors, prototypes, inv_temperature, name, _check.group_name(group))


def _fake_forward(anchors: Tensor, prototypes: Tensor, *rest: Any) -> Any:
    double, group = torch.float64, rest[-1]
    return (
        anchors.new_empty(prototypes.shape[0], dtype=product_dtype(anchors)),
        anchors.new_empty((4, anchors.shape[0]), dtype=double),
        anchors.new_empty((), dtype=double) if group else anchors.new_empty(0),
    )


@operator(_fake_forward)
def mean_softmax_forward(
    anchors: Tensor,  # (N, D)
    prototypes: Tensor,  # (K, D)
    inv_temperature: float,
    name: str,
    group: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (K,), row_stats (4, N), and with a group the rows of all ranks."""
    kernels = backend.implementation(name, "prior")
    a, c = (UnitRows(x, name).rows for x in (anchors, prototypes))
    tiles = row_slices(0, len(a), len(c))
    parts = [kernels.forward(product(a[rows], c), inv_temperature, None) for rows in tiles]
    _, log_mass = parts[0]
    if len(parts) > 1:
        log_mass = torch.logsumexp(torch.stack([mass for _, mass in parts]), 0)
    count: Any = None
    if group:
        log_mass = _distributed.log_sum_exp(log_mass, group)
        count = _distributed.all_reduce(log_mass.new_full((), len(a)), "sum", group)
    mean = (log_mass - (math.log(len(a)) if count is None else count.log())).exp()
    outputs: Any = mean.to(product_dtype(anchors)), joined([s for s, _ in parts], 1), count
    return outputs


class _MeanSoftmax(OfTwo):
    """(mean, row_stats, rows of all ranks); only the mean is for the caller."""

    run = mean_softmax_forward

    @staticmethod
    def backward(ctx, d_mean):
        anchors, prototypes, row_stats, count = ctx.saved_tensors
        inv_temperature, name, group = ctx.numbers
        weight = d_mean.double() * (
            _distributed.world_size(group) / count if group else 1 / len(anchors)
        )
        return mean_softmax_backward(
            anchors, prototypes, inv_temperature, row_stats, weight, *ctx.needs_input_grad[:2], name
        )


def _fake_backward(anchors: Tensor, prototypes: Tensor, *rest: Any) -> Any:
    pairs = zip((anchors, prototypes), rest[-3:-1], strict=True)
    return tuple(torch.empty_like(x) if n else x.new_empty(0) for x, n in pairs)


@operator(_fake_backward)
def mean_softmax_backward(
    anchors: Tensor,  # (N, D)
    prototypes: Tensor,  # (K, D)
    inv_temperature: float,
    row_stats: Tensor,  # (4, N)
    weight: Tensor,  # (K,) float64, d_mean over the number of rows
    need_anchors: bool,
    need_prototypes: bool,
    name: str,
) -> tuple[Tensor, Tensor]:
    """(d_anchors, d_prototypes); None for what is not needed."""
    kernels = backend.implementation(name, "prior")
    a, c = (UnitRows(x, name) for x in (anchors, prototypes))
    prior = torch.stack([weight, torch.zeros_like(weight)])
    sums = Products(a.rows, c.rows, need_anchors, need_prototypes)
    for rows in row_slices(0, len(anchors), len(prototypes)):
        logits = product(a.rows[rows], c.rows)
        stats = row_stats[:, rows]
        sums.add(rows, kernels.backward(
            logits, inv_temperature, None, stats, prior, None, 1.0, logits
        ))  # fmt: skip
    d_a, d_c = sums.result()
    gradients: Any = (
        None if d_a is None else a.backward(d_a),
        None if d_c is None else c.backward(d_c),
    )
    return gradients
