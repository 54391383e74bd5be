"""CW-RGP: channel whitening in random groups of channels."""

from ...losses import CWRGPLoss
from ..heads import mlp
from ..models import AnyEncoder
from .base import Batch, Output
from .recipes import sgd
from .siamese import Siamese


class CWRGP(Siamese):
    """Optimiser and projector are those of the same authors' INTL; eps is 0 in their code."""

    paper = "Weng et al., An Investigation into Whitening Loss for SSL, NeurIPS 2022"
    equation = "section 4: channel whitening with random group partition"
    loss_class = "CWRGPLoss"
    recipe = sgd(0.3, 1e-4) | {"warmup_epochs": 2}

    def __init__(
        self,
        encoder: AnyEncoder,
        *,
        groups: int = 2,
        eps: float = 1e-3,
        hidden_dim: int = 2048,
        embedding_dim: int = 2048,
    ) -> None:
        """Options of CW-RGP.

        Args:
            encoder: images to encodings.
            groups: of channels; each has more channels than the batch has images.
            eps: shrinkage towards the identity: at 0 one singular batch ends the run.
            hidden_dim: width of the projector's two hidden layers.
            embedding_dim: width of the embeddings.
        """
        super().__init__(encoder, mlp([encoder.dim, hidden_dim, hidden_dim, embedding_dim]))
        self.channels, self.groups = embedding_dim, groups
        self.criterion = CWRGPLoss(groups, eps=eps)

    def loss(self, batch: Batch) -> Output:
        z = self.project(batch.views)
        return Output(self.criterion(z), z)

    def check(self, batch_size: int, images: int) -> None:
        super().check(batch_size, images)
        if batch_size >= self.channels // self.groups:
            raise ValueError(
                f"batch_size {batch_size} must be below the channels of a group, "
                f"{self.channels} / {self.groups}: fewer groups, or a larger embedding_dim"
            )
