"""NNCLR: a view's nearest neighbour in a queue is the other view's positive."""

from torch import nn

from ...losses import NNCLRLoss
from ..heads import mlp
from ..models import AnyEncoder
from .base import Batch, Output
from .recipes import lars, solo
from .siamese import Siamese


class NNCLR(Siamese):
    """Defaults are solo-learn's for small images."""

    paper = "Dwibedi et al., With a Little Help from My Friends, ICCV 2021"
    equation = "Eq. 3, both directions"
    loss_class = "NNCLRLoss"
    recipe = lars(0.4, 1e-5) | solo("asymmetric")

    def __init__(
        self,
        encoder: AnyEncoder,
        *,
        temperature: float = 0.2,
        queue_length: int = 65536,
        hidden_dim: int = 2048,
        embedding_dim: int = 256,
        predictor_dim: int = 4096,
    ) -> None:
        """Options of NNCLR.

        Args:
            encoder: images to encodings.
            temperature: of the cosine similarities.
            queue_length: embeddings among which neighbours are found.
            hidden_dim: width of the projector's two hidden layers.
            embedding_dim: width of the embeddings.
            predictor_dim: width of the predictor's hidden layer.
        """
        widths = [encoder.dim, hidden_dim, hidden_dim, embedding_dim]
        super().__init__(encoder, mlp(widths, last="affine"))
        self.predictor: nn.Module = mlp([embedding_dim, predictor_dim, embedding_dim])
        self.criterion = NNCLRLoss(queue_length, embedding_dim, temperature)

    def loss(self, batch: Batch) -> Output:
        z = self.project(batch.views)
        p = [self.predictor(view) for view in z]
        return Output(self.criterion(*p, *z), z)
