"""`lightly.loss.ibot_loss`."""

from __future__ import annotations

import torch
from torch import Tensor

from ...functional import soft_cross_entropy
from ...functional._teacher import centered, token_weights
from ._teacher import wants_gradient, with_teacher_gradient
from .center import Center


class IBOTPatchLoss(torch.nn.Module):
    """iBOT's loss over masked patches, as in DINOv2 and in Lightly's class of that name.

        loss = 1/B sum over masked patches i of CE(q_i, student_i / student_temp) / m(image of i)

    with q = softmax((teacher - center) / teacher_temp) and m the image's number of masked patches.
    The center takes the teacher's logits in after each forward, in evaluation too.

    Args:
        output_dim: K.
        teacher_temp, student_temp: temperatures.
        center_mode: "mean" alone.
        center_momentum: of the center.

    Source: lightly 1.6.0 (the same in 1.5.26).
    """

    def __init__(
        self,
        output_dim: int = 65536,
        teacher_temp: float = 0.04,
        student_temp: float = 0.1,
        center_mode: str = "mean",
        center_momentum: float = 0.9,
    ) -> None:
        super().__init__()
        self.teacher_temp = teacher_temp
        self.student_temp = student_temp
        self.center = Center((1, output_dim), mode=center_mode, momentum=center_momentum)

    def forward(
        self,
        teacher_out: Tensor,
        student_out: Tensor,
        mask: Tensor,
        teacher_temp: float | None = None,
    ) -> Tensor:
        """The loss, 0-d; float32 for half inputs, as the center is.

        Args:
            teacher_out, student_out: (M, K) logits of the M masked patches.
            mask: (B, height, width) bool, True M times; its order is that of the rows.
            teacher_temp: instead of that of the constructor.
        """
        if not len(student_out):
            raise ValueError(
                "no patch is masked: skip the loss for this batch, or mask at least one"
            )
        weight = token_weights(mask, student_out)
        return self._loss(teacher_out, student_out, weight, teacher_temp)

    def _loss(
        self, teacher: Tensor, student: Tensor, weight: Tensor, teacher_temp: float | None
    ) -> Tensor:
        """Sum over rows of weight * cross-entropy; the center takes the teacher in."""
        temperature = self.teacher_temp if teacher_temp is None else float(teacher_temp)
        (target,), mean = centered([teacher], self.center.value, temperature)
        rows = soft_cross_entropy(student, target, temperature=self.student_temp, reduction="none")
        loss = torch.dot(rows, weight.to(rows.dtype))
        if wants_gradient([teacher]):
            logits = student.detach() / self.student_temp
            loss = with_teacher_gradient(loss, teacher, target, logits, weight.unsqueeze(1))
        self.center.take_in(mean)
        return loss


class IBOTPlusPlusPatchLoss(IBOTPatchLoss):
    """iBOT++ over all patches, masked and visible, as Lightly's class of that name.

        loss = mean over images of (mean over masked + visible_loss_weight * mean over visible)

    Without a mask the plain mean over patches. Constructor and center: as `IBOTPatchLoss`.

    Source: lightly 1.6.0 (the same in 1.5.26).
    """

    def forward(  # type: ignore[override]
        self,
        teacher_out: Tensor,
        student_out: Tensor,
        mask: Tensor | None = None,
        teacher_temp: float | None = None,
        visible_loss_weight: float = 1.0,
    ) -> Tensor:
        """The loss, 0-d; float32 for half inputs.

        Args:
            teacher_out, student_out: (B, P, K) logits, or (B * P, K) with a mask.
            mask: (B, height, width) or (B, P) bool, True where masked.
            teacher_temp: instead of that of the constructor.
            visible_loss_weight: of the visible patches' mean, where a mask is given.
        """
        images = _images(teacher_out, student_out, mask)
        teacher, student = (x.flatten(0, -2) for x in (teacher_out, student_out))
        with torch.no_grad():
            if mask is None:
                weight = torch.full((len(student),), 1 / len(student), device=student.device)
            else:
                masked = mask.reshape(images, -1).float()
                weight = masked / masked.sum(1, keepdim=True).clamp(min=1.0)
                visible = 1.0 - masked
                visible = visible / visible.sum(1, keepdim=True).clamp(min=1.0)
                weight = (weight + visible_loss_weight * visible).flatten() / images
        return self._loss(teacher, student, weight, teacher_temp)


def _images(teacher: Tensor, student: Tensor, mask: Tensor | None) -> int:
    if teacher.shape != student.shape:
        raise ValueError(
            f"teacher_out and student_out must have the same shape but got {tuple(teacher.shape)} "
            f"and {tuple(student.shape)}."
        )
    if teacher.dim() not in (2, 3):
        raise ValueError(f"teacher_out must be rank 2 or 3 but got rank {teacher.dim()}.")
    if teacher.dim() == 3:
        return len(teacher)
    if mask is None:
        raise ValueError(
            "mask is required when teacher_out has rank 2 so that the batch size B can be inferred."
        )
    if len(teacher) % len(mask):
        raise ValueError(
            f"teacher_out length {len(teacher)} is not divisible by batch size {len(mask)} "
            "inferred from mask."
        )
    return len(mask)
