"""iBOT: masked-token self-distillation (Zhou et al. 2021), as DINOv2 has it."""

from torch import Tensor

from ..functional import _check, linear_soft_cross_entropy, soft_cross_entropy
from ..functional._teacher import token_weights, weighted
from ._centering import CenteredLoss, of_teacher


class IBOTLoss(CenteredLoss):
    """Cross-entropy of masked tokens against the teacher's, each image weighing the same.

        L = 1/B sum over masked tokens i of w_i sum_k -q_ik log softmax(l_i / temperature)_ik
        w_i = 1 / (masked tokens of the image that i belongs to);   q, center as in `DINOLoss`

    Images without a masked token count in B alone. Products of embeddings and prototypes are
    formed by tiles and never stored; logits are taken as given. Nothing is normalised inside.

    Args:
        num_prototypes: as in `DINOLoss`; the centre and Sinkhorn see masked tokens alone.
        temperature: likewise.
        teacher_temperature: likewise.
        warmup_teacher_temperature: likewise.
        warmup_epochs: likewise.
        center_momentum: likewise.
        centering: likewise.
        iterations: likewise.
        prior: likewise.
        exponent: likewise.
        prior_order: likewise.
        group: process group. B and Sinkhorn's sums are over all ranks, every rank returns the
            global loss, and DDP's mean of the gradients is exact.

    Buffers: `center` (1, K), part of the state.
    Source: dinov2 b8931f7, iBOTPatchLoss.forward_masked. With a group the centre is the mean over
        the masked tokens of all ranks; the official code takes the mean of the ranks' means.
    Cost: one product for the teacher, and `functional.linear_soft_cross_entropy`.
    """

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        mask: Tensor,
        prototypes: Tensor | None = None,
        teacher_prototypes: Tensor | None = None,
        *,
        epoch: int | None = None,
        teacher_temperature: float | None = None,
    ) -> Tensor:
        """The loss, 0-d.

        Args:
            student: (M, D) masked tokens of the student, image by image; or logits (M, K) without
                prototypes. Gradients reach them.
            teacher: (M, D) or (M, K), the teacher's tokens at the same places; a constant.
            mask: (B, tokens) or (B, height, width), bool, M entries True.
            prototypes: (K, D) of the student; gradients reach it.
            teacher_prototypes: (K, D) of the teacher, a constant; None takes the student's.
            epoch: from 0, for the warm-up; None is past it.
            teacher_temperature: overrides the schedule in this call.
        """
        _check.matrix("student", student)
        _check.matrix("teacher", teacher)
        weights = token_weights(mask, student, _check.group_name(self.group))
        if len(teacher) != len(student):
            raise ValueError(
                f"student and teacher must hold the same tokens, got {tuple(student.shape)} and "
                f"{tuple(teacher.shape)}"
            )
        own = of_teacher(prototypes, teacher_prototypes)
        if teacher_temperature is None:
            teacher_temperature = self.temperature_at(epoch)
        (targets,) = self._targets([teacher], own, teacher_temperature)
        targets = weighted(targets, weights)
        options = {"temperature": self.temperature, "reduction": "sum", "group": self.group}
        if prototypes is None:
            return soft_cross_entropy(student, targets, **options)
        return linear_soft_cross_entropy(student, prototypes, targets, **options)
