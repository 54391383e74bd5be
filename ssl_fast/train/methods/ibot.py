"""iBOT: DINO on the class token, and on hidden patches against the teacher's view of them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...losses import DINOLoss, IBOTLoss
from ..heads import Prototypes, gelu_mlp
from ..masks import block_masks, block_numbers
from ..models import AnyEncoder, ViT
from ..prior import Prior
from .base import Batch, Method, MomentumNetwork, Output, by_size


class IBOT(Method):
    """Defaults are the released ViT-S ones, head shared; a ViT is meant, others hide squares."""

    paper = "Zhou et al., iBOT: Image BERT Pre-Training with Online Tokenizer, ICLR 2022"
    equation = "Eq. 2 and 3: cross-entropy of masked patches, and of class tokens across views"
    loss_class = "IBOTLoss"
    recipe = {  # noqa: RUF012
        "optimizer": "adamw",
        "lr": 5e-4,
        "weight_decay": 0.04,
        "weight_decay_end": 0.4,
        "decay_norms": False,
        "clip": 3.0,
        "warmup_epochs": 10,
        "lr_floor": 2e-3,
        "augmentation": "byol",
    }

    def __init__(
        self,
        encoder: AnyEncoder,
        *,
        prior: Prior | None = None,
        prototypes: int = 8192,
        local_crops: int = 10,
        temperature: float = 0.1,
        teacher_temperature: float = 0.07,
        warmup_teacher_temperature: float = 0.04,
        warmup_teacher_epochs: int = 30,
        centering: str = "mean",
        patch_weight: float = 1.0,
        mask_share: float = 0.5,
        mask_low: float = 0.1,
        mask_high: float = 0.5,
        freeze_epochs: int = 1,
        momentum: float = 0.996,
        head_norm: bool = False,
        hidden_dim: int = 2048,
        embedding_dim: int = 256,
    ) -> None:
        """Options of iBOT.

        Args:
            encoder: images to encodings and tokens.
            prior: of the driver; any but uniform needs the centring sinkhorn.
            prototypes: how many, for class token and patches together.
            local_crops: small views that only the student sees.
            temperature: of the student.
            teacher_temperature: of the teacher after its warm-up.
            warmup_teacher_temperature: of the teacher at the start.
            warmup_teacher_epochs: from one to the other.
            centering: mean, or sinkhorn as DINOv2.
            patch_weight: of the patches' loss beside the class token's.
            mask_share: of the images that hide patches.
            mask_low: smallest share of patches that such an image hides.
            mask_high: largest one.
            freeze_epochs: in which the prototypes stay as they are.
            momentum: decay of the teacher at the start; it rises to 1 along a cosine.
            head_norm: batch norm in the head, the official code's norm_in_head.
            hidden_dim: width of the head's two hidden layers.
            embedding_dim: width of the embeddings.
        """
        super().__init__()
        if not 0 < mask_low <= mask_high <= 1 or not 0 < mask_share <= 1:
            raise ValueError("0 < mask_low <= mask_high <= 1 and 0 < mask_share <= 1 are needed")
        self.views = ("strong", "strong") + ("local",) * local_crops
        self.freeze_epochs, self.frozen, self.patch_weight = freeze_epochs, False, patch_weight
        self.hidden: dict[str, Any] = {"low": mask_low, "high": mask_high, "share": mask_share}
        head = gelu_mlp(encoder.dim, hidden_dim, embedding_dim, norm=head_norm)
        self.online = nn.ModuleList(
            [encoder, head, Prototypes(prototypes, embedding_dim, unit=True)]
        )
        self.target = MomentumNetwork(self.online, momentum)
        self.mask_token = (
            nn.Parameter(torch.zeros(encoder.dim)) if isinstance(encoder, ViT) else None
        )
        prior = prior or Prior()
        self.criterion, self.patch_criterion = (
            kind(
                prototypes,
                temperature=temperature,
                teacher_temperature=teacher_temperature,
                warmup_teacher_temperature=warmup_teacher_temperature,
                warmup_epochs=warmup_teacher_epochs,
                centering=centering,
                prior=prior.shares(prototypes),
                prior_order=prior.order,
            )
            for kind in (DINOLoss, IBOTLoss)
        )

    def loss(self, batch: Batch) -> Output:
        self.frozen = batch.epoch < self.freeze_epochs
        self.target.update(self.online, batch.progress)
        views, count = batch.views, len(batch.views[0])
        both = torch.cat(list(views[:2]))
        encoder, head, prototypes = self.online
        mask = self._mask(both, batch)
        tokens = encoder.tokens(both, mask, self.mask_token)
        h = [*tokens[:, 0].split(count), *by_size(encoder, views[2:])]
        students = [F.normalize(z) for z in head(torch.cat(h)).split(count)]
        patches = F.normalize(head(tokens[:, 1:][mask]))
        with torch.no_grad():
            encoder, head, target_prototypes = self.target.module
            tokens, targets = encoder.tokens(both), target_prototypes()
            teachers = [F.normalize(z) for z in head(tokens[:, 0]).split(count)]
            teacher_patches = F.normalize(head(tokens[:, 1:][mask]))
        weight, epoch = prototypes(), batch.epoch
        image = self.criterion(students, teachers, weight, targets, epoch=epoch)
        patch = self.patch_criterion(patches, teacher_patches, mask, weight, targets, epoch=epoch)
        logs = {"class_token": image.detach(), "patches": patch.detach()}
        return Output(image + self.patch_weight * patch, students[:2], logs)

    def _mask(self, both: Tensor, batch: Batch) -> Tensor:
        """At least one patch is hidden in a batch."""
        grid = self.online[0].grid(both)
        u = torch.cat([batch.uniform(block_numbers(grid)) for _ in range(2)])
        mask = block_masks(u, grid, **self.hidden)
        mask[0, 0] |= not mask.any()
        return mask.to(both.device)

    def before_update(self, step: int) -> None:
        if self.frozen:
            self.online[2].weight.grad = None

    def evaluated(self) -> tuple[nn.Module, nn.Module]:
        return self.target.module[0], self.target.module[1]
