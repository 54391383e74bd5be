"""A row against other rows: which operator forms the loss."""

from typing import Any

import torch
from torch import Tensor

from .. import backend
from . import _check
from ._autograd import apply
from ._contrastive import ALL, Rows
from ._contrastive_group import first_row
from ._contrastive_in_batch import InBatch, by_whole_rows
from ._contrastive_queue import Queue

_REDUCTIONS = ("mean", "sum", "none")


def rows_loss(
    x: Tensor,
    w: Tensor,
    pair: Tensor | None,
    temperature: float,
    *,
    normalize: int,
    without: Any = None,
    scales: tuple = (None, None),
    reduction: str = "mean",
    group: str = "",
    paired: bool = False,
) -> Tensor:
    _check.choice("reduction", reduction, _REDUCTIONS)
    inv_temperature = 1.0 / _check.positive("temperature", temperature)
    lo, hi = without or (None, None)
    want = torch.is_grad_enabled()
    return apply(
        Rows, _check.rows_contiguous(x), _check.rows_contiguous(w), pair, inv_temperature, *scales,
        lo, hi, normalize, reduction, want and x.requires_grad,
        backend.select("contrastive", x.device, x.dtype), group, want and w.requires_grad,
        paired,
    )  # fmt: skip


def queue_loss(
    query: Tensor,
    key: Tensor,
    negatives: Tensor,
    temperature: float,
    *,
    normalize: int,
    reduction: str = "mean",
    group: str = "",
) -> Tensor:
    """Row i's positive is key i, its negatives are those given."""
    _check.choice("reduction", reduction, _REDUCTIONS)
    want = torch.is_grad_enabled()
    name = backend.select("contrastive", query.device, query.dtype)
    on_cpu = name == "native" and not query.is_cuda
    if on_cpu and not group and reduction != "none" and not (want and negatives.requires_grad):
        inv_temperature = 1.0 / _check.positive("temperature", temperature)
        rows = (_check.rows_contiguous(x) for x in (query, key, negatives))
        wants = want and query.requires_grad, want and key.requires_grad
        return apply(Queue, *rows, inv_temperature, normalize, reduction, *wants, name)
    return rows_loss(query, negatives, key, temperature, normalize=normalize, reduction=reduction,
                     group=group)  # fmt: skip


def in_batch_loss(
    query: Tensor,
    key: Tensor,
    keys: Tensor,
    temperature: float,
    *,
    normalize: int,
    reduction: str = "mean",
    group: str = "",
    ranks: str = "",
) -> Tensor:
    """Row i's positive is key i, its negatives the other `keys`: `key` of all `ranks`.

    The loss is that of the rows of all `group`.
    """
    _check.choice("reduction", reduction, _REDUCTIONS)
    name = backend.select("contrastive", query.device, query.dtype)
    ranks = ranks or group
    if not ranks and reduction != "none" and name == "native" and by_whole_rows(query):
        inv_temperature = 1.0 / _check.positive("temperature", temperature)
        want = torch.is_grad_enabled()
        return apply(
            InBatch, _check.rows_contiguous(query), _check.rows_contiguous(key), inv_temperature,
            normalize == ALL, reduction, want and query.requires_grad, want and key.requires_grad,
            name,
        )  # fmt: skip
    paired = keys is key
    if torch.compiler.is_compiling():
        key = key.view_as(key)  # Dynamo takes no tensor twice
    lo = first_row(query, ranks) + torch.arange(len(query), device=query.device)
    return rows_loss(query, keys, key, temperature, without=(lo, lo + 1), normalize=normalize,
                     reduction=reduction, group=group, paired=paired)  # fmt: skip
