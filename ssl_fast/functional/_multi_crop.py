"""The operators behind `multi_crop_cross_entropy`, from embeddings and from logits."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _distributed, _logit_crops
from ._autograd import ClosedForm, scaled
from ._column_crops import ColumnCrops
from ._crops import Crops, Teachers
from ._operator import operator
from ._stats import Targets, loss_factor, upstream
from ._tiles import product_dtype


def assemble(fields: Sequence[Any], scales: Sequence[float], students: int, skip_same: bool, name):
    """The `Teachers` of operators' arguments."""
    targets = []
    for t, scale in enumerate(scales):
        values, z, prototypes, row, col = (_present(f) for f in fields[5 * t : 5 * t + 5])
        targets.append(Targets(values, z, prototypes, scale or None, row, col, name))
    return Teachers(targets, students, skip_same, name)


def _present(field: Tensor | None) -> Tensor | None:
    return field if field is not None and field.numel() else None


def reduced(
    losses: Tensor, rows: int, pairs: int, like: Tensor, group: str, reduction: str = "mean"
) -> Any:
    """(loss, rows over all ranks or None) from the rows' losses."""
    total, count = losses.sum(), None
    if group:
        both = torch.stack([total, total.new_full((), rows)])
        total, count = _distributed.all_reduce(both, "sum", group)
    if reduction == "mean":
        total = total / ((rows if count is None else count) * pairs)
    return total.to(product_dtype(like)), count


class LinearCrops(ClosedForm):
    """(loss, rows of all ranks, d_x and d_prototypes); with a group of the pairs' summed losses."""

    @staticmethod
    def forward(x, prototypes, views, inv_temperature, scales, skip_same, reduction, need_x,
                need_prototypes, name, group, *fields):  # fmt: skip
        return multi_crop_forward(
            x, prototypes, list(fields), views, inv_temperature, scales, skip_same, reduction,
            need_x, need_prototypes, name, group,
        )  # fmt: skip

    @staticmethod
    def keep(ctx, inputs, outputs):
        x, prototypes, views, _, scales, skip_same, reduction, _, _, _, group = inputs[:11]
        terms = _terms(pairs(views, len(scales), skip_same), reduction)
        ctx.numbers = terms, x.shape[0] // views, group, reduction
        ctx.save_for_backward(x, prototypes, *outputs[1:])

    @staticmethod
    def backward(ctx, d_loss):
        x, _, count, *gradients = ctx.saved_tensors  # x for its graph: a second time is refused
        terms, rows, group, reduction = ctx.numbers
        if group:
            d_loss, factor = upstream(d_loss, count, rows, group, reduction)
            d_loss = d_loss * (factor / terms)
        return scaled(gradients, d_loss, ctx.needs_input_grad, (x, x))


def _terms(pairs: int, reduction: str) -> int:
    """Losses of a sample that the mean is over."""
    return pairs if reduction == "mean" else 1


def pairs(students: int, teachers: int, skip_same: bool) -> int:
    """How many pairs of crops the mean is over."""
    return students * teachers - (min(students, teachers) if skip_same else 0)


def _fake_linear(x, prototypes, fields, views, inv_temperature, scales, skip_same, reduction,
                 need_x, need_prototypes, name, group):  # fmt: skip
    dtype = product_dtype(x)
    return (
        x.new_empty((), dtype=dtype),
        x.new_empty((), dtype=torch.float64) if group else x.new_empty(0),
        x.new_empty(x.shape, dtype=dtype) if need_x else x.new_empty(0),
        x.new_empty(prototypes.shape, dtype=dtype) if need_prototypes else x.new_empty(0),
    )


