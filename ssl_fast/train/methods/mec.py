"""MEC: the coding length of the embeddings is made as large as it gets."""

from torch import nn

from ...losses import MECLoss
from ..heads import mlp
from ..models import AnyEncoder
from .base import Batch, Output
from .recipes import sgd
from .siamese import MomentumSiamese


class MEC(MomentumSiamese):
    """Loss and momentum as the official code; optimiser and heads as solo-learn's SimSiam."""

    paper = "Liu et al., Self-Supervised Learning via Maximum Entropy Coding, NeurIPS 2022"
    equation = "Eq. 5: the matrix logarithm to fourth order"
    loss_class = "MECLoss"
    recipe = sgd(0.5, 1e-5)

    def __init__(
        self,
        encoder: AnyEncoder,
        *,
        eps: float = 64.0,
        slack: float = 8.0,
        slack_epochs: int = 10,
        momentum: float = 0.996,
        hidden_dim: int = 2048,
        embedding_dim: int = 2048,
        predictor_dim: int = 512,
    ) -> None:
        """Options of MEC.

        Args:
            encoder: images to encodings.
            eps: distortion; 64 belongs to embeddings of width 2048.
            slack: factor of the distortion at the start.
            slack_epochs: in which it falls to 1 linearly.
            momentum: decay of the momentum network at the start; it rises to 1 along a cosine.
            hidden_dim: width of the projector's two hidden layers.
            embedding_dim: width of the embeddings.
            predictor_dim: width of the predictor's hidden layer.
        """
        widths = [encoder.dim, hidden_dim, hidden_dim, embedding_dim]
        super().__init__(encoder, mlp(widths, last="plain"), momentum)
        self.predictor: nn.Module = mlp([embedding_dim, predictor_dim, embedding_dim])
        self.slack, self.slack_epochs = slack, slack_epochs
        self.criterion = MECLoss(eps)

    def loss(self, batch: Batch) -> Output:
        keys = self.keys(batch.views, batch.progress)
        z = self.project(batch.views)
        p = [self.predictor(view) for view in z]
        passed = min(1.0, batch.progress * batch.epochs / max(1, self.slack_epochs))
        slack = self.slack + (1 - self.slack) * passed
        return Output(self.criterion(p, keys, slack), z)
