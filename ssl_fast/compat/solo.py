"""The loss functions of `solo.losses` by name and signature; solo-learn need not be installed.

    from ssl_fast.compat.solo import barlow_loss_func   # was: from solo.losses.barlow import ...

Where torch.distributed runs with several processes, these work over all of them without being
asked, as solo-learn's do: every docstring says what crosses processes. Values are returned in the
inputs' type, under autocast in float32.

Source: vturrisi/solo-learn 9187ea3 (1.0.6).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..functional import (
    Assignment,
    alignment,
    covariance_penalty,
    cross_correlation_penalty,
    linear_soft_cross_entropy,
    multi_crop_cross_entropy,
    variance_hinge,
)
from ..functional._check import group_name
from ..functional._contrastive_as_published import class_nt_xent, in_batch_info_nce
from ..functional._distributed import gather
from ..functional._norms import normalized
from ..functional._tiles import product_dtype
from ..functional.contrastive import info_nce, local_nt_xent
from ..functional.cosine import mean_cosine
from ..functional.covariance import view_terms
from .lightly._common import as_lightly, world
from .lightly.center import over_processes

__all__ = [
    "DINOLoss",
    "barlow_loss_func",
    "byol_loss_func",
    "mocov2plus_loss_func",
    "mocov3_loss_func",
    "nnclr_loss_func",
    "ressl_loss_func",
    "simclr_loss_func",
    "simsiam_loss_func",
    "swav_loss_func",
    "vibcreg_loss_func",
    "vicreg_loss_func",
    "wmse_loss_func",
]


def barlow_loss_func(
    z1: Tensor, z2: Tensor, lamb: float = 5e-3, scale_loss: float = 0.025
) -> Tensor:
    """scale_loss * (sum_d (C_dd - 1)^2 + lamb * sum_{d != e} C_de^2), 0-d, of views (N, D).

    Each process standardises its own rows; C is the processes' mean. The gradient is 1 / (number
    of processes) of the loss's, as in solo-learn, whose all-reduce has none.
    """
    group = world()
    loss = cross_correlation_penalty(
        z1, z2, off_diagonal_weight=lamb, group=group, own_statistics=True
    )
    if group is not None:
        loss = _scaled_gradient(loss, 1 / group.size())
    return as_lightly(scale_loss * loss, z1.dtype)


def byol_loss_func(p: Tensor, z: Tensor, simplified: bool = True) -> Tensor:
    """2 - 2 mean cos(p, z), z detached, 0-d; `simplified` chooses the least norm alone."""
    return 2 - 2 * _cosine(p, z.detach(), simplified)


def simsiam_loss_func(p: Tensor, z: Tensor, simplified: bool = True) -> Tensor:
    """-mean cos(p, z), z detached, 0-d; `simplified` chooses the least norm alone."""
    return -_cosine(p, z.detach(), simplified)


def wmse_loss_func(z1: Tensor, z2: Tensor, simplified: bool = True) -> Tensor:
    """2 - 2 mean cos(z1, z2) of whitened views, 0-d; `simplified` detaches z2 besides."""
    return 2 - 2 * _cosine(z1, z2.detach() if simplified else z2, simplified)


def simclr_loss_func(z: Tensor, indexes: Tensor, temperature: float = 0.1) -> Tensor:
    """Mean of -log(sum of positives / sum of all but itself), 0-d; any number of positives.

    Args:
        z: (V N, D), normalised here.
        indexes: (V N,); rows of one index are one another's positives.
        temperature: > 0.

    Over processes: rows of all of them are compared with, those of equal index as positives; the
    mean is this process's. In one process, where the indexes are V times the same N different
    ones, the views' kernels run; else, as on a GPU, whose indexes are not looked at, the rows are
    sorted by index and their classes masked.
    """
    if not isinstance(indexes, Tensor) or indexes.shape != z.shape[:1] or not len(z):
        came = tuple(indexes.shape) if isinstance(indexes, Tensor) else type(indexes).__name__
        raise ValueError(f"indexes must be a tensor (rows of z,), {tuple(z.shape[:1])}, got {came}")
    group = world()
    views = _views(indexes) if group is None else 0  # one way on all ranks
    if views > 1:
        loss = local_nt_xent(list(z.chunk(views)), temperature=temperature)
    else:
        loss = class_nt_xent(z, indexes, temperature=temperature, group=group)
    return as_lightly(loss, z.dtype)


def mocov2plus_loss_func(
    query: Tensor, key: Tensor, queue: Tensor, temperature: float = 0.1
) -> Tensor:
    """InfoNCE of unit rows (N, D) against a queue (D, K), 0-d; nothing is normalised here."""
    loss = info_nce(query, key, queue.t(), temperature=temperature, normalize=False)
    return as_lightly(loss, query.dtype)


def mocov3_loss_func(query: Tensor, key: Tensor, temperature: float = 0.2) -> Tensor:
    """2 T * InfoNCE within the batch, 0-d, rows normalised here.

    Over processes: keys of all of them; the mean is this process's. Keys get a gradient unless
    torch.distributed is initialised, as there: it is their gathering that drops it.
    """
    distributed = torch.distributed
    constant = distributed.is_available() and distributed.is_initialized()
    options = {"temperature": temperature, "group": world(), "constant": constant}
    loss = in_batch_info_nce(query, key, **options)
    return as_lightly(loss * (2 * temperature), query.dtype)


def nnclr_loss_func(nn: Tensor, p: Tensor, temperature: float = 0.1) -> Tensor:
    """InfoNCE of neighbours nn among predictions p (N, D), 0-d, rows normalised here.

    Over processes: predictions of all of them, with gradient; the mean is this process's.
    """
    loss = in_batch_info_nce(nn, p, temperature=temperature, group=world())
    return as_lightly(loss, nn.dtype)


def swav_loss_func(
    preds: Sequence[Tensor], assignments: Sequence[Tensor], temperature: float = 0.1
) -> Tensor:
    """Mean over pairs (assignment v1, prediction v2 != v1) of the cross-entropy, 0-d.

    Args:
        preds: scores (N, K) of the views.
        assignments: codes (N, K), without gradient, of the first views.
        temperature: > 0.
    """
    codes = [Assignment.from_dense(a) for a in assignments]
    loss = multi_crop_cross_entropy(list(preds), codes, None, temperature=temperature)
    return as_lightly(loss, preds[0].dtype)


def ressl_loss_func(
    q: Tensor,
    k: Tensor,
    queue: Tensor,
    temperature_q: float = 0.1,
    temperature_k: float = 0.04,
) -> Tensor:
    """Cross-entropy of q against k's similarities to a queue (K, D), 0-d; k is a constant."""
    target = Assignment.softmax((k.detach(), queue.detach()), temperature=temperature_k)
    loss = linear_soft_cross_entropy(q, queue, target, temperature=temperature_q)
    return as_lightly(loss, q.dtype)


