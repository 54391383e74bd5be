"""INTL: iterative whitening, and the trace loss that keeps it stable."""

from ...losses import INTLLoss
from ..heads import mlp
from ..models import AnyEncoder
from .base import Batch, Output
from .recipes import sgd
from .siamese import Siamese


class INTL(Siamese):
    """Defaults are the released CIFAR recipe's."""

    paper = "Weng et al., Modulate Your Spectrum in Self-Supervised Learning, ICLR 2024"
    equation = "section 4: IterNorm with trace loss"
    loss_class = "INTLLoss"
    recipe = sgd(0.3, 1e-4) | {"warmup_epochs": 2}

    def __init__(
        self,
        encoder: AnyEncoder,
        *,
        iterations: int = 4,
        hidden_dim: int = 2048,
        embedding_dim: int = 2048,
    ) -> None:
        """Options of INTL.

        Args:
            encoder: images to encodings.
            iterations: of the whitening.
            hidden_dim: width of the projector's two hidden layers.
            embedding_dim: width of the embeddings.
        """
        super().__init__(encoder, mlp([encoder.dim, hidden_dim, hidden_dim, embedding_dim]))
        self.criterion = INTLLoss(iterations=iterations)

    def loss(self, batch: Batch) -> Output:
        z = self.project(batch.views)
        return Output(self.criterion(z), z)