@operator(_fake_linear)
def multi_crop_forward(
    x: Tensor,  # (V N, D), crop by crop
    prototypes: Tensor,  # (K, D)
    fields: list[Tensor | None],
    views: int,
    inv_temperature: float,
    scales: list[float],
    skip_same: bool,
    reduction: str,
    need_x: bool,
    need_prototypes: bool,
    name: str,
    group: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss, all ranks' rows, and its gradients: it is one number, no tile is needed again.

    With a group, the gradients of the summed losses: the ranks' rows are counted with the loss.
    """
    teachers = assemble(fields, scales, views, skip_same, name)
    crops = _crops(x, prototypes, teachers, inv_temperature)
    terms = _terms(teachers.pairs, reduction)
    factor = 1.0 if group else loss_factor(reduction, False, crops.samples) / terms
    row_stats, d_x, d_prototypes = crops.gradients(factor, need_x, need_prototypes)
    loss, count = reduced(row_stats[3], crops.samples, teachers.pairs, x, group, reduction)
    outputs: Any = loss, count, d_x, d_prototypes
    return outputs


def _crops(x: Tensor, prototypes: Tensor, teachers: Teachers, inv_temperature: float) -> Crops:
    """Columns where several views share the tiles of targets and of logits."""
    on_cpu = teachers.name == "native" and not x.is_cuda and x.dtype == product_dtype(x)
    columns = on_cpu and len(teachers.sets) > 1
    return (ColumnCrops if columns else Crops)(x, prototypes, teachers, inv_temperature)


class LogitCrops(ClosedForm):
    """(loss, row_stats, rows of all ranks) of students given as logits."""

    @staticmethod
    def forward(inv_temperature, scales, skip_same, name, group, views, *tensors):
        students, fields = list(tensors[:views]), list(tensors[views:])
        return multi_crop_logits_forward(
            students[0], students[1:], fields, inv_temperature, scales, skip_same, name, group
        )

    @staticmethod
    def keep(ctx, inputs, outputs):
        ctx.numbers = inputs[:6]
        ctx.save_for_backward(*outputs[1:], *inputs[6:])

    @staticmethod
    def backward(ctx, d_loss):
        inv_temperature, scales, skip_same, name, group, views = ctx.numbers
        row_stats, count, *tensors = ctx.saved_tensors
        students, fields = tensors[:views], tensors[views:]
        d_loss, factor = upstream(d_loss, count, len(students[0]), group)
        gradients = multi_crop_logits_backward(
            students[0], students[1:], fields, inv_temperature, scales, skip_same, row_stats,
            d_loss, factor, name,
        )  # fmt: skip
        return *(None,) * 6, *gradients


def _fake_logits(first, others, fields, inv_temperature, scales, skip_same, name, group):
    return (
        first.new_empty((), dtype=product_dtype(first)),
        first.new_empty((4, 1 + len(others), first.shape[0]), dtype=torch.float64),
        first.new_empty((), dtype=torch.float64) if group else first.new_empty(0),
    )


@operator(_fake_logits)
def multi_crop_logits_forward(
    first: Tensor,  # (N, K)
    others: list[Tensor],  # each (N, K)
    fields: list[Tensor | None],
    inv_temperature: float,
    scales: list[float],
    skip_same: bool,
    name: str,
    group: str,
) -> tuple[Tensor, Tensor, Tensor]:
    students = [first, *others]
    teachers = assemble(fields, scales, len(students), skip_same, name)
    row_stats = _logit_crops.forward(students, teachers, inv_temperature)
    loss, count = reduced(row_stats[3], first.shape[0], teachers.pairs, first, group)
    return loss, row_stats, count


def _fake_logits_backward(first, others, *_):
    return [student.new_empty(student.shape) for student in (first, *others)]


@operator(_fake_logits_backward)
def multi_crop_logits_backward(
    first: Tensor,  # (N, K)
    others: list[Tensor],
    fields: list[Tensor | None],
    inv_temperature: float,
    scales: list[float],
    skip_same: bool,
    row_stats: Tensor,  # (4, V, N)
    d_loss: Tensor,  # 0-d
    factor: float,
    name: str,
) -> list[Tensor]:
    """d_logits of every student, contiguous."""
    students = [first, *others]
    teachers = assemble(fields, scales, len(students), skip_same, name)
    factor /= teachers.pairs
    return _logit_crops.backward(students, teachers, inv_temperature, row_stats, d_loss, factor)
