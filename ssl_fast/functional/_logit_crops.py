"""Students given as logits, crops of the same samples, against the same teachers."""

import torch
from torch import Tensor

from .. import backend
from ._crops import Teachers
from ._tiles import TILE_BYTES


def forward(students: list[Tensor], teachers: Teachers, inv_temperature: float) -> Tensor:
    """row_stats (4, V, M) of students, V tensors (M, K)."""
    rows = students[0].shape[0]
    row_stats = students[0].new_empty((4, len(students), rows), dtype=torch.float64)
    views = _views(students, teachers)
    for own in _slices(students[0], teachers):
        views.forward(own, inv_temperature, row_stats[..., own])
    return row_stats


def backward(
    students: list[Tensor], teachers: Teachers, inv_temperature: float, row_stats: Tensor,
    d_loss: Tensor, factor: float,
) -> list[Tensor]:  # fmt: skip
    """d_logits of every student."""
    gradients = [student.new_empty(student.shape) for student in students]
    views = _views(students, teachers)
    for own in _slices(students[0], teachers):
        numbers = inv_temperature, row_stats[..., own], d_loss, factor
        views.backward(own, *numbers, _rows(gradients, own))
    return gradients


def _slices(like: Tensor, teachers: Teachers) -> list[slice]:
    """All samples at once where kernels read the teachers' scores as they are; else tiles."""
    rows, columns = like.shape
    at_hand = _on_cpu(like, teachers) and all(t.values is not None for t in teachers.targets)
    size = rows if at_hand else max(1, TILE_BYTES // (4 * columns))
    return [slice(first, min(first + size, rows)) for first in range(0, rows, size)]


def _views(students: list[Tensor], teachers: Teachers) -> "_OneByOne | _AtOnce":
    return (_AtOnce if _on_cpu(students[0], teachers) else _OneByOne)(students, teachers)


def _on_cpu(like: Tensor, teachers: Teachers) -> bool:
    return teachers.name == "native" and not like.is_cuda


def _rows(tensors: list[Tensor], own: slice) -> list[Tensor]:
    if own == slice(0, tensors[0].shape[0]):
        return tensors
    return [tensor[own] for tensor in tensors]


class _AtOnce:
    """All views in a call, their targets formed in it: the CPU's kernels."""

    def __init__(self, students: list[Tensor], teachers: Teachers):
        self.students, self.teachers = students, teachers
        self.kernels = backend.implementation("native", "crops")

    def forward(self, own, inv_temperature, row_stats) -> None:
        self.kernels.logits_forward(*self._arguments(own, inv_temperature), row_stats)

    def backward(self, own, inv_temperature, row_stats, d_loss, factor, out) -> None:
        arguments = self._arguments(own, inv_temperature)
        self.kernels.logits_backward(*arguments, row_stats, d_loss, factor, out)

    def _arguments(self, own: slice, inv_temperature: float) -> tuple:
        targets = [held.tile(own) for held in self.teachers.targets]
        return _rows(self.students, own), inv_temperature, targets, self.teachers.skip_same


class _OneByOne:
    """A call for every view, targets by tiles."""

    def __init__(self, students: list[Tensor], teachers: Teachers):
        self.students, self.teachers = students, teachers
        self.kernels = backend.implementation(teachers.name, "cross_entropy")

    def forward(self, own, inv_temperature, row_stats) -> None:
        for view, (logits, target) in enumerate(self._pairs(own)):
            part = self.kernels.forward(logits, inv_temperature, target, False, 1.0)[1]
            row_stats[:, view] = part

    def backward(self, own, inv_temperature, row_stats, d_loss, factor, out) -> None:
        for view, (logits, target) in enumerate(self._pairs(own)):
            self.kernels.backward(
                logits, inv_temperature, target, row_stats[:, view], None, d_loss, factor, out[view]
            )

    def _pairs(self, own: slice) -> zip:
        return zip(_rows(self.students, own), self.teachers.tile(own), strict=True)
