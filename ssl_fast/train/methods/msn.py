"""MSN: masked views predict the assignment of an unmasked one; the mean one is kept spread out."""

import torch
from torch import Tensor, nn

from ...losses import MSNLoss
from ..heads import Prototypes, gelu_mlp
from ..masks import focal_keep, random_keep
from ..models import AnyEncoder
from .base import Batch, Method, MomentumNetwork, Output


class MSN(Method):
    """Defaults are the released vits16 configuration's."""

    paper = "Assran et al., Masked Siamese Networks for Label-Efficient Learning, ECCV 2022"
    equation = "Eq. 1: cross-entropy with sharpened targets, minus the entropy of the mean"
    loss_class = "MSNLoss"
    recipe = {  # noqa: RUF012
        "optimizer": "adamw",
        "lr": 1e-3,
        "weight_decay": 0.04,
        "weight_decay_end": 0.4,
        "decay_norms": False,
        "clip": 3.0,
        "warmup_epochs": 15,
        "lr_floor": 1e-3,
        "augmentation": "msn",
    }

    def __init__(
        self,
        encoder: AnyEncoder,
        *,
        prototypes: int = 1024,
        random_views: int = 1,
        focal_views: int = 10,
        patch_drop: float = 0.15,
        focal_side: int = 3,
        temperature: float = 0.1,
        sharpening: float = 0.25,
        prior_weight: float = 1.0,
        sinkhorn_iterations: int = 3,
        momentum: float = 0.996,
        hidden_dim: int = 2048,
        embedding_dim: int = 256,
    ) -> None:
        """Options of MSN.

        Args:
            encoder: images to encodings.
            prototypes: how many.
            random_views: views that lose single patches.
            focal_views: views that keep one block of patches.
            patch_drop: share of the patches that random views lose.
            focal_side: of a focal view's block, in patches.
            temperature: of the views' assignments.
            sharpening: temperature on top of the target's assignment.
            prior_weight: of the term on the mean assignment, lambda.
            sinkhorn_iterations: on the targets; 0 is none.
            momentum: decay of the target network at the start; it rises to 1 linearly.
            hidden_dim: width of the head's two hidden layers.
            embedding_dim: width of the embeddings.
        """
        super().__init__()
        if random_views < 0 or focal_views < 0 or random_views + focal_views < 1:
            raise ValueError("random_views and focal_views must be 1 or more together")
        if not 0 <= patch_drop < 1:
            raise ValueError(f"patch_drop must be at least 0 and below 1, got {patch_drop}")
        if focal_side < 1:
            raise ValueError(f"focal_side must be at least 1, got {focal_side}")
        self.views = ("strong",) * (1 + random_views + focal_views)
        self.random_views, self.patch_drop, self.focal_side = random_views, patch_drop, focal_side
        head = gelu_mlp(encoder.dim, hidden_dim, embedding_dim, norm=True)
        self.online = nn.ModuleList([encoder, head])
        self.target = MomentumNetwork(self.online, momentum, shape="linear")
        self.prototypes = Prototypes(prototypes, embedding_dim, unit=False)
        self.criterion = MSNLoss(
            temperature=temperature,
            sharpening=sharpening,
            prior_weight=prior_weight,
            sinkhorn_iterations=sinkhorn_iterations,
        )

    def loss(self, batch: Batch) -> Output:
        self.target.update(self.online, batch.progress)
        encoder, head = self.online
        target, *views = batch.views
        kept = [self._keep(view, number, batch) for number, view in enumerate(views)]
        h = [encoder(view, keep=keep) for view, keep in zip(views, kept, strict=True)]
        anchors = head(torch.cat(h))
        with torch.no_grad():
            encoder, head = self.target.module
            targets = head(encoder(target))
        loss = self.criterion(anchors, targets, self.prototypes())
        return Output(loss, anchors.chunk(len(views))[:2])

    def _keep(self, view: Tensor, number: int, batch: Batch) -> Tensor:
        grid = self.online[0].squares(view)
        if number < self.random_views:
            keep = random_keep(batch.uniform(grid[0] * grid[1]), self.patch_drop)
        else:
            keep = focal_keep(batch.uniform(2), grid, self.focal_side)
        return keep.to(view.device)

    def undecayed(self) -> list[nn.Parameter]:
        return [self.prototypes.weight]

    def evaluated(self) -> tuple[nn.Module, nn.Module]:
        return self.target.module[0], self.target.module[1]
