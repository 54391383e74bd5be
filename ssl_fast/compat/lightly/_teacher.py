"""Softmax teachers with a gradient: Lightly detaches none, and a caller may have forgotten to."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...functional import Assignment
from ...functional._autograd import ClosedForm, apply


def wants_gradient(teachers: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in teachers)


def with_teacher_gradient(
    loss: Tensor, teacher: Tensor, assignment: Assignment, logits: Tensor, weight: Tensor | float
) -> Tensor:
    """`loss` as it is, with the teacher's gradient beside the student's.

    Args:
        loss: a sum over rows of weight_i * cross-entropy(softmax(l_i), q_i), and more.
        teacher: (N, K) scores of the assignment q.
        assignment: q = softmax((teacher - center) / temperature).
        logits: (N, K) l, the sum over students, divided by their temperature.
        weight: a number, or (N, 1).

    d teacher = -weight * q * (l - <q, l>) / temperature: rows of q sum to one, so that the
    students' LSE drops out.
    """
    assert assignment.scale is not None
    with torch.no_grad():
        q = assignment.dense()
        mean = torch.linalg.vecdot(q, logits.to(q.dtype)).unsqueeze(1)
        gradient = q * (mean - logits) * (weight * assignment.scale)
    return apply(_Attach, loss, teacher, gradient.to(teacher.dtype))


class _Attach(ClosedForm):
    """The first argument; the second receives the third as its gradient."""

    @staticmethod
    def forward(loss, teacher, gradient):
        return (loss.view_as(loss),)

    @staticmethod
    def keep(ctx, inputs, outputs):
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx, d_loss):
        (gradient,) = ctx.saved_tensors
        return d_loss, (gradient * d_loss).to(gradient.dtype)