def vicreg_loss_func(
    z1: Tensor,
    z2: Tensor,
    sim_loss_weight: float = 25.0,
    var_loss_weight: float = 25.0,
    cov_loss_weight: float = 1.0,
) -> Tensor:
    """VICReg of views (N, D), 0-d, the variance term without the official code's half.

    Over processes: variances and covariances over all rows, the invariance this process's.
    """
    group = world()
    invariance = alignment(z1, z2) / z1.shape[1]
    terms = [view_terms(z, 1.0, 1e-4, group) for z in (z1, z2)]
    loss = sim_loss_weight * invariance + var_loss_weight * (terms[0][0] + terms[1][0])
    loss = loss + cov_loss_weight * (terms[0][1] + terms[1][1])
    return as_lightly(loss, z1.dtype)


def vibcreg_loss_func(
    z1: Tensor,
    z2: Tensor,
    sim_loss_weight: float = 25.0,
    var_loss_weight: float = 25.0,
    cov_loss_weight: float = 200.0,
) -> Tensor:
    """VIbCReg of views (N, D), 0-d: `vicreg_loss_func` with correlations for covariances.

    The correlation term is sum_{d != e} R_de^2 / D^2 of each view, R its columns' correlations.
    Over processes: rows of all of them are gathered, but for the invariance.
    """
    group = group_name(world())
    loss = sim_loss_weight * alignment(z1, z2) / z1.shape[1]
    for z in (z1, z2):
        rows = gather(z.to(product_dtype(z)), group)
        unit = normalized(rows - rows.mean(0), dim=0)
        correlation = covariance_penalty(unit) * ((len(rows) - 1) ** 2 / rows.shape[1])
        loss = loss + var_loss_weight * variance_hinge(rows) + cov_loss_weight * correlation
    return as_lightly(loss, z1.dtype)


