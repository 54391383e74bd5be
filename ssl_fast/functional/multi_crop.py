"""Every student crop against every teacher crop: SwAV's and DINO's pairing in one call."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backend
from . import _check
from ._autograd import apply
from ._multi_crop import LinearCrops, LogitCrops, pairs
from ._tiles import product_dtype
from .assignment import Assignment


def multi_crop_cross_entropy(
    students: Sequence[Tensor],
    teachers: Sequence[Assignment],
    prototypes: Tensor | None,
    *,
    temperature: float,
    skip_same: bool = True,
    group: Any = None,
) -> Tensor:
    """Mean over pairs of crops (teacher t, student s) of the cross-entropy, a mean over rows.

        loss = mean_(t, s) mean_i [ a_ti LSE_k(l_sik) - sum_k q_tik l_sik ]
        l_s = students[s] @ prototypes.T / temperature,   a_ti = sum_k q_tik

    Args:
        students: crops, S tensors (N, D) of embeddings, or (N, K) logits with `prototypes=None`.
        teachers: T assignments of the same N samples to the same K prototypes.
        prototypes: (K, D), of the students' type; None where the students are logits.
        temperature: > 0, in units of the logits.
        skip_same: leave out the pairs t = s, which are one and the same crop: the teachers' crops
            come first among the students.
        group: process group, as in `soft_cross_entropy`.

    Returns:
        0-d; float32, float64 for float64 students. Gradients reach students and prototypes, in
        their types; differentiable once. With `group`, the prototypes are taken as replicated.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.

    Source: Caron et al. 2020 (SwAV), section 3.3 (facebookresearch/swav 06b1b7c: the mean over
        teachers of the mean over the other crops); Caron et al. 2021 (DINO), algorithm 1
        (facebookresearch/dino 7c446df).
    Cost: the targets of a tile of samples are formed once, summed, and serve every student; never
        stored. From embeddings: three products of 2 S N K D operations, all in the forward pass,
        because the result is one number: kept for backward are the gradients themselves, float32,
        and nothing that grows with N K. From logits: two reads and a write; kept are the inputs
        and 4 S N numbers.
    """
    students = _students(students, prototypes)
    shape = (students[0].shape[0], (students[0] if prototypes is None else prototypes).shape[-1])
    if prototypes is not None:
        (prototypes,) = _check.autocast(prototypes)
        for s, student in enumerate(students):
            _check.factors(f"students[{s}]", student, "prototypes", prototypes)
        shape = (shape[0], prototypes.shape[0])
    fields, scales = _teachers(teachers, shape, students[0])
    if pairs(len(students), len(scales), skip_same) == 0:
        raise ValueError(
            "no pair of crops is left: one student and one teacher are the same crop with "
            "skip_same=True; pass more crops, or skip_same=False"
        )
    inv_temperature = 1.0 / _check.positive("temperature", temperature)
    group = _check.group_name(group)
    numbers = inv_temperature, scales, bool(skip_same)
    students = [_check.rows_contiguous(student) for student in students]
    if prototypes is None:
        name = backend.select("cross_entropy", students[0].device, students[0].dtype)
        return apply(LogitCrops, *numbers, name, group, len(students), *students, *fields)
    name = backend.select("linear_cross_entropy", students[0].device, students[0].dtype)
    x = torch.cat(students) if len(students) > 1 else students[0]
    prototypes = _check.rows_contiguous(prototypes)
    need = [torch.is_grad_enabled() and t.requires_grad for t in (x, prototypes)]
    numbers = *numbers, "mean", *need, name, group
    return apply(LinearCrops, x, prototypes, len(students), *numbers, *fields)


def _students(students: Any, prototypes: Any) -> list[Tensor]:
    _sequence("students", students, "tensors (N, D)" if prototypes is not None else "logits (N, K)")
    if prototypes is not None:
        students = _check.autocast(*students)
        _check.matrix("prototypes", prototypes)
    for s, student in enumerate(students):
        _check.matrix(f"students[{s}]", student)
        if student.shape != students[0].shape:
            raise ValueError(
                f"students[{s}] is {tuple(student.shape)}, but students[0] is "
                f"{tuple(students[0].shape)}: all crops hold the same samples"
            )
        _check.same(f"students[{s}]", student, "students[0]", students[0])
    return list(students)


def _teachers(
    teachers: Any, shape: tuple[int, int], like: Tensor
) -> tuple[list[Tensor | None], list[float]]:
    """Five fields a teacher, in one list; and 1 / epsilon of each, 0 for probabilities."""
    _sequence("teachers", teachers, "Assignments")
    fields: list[Tensor | None] = []
    for t, held in enumerate(teachers):
        if not isinstance(held, Assignment):
            raise TypeError(
                f"teachers[{t}] must be an Assignment, got {type(held).__name__}: make it by "
                "Assignment.sinkhorn, Assignment.softmax or Assignment.from_dense"
            )
        if held.shape != shape:
            raise ValueError(
                f"teachers[{t}] assigns {held.shape[0]} samples to {held.shape[1]} prototypes, "
                f"but the students are {shape[0]} samples and {shape[1]} prototypes"
            )
        _check.device(f"teachers[{t}]", held._any, "students[0]", like.device)
        values = held.unchanged().values
        if values is not None and values.dtype not in (like.dtype, product_dtype(like)):
            values = values.to(product_dtype(like))
        fields += [values, held.z, held.prototypes, held.row, held.col]
    if torch.compiler.is_compiling():  # dynamo takes no tensor twice: slices of one assignment
        fields = [None if field is None else field.view_as(field) for field in fields]
    return fields, [held.scale or 0.0 for held in teachers]


def _sequence(name: str, value: Any, of: str) -> None:
    if not isinstance(value, list | tuple):
        raise TypeError(f"{name} must be a list of {of}, got {type(value).__name__}")
    if not value:
        raise ValueError(f"{name} must be a list of at least one of {of}, got an empty one")
