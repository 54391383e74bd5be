"""ReSA: the batch clusters itself by its encodings; embeddings learn that assignment."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from ...losses import ReSALoss
from ..heads import predictor, projector
from ..models import AnyEncoder
from .base import Batch, Method, MomentumNetwork, Output


class ReSA(Method):
    """Defaults are the released code's for ImageNet, without the predictor; presets change them."""

    paper = "Weng et al., Clustering Properties of Self-Supervised Learning, ICML 2025"
    equation = "Eq. 2: cross-entropy of embedding similarities with Sinkhorn(h h_m^T)"
    loss_class = "ReSALoss"
    views = ("weak", "strong")
    recipe = {"epochs": 1000}  # noqa: RUF012  the rest is the driver's own defaults

    def __init__(
        self,
        encoder: AnyEncoder,
        *,
        temperature: float = 0.4,
        epsilon: float = 0.05,
        iterations: int = 3,
        symmetric: bool = True,
        momentum: float = 0.996,
        hidden_dim: int = 2048,
        embedding_dim: int = 512,
        use_predictor: bool = False,
        assign_from: Literal["encodings", "embeddings"] = "encodings",
    ) -> None:
        """Options of ReSA.

        Args:
            encoder: images to encodings.
            temperature: of the embeddings' similarities.
            epsilon: entropy weight of Sinkhorn, in cosine units.
            iterations: of Sinkhorn.
            symmetric: rows and columns, as the paper; false: rows only, as the released code.
            momentum: decay of the momentum network at the start; it rises to 1 along a cosine.
            hidden_dim: width of the projector's two hidden layers.
            embedding_dim: width of the embeddings.
            use_predictor: two more layers on the gradient path (the released code: ImageNet only).
            assign_from: what clusters the batch; embeddings is the paper's ablation, Fig. 10.
        """
        super().__init__()
        self.assign_from = assign_from
        head = projector(encoder.dim, hidden_dim, embedding_dim)
        self.online = nn.ModuleList([encoder, head])
        self.predictor = predictor(embedding_dim, hidden_dim) if use_predictor else nn.Identity()
        self.target = MomentumNetwork(self.online, momentum)
        self.criterion = ReSALoss(temperature, epsilon, iterations, symmetric)

    def loss(self, batch: Batch) -> Output:
        views = batch.views
        self.target.update(self.online, batch.progress)
        encoder, project = self.evaluated()
        with torch.no_grad():
            momentum_encodings = [encoder(view) for view in views[:2]]
            momentum_embeddings = [F.normalize(project(h)) for h in momentum_encodings]
        encoder, project = self.online
        encodings = [encoder(view) for view in views]
        projections = [project(h) for h in encodings]
        embeddings = [F.normalize(self.predictor(z)) for z in projections]
        weak, momentum_weak = encodings[0].detach(), momentum_encodings[0]
        if self.assign_from == "embeddings":
            weak, momentum_weak = projections[0].detach(), momentum_embeddings[0]
        loss = self.criterion(
            embeddings, momentum_embeddings, F.normalize(weak), F.normalize(momentum_weak)
        )
        return Output(loss, projections)

    def evaluated(self) -> tuple[nn.Module, nn.Module]:
        return self.target.module[0], self.target.module[1]