class DINOLoss(torch.nn.Module):
    """DINO's loss, its teacher temperature from a schedule by the attribute `epoch`.

    Args:
        num_prototypes: K.
        warmup_teacher_temp, teacher_temp, warmup_teacher_temp_epochs, num_epochs: the teacher's
            temperature rises linearly over the warm-up and stays.
        student_temp: temperature of the student.
        num_large_crops: parts into which the student's rows are cut.
        center_momentum: of the center, the buffer `center` (1, K).
    """

    center: Tensor

    def __init__(
        self,
        num_prototypes: int,
        warmup_teacher_temp: float,
        teacher_temp: float,
        warmup_teacher_temp_epochs: float,
        num_epochs: int,
        student_temp: float = 0.1,
        num_large_crops: int = 2,
        center_momentum: float = 0.9,
    ):
        super().__init__()
        self.epoch = 0
        self.student_temp = student_temp
        self.center_momentum = center_momentum
        self.num_large_crops = num_large_crops
        self.register_buffer("center", torch.zeros(1, num_prototypes))
        warm = int(warmup_teacher_temp_epochs)
        rising = np.linspace(warmup_teacher_temp, teacher_temp, warm)
        self.teacher_temp_schedule = np.append(rising, np.full(num_epochs - warm, teacher_temp))

    def forward(self, student_output: Tensor, teacher_output: Tensor) -> Tensor:
        """The loss, 0-d, of logits (V N, K) of the student and (2 N, K) of the teacher."""
        temperature = float(self.teacher_temp_schedule[self.epoch])
        with torch.no_grad():
            teacher = Assignment.softmax(
                teacher_output, temperature=temperature, center=self.center.flatten()
            )
        rows = len(teacher) // 2
        targets = [teacher[:rows], teacher[rows:]]
        students = list(student_output.chunk(self.num_large_crops))
        loss = multi_crop_cross_entropy(students, targets, None, temperature=self.student_temp)
        self.update_center(teacher_output)
        return loss

    @torch.no_grad()
    def update_center(self, teacher_output: Tensor) -> None:
        """center <- m * center + (1 - m) * mean of the rows, over all processes."""
        mean = over_processes(teacher_output.mean(0, keepdim=True))
        self.center = self.center * self.center_momentum + mean * (1 - self.center_momentum)


def _cosine(x: Tensor, y: Tensor, simplified: bool) -> Tensor:
    eps = 1e-8 if simplified else 1e-12
    rows = (t.reshape(-1, t.shape[-1]) for t in (x, y))
    return as_lightly(mean_cosine(*rows, eps=eps), x.dtype)


def _views(indexes: Tensor) -> int:
    """V where the indexes are V times the same different ones, in one order; else 0."""
    if indexes.is_cuda or torch.compiler.is_compiling():
        return 0
    first = indexes[0]
    views = int((indexes == first).sum())
    if len(indexes) % views:
        return 0
    blocks = indexes.view(views, -1)
    repeated = bool((blocks == blocks[0]).all()) and len(blocks[0].unique()) == blocks.shape[1]
    return views if repeated and blocks.shape[1] > 1 else 0


def _scaled_gradient(loss: Tensor, factor: float) -> Tensor:
    return loss * factor + loss.detach() * (1 - factor)
