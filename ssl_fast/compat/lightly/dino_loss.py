"""`lightly.loss.dino_loss`."""

from __future__ import annotations

import torch
from torch import Tensor

from ...functional import multi_crop_cross_entropy
from ...functional._teacher import centered
from ._common import as_lightly
from ._teacher import wants_gradient, with_teacher_gradient
from .center import center_function, center_momentum, over_processes


class DINOLoss(torch.nn.Module):
    """DINO's self-distillation loss from logits, as Lightly's class of that name.

        loss = mean over teacher views t, student views s != t, of
               CE(softmax((teacher_t - center) / teacher temperature), student_s / student_temp)

    The center takes the teacher's logits in after each forward, in evaluation too. The teacher is
    not detached: pass logits from torch.no_grad().

    Args:
        output_dim: K.
        warmup_teacher_temp, teacher_temp, warmup_teacher_temp_epochs: a linear schedule of the
            teacher's temperature, used where `epoch` is passed.
        student_temp: temperature of the student.
        center_momentum: m in center <- m * center + (1 - m) * mean of the teacher's logits.
        center_mode: "mean" alone.

    Source: lightly 1.6.0 (the same in 1.5.26).
    """

    center: Tensor

    def __init__(
        self,
        output_dim: int = 65536,
        warmup_teacher_temp: float = 0.04,
        teacher_temp: float = 0.04,
        warmup_teacher_temp_epochs: int = 30,
        student_temp: float = 0.1,
        center_momentum: float = 0.9,
        center_mode: str = "mean",
    ) -> None:
        super().__init__()
        self.teacher_temp = teacher_temp
        self.student_temp = student_temp
        self._center_fn = center_function(center_mode)
        self.register_buffer("center", torch.zeros(1, 1, output_dim))
        self.center_momentum = center_momentum
        self.warmup_teacher_temp_epochs = warmup_teacher_temp_epochs
        self.teacher_temp_schedule = torch.linspace(
            warmup_teacher_temp, teacher_temp, warmup_teacher_temp_epochs
        )

    def forward(
        self,
        teacher_out: list[Tensor],
        student_out: list[Tensor],
        teacher_temp: float | None = None,
        epoch: int | None = None,
    ) -> Tensor:
        """The loss, 0-d.

        Args:
            teacher_out: T views (N, K) of teacher logits.
            student_out: S views (N, K), the first T of them those of the teacher.
            teacher_temp: instead of that of the constructor or the schedule.
            epoch: where the schedule stands.
        """
        terms = len(teacher_out) * len(student_out) - min(len(teacher_out), len(student_out))
        if terms == 0:
            raise ValueError(
                "DINOLoss requires at least two views in total (the diagonal matching the same "
                f"view index is excluded), but got {len(teacher_out)} teacher view(s) and "
                f"{len(student_out)} student view(s), which leaves no cross-view terms to compute "
                "the loss from."
            )
        temperature = self._teacher_temperature(teacher_temp, epoch)
        targets, mean = centered(teacher_out, self.center[0], temperature)
        loss = multi_crop_cross_entropy(student_out, targets, None, temperature=self.student_temp)
        if wants_gradient(teacher_out):
            loss = self._with_teacher(loss, teacher_out, student_out, targets, terms)
        self._move(over_processes(mean))
        return as_lightly(loss, torch.promote_types(student_out[0].dtype, self.center.dtype))

    def _with_teacher(self, loss, teachers, students, targets, terms) -> Tensor:
        for t, (teacher, target) in enumerate(zip(teachers, targets, strict=True)):
            others = [student.detach() for s, student in enumerate(students) if s != t]
            if others and teacher.requires_grad:
                logits = torch.stack(others).sum(0) / self.student_temp
                weight = 1 / (terms * len(teacher))
                loss = with_teacher_gradient(loss, teacher, target, logits, weight)
        return loss

    def _teacher_temperature(self, given: float | None, epoch: int | None) -> float:
        if given is not None:
            return float(given)
        if epoch is not None and epoch < self.warmup_teacher_temp_epochs:
            return float(self.teacher_temp_schedule[epoch])
        return self.teacher_temp

    @torch.no_grad()
    def update_center(self, teacher_out: Tensor) -> None:
        """Take teacher logits (views, N, K) into the center."""
        self._move(self._center_fn(x=teacher_out, dim=(0, 1)))

    def _move(self, mean: Tensor) -> None:
        center = center_momentum(self.center, mean, self.center_momentum)
        if center.dtype == self.center.dtype:
            self.center.copy_(center)
        else:
            self.center = center
