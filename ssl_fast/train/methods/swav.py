"""SwAV: crops predict each other's balanced prototype assignment."""

import torch
import torch.nn.functional as F

from ...losses import SwAVLoss
from ..heads import Prototypes, mlp
from ..models import AnyEncoder
from ..prior import Prior
from .base import Batch, Output, by_size
from .recipes import lars, solo
from .siamese import Siamese


class SwAV(Siamese):
    """Defaults are solo-learn's for small images; the paper adds six local crops."""

    paper = "Caron et al., Unsupervised Learning by Contrasting Cluster Assignments, NeurIPS 2020"
    equation = "Eq. 1 to 5: swapped prediction of Sinkhorn assignments"
    loss_class = "SwAVLoss"
    recipe = lars(0.6, 1e-6) | solo("symmetric")

    def __init__(
        self,
        encoder: AnyEncoder,
        *,
        prior: Prior | None = None,
        prototypes: int = 3000,
        local_crops: int = 0,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
        queue_length: int = 3840,
        queue_epoch: int = 50,
        freeze_epochs: int = 2,
        hidden_dim: int = 2048,
        embedding_dim: int = 128,
    ) -> None:
        """Options of SwAV.

        Args:
            encoder: images to encodings.
            prior: of the driver: the marginal of the assignments.
            prototypes: how many.
            local_crops: small views that are predicted from, not assigned.
            temperature: of the predictions.
            epsilon: entropy weight of Sinkhorn, in cosine units.
            iterations: of Sinkhorn.
            queue_length: earlier embeddings that join Sinkhorn, for each process; 0 is none.
            queue_epoch: the first with a queue.
            freeze_epochs: in which the prototypes stay as they are.
            hidden_dim: width of the projector's hidden layer.
            embedding_dim: width of the embeddings.
        """
        super().__init__(encoder, mlp([encoder.dim, hidden_dim, embedding_dim]))
        self.views = ("strong", "strong") + ("local",) * local_crops
        self.queue_epoch, self.freeze_epochs, self.frozen = queue_epoch, freeze_epochs, False
        self.prototypes = Prototypes(prototypes, embedding_dim, unit=False)
        prior = prior or Prior()
        self.criterion = SwAVLoss(
            temperature,
            epsilon,
            iterations,
            queue_length=queue_length,
            embedding_dim=embedding_dim,
            prior=prior.shares(prototypes),
            prior_order=prior.order,
        )

    def loss(self, batch: Batch) -> Output:
        self.frozen = batch.epoch < self.freeze_epochs
        self.criterion.train(batch.epoch >= self.queue_epoch)  # the queue fills in training mode
        SwAVLoss.normalize_prototypes(self.prototypes.weight)
        encoder, head = self.online
        h = by_size(encoder, batch.views)
        z = [F.normalize(z) for z in head(torch.cat(h)).chunk(len(h))]
        return Output(self.criterion(z, self.prototypes()), z[:2])

    def before_update(self, step: int) -> None:
        if self.frozen:
            self.prototypes.weight.grad = None
