"""DINO: self-distillation with a centred teacher (Caron et al. 2021), and DINOv2's Sinkhorn."""

from collections.abc import Sequence

from torch import Tensor

from ..functional import multi_crop_cross_entropy
from ._centering import CenteredLoss, crops, of_teacher


class DINOLoss(CenteredLoss):
    """Cross-entropy of the student's crops against the teacher's centred, sharpened softmax.

        q_t = softmax((s_t - center) / T)       or Sinkhorn(s_t / T) over all teacher crops
        L = mean over t != v of mean_i sum_k -q_t,ik log softmax(l_v / temperature)_ik
        center <- momentum center + (1 - momentum) mean of s      after each batch in training mode

    s and l are products of embeddings and prototypes, formed by tiles and never stored, or logits
    as given. Nothing is normalised inside. `.eval()` freezes the centre; the official code moves
    it in every call.

    Args:
        num_prototypes: K.
        temperature: of the student, > 0 (official: student_temp).
        teacher_temperature: of the teacher after the warm-up, > 0.
        warmup_teacher_temperature: of the teacher in epoch 0, > 0.
        warmup_epochs: in epoch e < warmup_epochs the teacher has entry e of
            linspace(warmup_teacher_temperature, teacher_temperature, warmup_epochs).
        center_momentum: within 0 and 1.
        centering: "mean", or "sinkhorn": one Sinkhorn-Knopp over the rows of all teacher crops
            with the teacher's temperature as epsilon (DINOv2); the centre is not used then.
        iterations: of Sinkhorn-Knopp, at least 1.
        prior: marginal of the prototypes for "sinkhorn": None or "uniform", "power_law", or (K,).
        exponent: of the power law.
        prior_order: "fixed": entry k of the prior belongs to prototype k; "sorted": the largest
            entry to the prototype of the largest softmax mass in this batch, and so on.
        group: process group. Sinkhorn's sums and the centre's mean are over the rows of all
            ranks, every rank returns the global loss, and DDP's mean of the gradients is exact.

    Buffers: `center` (1, K), part of the state, as in the official code.
    Source: paper, algorithm 1; facebookresearch/dino 7c446df (main_dino.py, DINOLoss),
        dinov2 b8931f7 for "sinkhorn". With unequal rows on ranks the centre is the mean over all
        rows; the official code's is the mean of the ranks' sums over its own batch size.
    Cost: one product a teacher crop and three a student crop, all in the forward pass; kept for
        backward: the gradients themselves, float32. The centre costs D numbers across ranks and
        one product with a vector.
    """

    def forward(
        self,
        students: Sequence[Tensor],
        teachers: Sequence[Tensor],
        prototypes: Tensor | None = None,
        teacher_prototypes: Tensor | None = None,
        *,
        epoch: int | None = None,
        teacher_temperature: float | None = None,
    ) -> Tensor:
        """The loss, 0-d.

        Args:
            students: crops (N, D) of the student, global ones first in the teachers' order; or
                logits (N, K) without prototypes. Gradients reach them.
            teachers: global crops (N, D) or logits (N, K) of the teacher; constants. Teacher crop
                t is not compared with student crop t.
            prototypes: (K, D) of the student, the last layer's weight; gradients reach it.
            teacher_prototypes: (K, D) of the teacher, a constant; None takes the student's.
            epoch: from 0, for the warm-up; None is past it.
            teacher_temperature: overrides the schedule in this call.
        """
        students, teachers = crops("students", students), crops("teachers", teachers)
        own = of_teacher(prototypes, teacher_prototypes)
        if teacher_temperature is None:
            teacher_temperature = self.temperature_at(epoch)
        targets = self._targets(teachers, own, teacher_temperature)
        return multi_crop_cross_entropy(
            students, targets, prototypes, temperature=self.temperature, group=self.group
        )
