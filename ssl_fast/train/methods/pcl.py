"""PCL: MoCo, and prototypes found by k-means on the momentum network's embeddings."""

import sys
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...losses import ProtoNCELoss
from ..clustering import cluster
from ..heads import mlp
from ..models import AnyEncoder
from .base import Batch, Encodings, Output
from .recipes import sgd
from .siamese import MomentumSiamese


class PCL(MomentumSiamese):
    """Defaults are the official code's for ImageNet; `clusters` must suit the data."""

    paper = "Li et al., Prototypical Contrastive Learning of Unsupervised Representations, 2021"
    equation = "Eq. 11: InfoNCE + ProtoNCE"
    loss_class = "ProtoNCELoss"
    recipe = sgd(0.03, 1e-4) | {"epochs": 200, "warmup_epochs": 0, "augmentation": "moco"}

    def __init__(
        self,
        encoder: AnyEncoder,
        *,
        clusters: Sequence[int] = (25000, 50000, 100000),
        first_epoch: int = 20,
        temperature: float = 0.2,
        negatives: int = 16000,
        queue_length: int = 16384,
        momentum: float = 0.999,
        hidden_dim: int = 2048,
        embedding_dim: int = 128,
    ) -> None:
        """Options of PCL.

        Args:
            encoder: images to encodings.
            clusters: how many, one number for each clustering: [100, 200].
            first_epoch: with prototypes; InfoNCE alone before.
            temperature: of the cosine similarities, and the mean of the concentrations.
            negatives: prototypes that are drawn as negatives a step.
            queue_length: keys in the queue.
            momentum: decay of the momentum network.
            hidden_dim: width of the projector's hidden layer.
            embedding_dim: width of the embeddings.
        """
        head = mlp([encoder.dim, hidden_dim, embedding_dim], norm=False)
        super().__init__(encoder, head, momentum, shape="constant")
        if not clusters or min(clusters) < 2:
            raise ValueError(f"clusters must name numbers of at least 2, got {list(clusters)}")
        self.clusters, self.first_epoch = list(clusters), first_epoch
        self.temperature = temperature
        for m in range(len(self.clusters)):
            self.register_buffer(f"centroids_{m}", torch.empty(0))  # (K, D)
            self.register_buffer(f"concentration_{m}", torch.empty(0))  # (K,)
            self.register_buffer(f"cluster_{m}", torch.empty(0, dtype=torch.long))  # (images,)
        self.criterion = ProtoNCELoss(queue_length, embedding_dim, temperature, negatives)

    def check(self, batch_size: int, images: int) -> None:
        super().check(batch_size, images)
        if max(self.clusters) > images:
            raise ValueError(
                f"{max(self.clusters)} clusters of {images} images: each needs one at least, and "
                "should have ten or more"
            )

    def start_epoch(self, epoch: int, encodings: Encodings) -> None:
        if epoch < self.first_epoch:
            return
        z = F.normalize(encodings(nn.Sequential(*self.target.module)))
        all_found = cluster(
            z, self.clusters, temperature=self.temperature, progress=sys.stderr.isatty()
        )
        for m, found in enumerate(all_found):
            self._store(m, found.centroids, found.concentration, found.index)

    def loss(self, batch: Batch) -> Output:
        keys = self.keys(batch.views[1:], batch.progress)
        z = self.project(batch.views)
        clusterings = self._clusterings(batch.ids) if batch.epoch >= self.first_epoch else None
        return Output(self.criterion(z[0], keys[0], clusterings), z)

    def centres(self) -> Tensor | None:
        """Of the last clustering."""
        centroids = self.get_buffer(f"centroids_{len(self.clusters) - 1}")
        return centroids if len(centroids) else None

    def _clusterings(self, ids: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        out = []
        for m in range(len(self.clusters)):
            index = self.get_buffer(f"cluster_{m}")[ids]
            out.append(
                (self.get_buffer(f"centroids_{m}"), self.get_buffer(f"concentration_{m}"), index)
            )
        return out

    def _store(self, m: int, *found: Tensor) -> None:
        for name, value in zip(("centroids", "concentration", "cluster"), found, strict=True):
            setattr(self, f"{name}_{m}", value)

    def _load_from_state_dict(self, state_dict, prefix, *rest) -> None:
        """Clusterings come in the sizes that they were stored in."""
        for name in list(self._buffers):
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name]))
        super()._load_from_state_dict(state_dict, prefix, *rest)
