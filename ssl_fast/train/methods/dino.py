"""DINO: the student's crops predict the teacher's centred, sharpened assignment."""

import torch
import torch.nn.functional as F
from torch import nn

from ...losses import DINOLoss
from ..heads import Prototypes, gelu_mlp
from ..models import AnyEncoder
from ..prior import Prior
from .base import Batch, Method, MomentumNetwork, Output, by_size
from .recipes import lars, solo


class DINO(Method):
    """Defaults are solo-learn's for small images, where the paper has 65536 prototypes."""

    paper = "Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021"
    equation = "Eq. 1 to 3, algorithm 1; with a prior: DINOv2's Sinkhorn centring"
    loss_class = "DINOLoss"
    recipe = lars(0.3, 1e-6) | solo("asymmetric")

    def __init__(
        self,
        encoder: AnyEncoder,
        *,
        prior: Prior | None = None,
        prototypes: int = 4096,
        local_crops: int = 0,
        temperature: float = 0.1,
        teacher_temperature: float = 0.07,
        warmup_teacher_temperature: float = 0.04,
        warmup_teacher_epochs: int = 0,
        centering: str = "mean",
        freeze_epochs: int = 1,
        momentum: float = 0.9995,
        head_norm: bool = False,
        hidden_dim: int = 2048,
        embedding_dim: int = 256,
    ) -> None:
        """Options of DINO.

        Args:
            encoder: images to encodings.
            prior: of the driver; any but uniform needs the centring sinkhorn.
            prototypes: how many.
            local_crops: small views that only the student sees.
            temperature: of the student.
            teacher_temperature: of the teacher after its warm-up.
            warmup_teacher_temperature: of the teacher at the start.
            warmup_teacher_epochs: from one to the other.
            centering: mean, or sinkhorn as DINOv2.
            freeze_epochs: in which the prototypes stay as they are.
            momentum: decay of the teacher at the start; it rises to 1 along a cosine.
            head_norm: batch norm in the head, the official code's use_bn_in_head.
            hidden_dim: width of the head's two hidden layers.
            embedding_dim: width of the embeddings.
        """
        super().__init__()
        self.views = ("strong", "strong") + ("local",) * local_crops
        self.freeze_epochs = freeze_epochs
        head = gelu_mlp(encoder.dim, hidden_dim, embedding_dim, norm=head_norm)
        self.online = nn.ModuleList(
            [encoder, head, Prototypes(prototypes, embedding_dim, unit=True)]
        )
        self.target = MomentumNetwork(self.online, momentum)
        prior = prior or Prior()
        self.criterion = DINOLoss(
            prototypes,
            temperature=temperature,
            teacher_temperature=teacher_temperature,
            warmup_teacher_temperature=warmup_teacher_temperature,
            warmup_epochs=warmup_teacher_epochs,
            centering=centering,
            prior=prior.shares(prototypes),
            prior_order=prior.order,
        )
        self.frozen = False

    def loss(self, batch: Batch) -> Output:
        self.frozen = batch.epoch < self.freeze_epochs
        self.target.update(self.online, batch.progress)
        encoder, head, prototypes = self.online
        h = by_size(encoder, batch.views)
        students = [F.normalize(z) for z in head(torch.cat(h)).chunk(len(h))]
        with torch.no_grad():
            encoder, head, target_prototypes = self.target.module
            teachers = [F.normalize(head(h)) for h in by_size(encoder, batch.views[:2])]
            targets = target_prototypes()
        loss = self.criterion(students, teachers, prototypes(), targets, epoch=batch.epoch)
        return Output(loss, students[:2])

    def before_update(self, step: int) -> None:
        if self.frozen:
            self.online[2].weight.grad = None

    def evaluated(self) -> tuple[nn.Module, nn.Module]:
        return self.target.module[0], self.target.module[1]
