"""SimCLR: each view finds the other among all views of the batch."""

from ...losses import NTXentLoss
from ..heads import mlp
from ..models import AnyEncoder
from .base import Batch, Output
from .recipes import lars, solo
from .siamese import Siamese


class SimCLR(Siamese):
    """Defaults are solo-learn's for small images."""

    paper = "Chen et al., A Simple Framework for Contrastive Learning, ICML 2020"
    equation = "Eq. 1: NT-Xent"
    loss_class = "NTXentLoss"
    recipe = lars(0.4, 1e-4) | solo("symmetric")

    def __init__(
        self,
        encoder: AnyEncoder,
        *,
        temperature: float = 0.2,
        hidden_dim: int = 2048,
        embedding_dim: int = 256,
    ) -> None:
        """Options of SimCLR.

        Args:
            encoder: images to encodings.
            temperature: of the cosine similarities.
            hidden_dim: width of the projector's hidden layer.
            embedding_dim: width of the embeddings.
        """
        super().__init__(encoder, mlp([encoder.dim, hidden_dim, embedding_dim], norm=False))
        self.criterion = NTXentLoss(temperature)

    def loss(self, batch: Batch) -> Output:
        z = self.project(batch.views)
        return Output(self.criterion(*z), z)
