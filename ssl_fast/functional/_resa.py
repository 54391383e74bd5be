"""Behind `ReSALoss`: the encodings' assignment, and every pair's loss against it.

Where one backend has both, one operator takes the symmetric losses and their gradients: scores of
one tile live as long as the call, and Python runs once for all, since products leave its caches
cold. Elsewhere `Assignment.sinkhorn` and `linear_soft_cross_entropy` say the same.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backend
from . import _check
from ._autograd import ClosedForm, apply, scaled
from ._distributed import gather
from ._linear_symmetric import symmetric_loss
from ._operator import fake_gradient, operator
from ._stats import Targets
from ._tiles import is_no_larger, is_one_tile, product, product_dtype
from .assignment import Assignment
from .cross_entropy import linear_soft_cross_entropy
from .sinkhorn import sinkhorn_potentials


def resa(
    embeddings: Sequence[Tensor],  # each (N, D)
    momentum_embeddings: Sequence[Tensor],  # each (N, D)
    pairs: Sequence[tuple[int, int]],  # of an embedding and a momentum embedding
    encodings: Tensor,  # (N, H)
    momentum_encodings: Tensor,  # (N, H)
    *,
    temperature: float,
    epsilon: float,
    iterations: int,
    symmetric: bool,
    group: Any,
) -> Tensor:
    """The mean over pairs of the cross-entropy against the encodings' assignment."""
    name = _check.group_name(group)
    encodings = _check.detached("encodings", encodings)
    momentum = gather(_check.detached("momentum_encodings", momentum_encodings), name)
    keys = [gather(view, name) for view in momentum_embeddings]
    _check.matrix("embeddings[0]", embeddings[0])
    if symmetric and (kernels := _one_backend(embeddings[0], encodings)):
        numbers = 1 / temperature, 1 / epsilon, iterations
        return _at_once(embeddings, keys, pairs, encodings, momentum, *numbers, kernels, name)
    assignment = Assignment.sinkhorn(
        (encodings, momentum), epsilon=epsilon, iterations=iterations, group=group
    )
    options: Any = {"temperature": temperature, "symmetric": symmetric, "group": group}
    losses = [
        linear_soft_cross_entropy(embeddings[q], keys[v], assignment, **options) for q, v in pairs
    ]
    return losses[0] if len(losses) == 1 else torch.stack(losses).mean()


def _one_backend(x: Tensor, encodings: Tensor) -> str:
    """The backend of both, or "" where there are two or it forms tiles on its own."""
    name = backend.select("linear_cross_entropy", x.device, x.dtype)
    same = name == backend.select("sinkhorn", encodings.device, encodings.dtype)
    return name if same and name != "triton" else ""


def _at_once(
    embeddings: Sequence[Tensor],
    keys: Sequence[Tensor],  # each (M, D), M rows of all ranks
    pairs: Sequence[tuple[int, int]],
    encodings: Tensor,
    momentum: Tensor,  # (M, H)
    inv_temperature: float,
    scale: float,
    iterations: int,
    name: str,
    group: str,
) -> Tensor:
    encodings, momentum = _check.autocast(encodings, momentum)
    _check.factors("encodings", encodings, "momentum_encodings", momentum)
    views = [_check.rows_contiguous(view) for view in _check.autocast(*embeddings, *keys)]
    first, second = [q for q, _ in pairs], [len(embeddings) + v for _, v in pairs]
    rows = encodings.shape[0], momentum.shape[0]
    for q, v in zip(first, second, strict=True):
        _check_pair(views[q], views[v], rows, group)
    _check.device("encodings", encodings, "embeddings", views[0].device)
    paired = {*first, *second}
    views = [view if i in paired else view.detach() for i, view in enumerate(views)]
    needs = [torch.is_grad_enabled() and view.requires_grad for view in views]
    return apply(
        _Resa, first, second, _check.rows_contiguous(encodings), _check.rows_contiguous(momentum),
        inv_temperature, scale, iterations, needs, name, group, *views,
    )  # fmt: skip


def _check_pair(x: Tensor, key: Tensor, rows: tuple[int, int], group: str) -> None:
    _check.factors("an embedding", x, "a momentum embedding", key)
    came = x.shape[0], key.shape[0]
    if came != rows:
        raise ValueError(
            f"embeddings have {came} rows, online and momentum, but encodings have {rows}: pass "
            "those of the same samples"
        )
    if not group and came[0] != came[1]:
        raise ValueError(f"symmetric=True needs square logits, got {came}")


class _Resa(ClosedForm):
    """(loss, gradients for d_loss = 1) of the views."""

    @staticmethod
    def forward(first, second, encodings, momentum, inv_temperature, scale, iterations, needs, name,
                group, *views):  # fmt: skip
        outputs = resa_forward(
            encodings, momentum, list(views), first, second, inv_temperature, scale, iterations,
            needs, name, group,
        )  # fmt: skip
        return tuple(outputs)

    @staticmethod
    def keep(ctx, inputs, outputs):
        ctx.save_for_backward(*inputs[10:], *outputs[1:])  # views for their types, and to refuse

    @staticmethod
    def backward(ctx, d_loss):
        held = ctx.saved_tensors
        views, gradients = held[: len(held) // 2], held[len(held) // 2 :]
        return *(None,) * 10, *scaled(gradients, d_loss, ctx.needs_input_grad[10:], views)


def _fake(encodings, momentum, views, first, second, inv_temperature, scale, iterations, needs,
          name, group):  # fmt: skip
    loss = views[0].new_empty((), dtype=product_dtype(views[0]))
    return [loss, *[fake_gradient(x, need) for x, need in zip(views, needs, strict=True)]]


@operator(_fake)
def resa_forward(
    encodings: Tensor,  # (N, H)
    momentum: Tensor,  # (M, H)
    views: list[Tensor],  # (N, D) or (M, D)
    first: list[int],  # of each pair, indices into views
    second: list[int],
    inv_temperature: float,
    scale: float,
    iterations: int,
    needs: list[bool],
    name: str,
    group: str,
) -> list[Tensor]:
    """The loss, and the gradients in `product_dtype`; None for what is not needed."""
    targets = _assigned(encodings, momentum, scale, iterations, views[0], name, group)
    total: Any = None
    gradients: list[Any] = [None] * len(views)
    for pair in zip(first, second, strict=True):
        x, weight = (views[i] for i in pair)
        need_x, need_weight = (needs[i] for i in pair)
        loss, *new = symmetric_loss(
            x, weight, inv_temperature, targets, "mean", need_x, need_weight, group, 1 / len(first)
        )
        total = loss if total is None else total + loss
        for i, g in zip(pair, new, strict=True):
            gradients[i] = g if gradients[i] is None else gradients[i].add_(g)
    return [total, *gradients]


def _assigned(encodings, momentum, scale, iterations, like, name, group) -> Targets:
    """The assignment, with its scores where they are one tile or no more than their factors."""
    values = None
    if is_one_tile(encodings, momentum) or is_no_larger(encodings, momentum):
        values = product(encodings, momentum)
    scores = (encodings, momentum) if values is None else (values, None)
    row, col = sinkhorn_potentials(*scores, scale, None, iterations, False, name, group)
    if values is not None and values.dtype != product_dtype(like):
        values = values.to(product_dtype(like))
    return Targets(values, encodings, momentum, scale, row, col, name)
