"""A trained run and labelled images: what the measures of `ssl-fast eval` look at."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from . import data, evaluate
from .config import TrainOptions
from .errors import UsageError
from .evaluate import Features
from .methods import Method
from .prior import Prior


class NotHere(UsageError):
    """A measure that this run or data set cannot have."""


@dataclass
class EvalOptions:
    """Options of the measures.

    Args:
        data: measure on this data set (transfer); the run's own is then whole, without long tail.
        data_dir: where the images are; by default where the run had them.
        neighbours: of knn.
        weighted_neighbours: of weighted_knn, whose temperature is .07.
        shares: of the labels, for low_shot and finetune.
        linear_epochs: of linear classifiers.
        finetune_epochs: of finetune.
        finetune_lr: of the encoder in finetune.
        finetune_head_lr: of the classifier in finetune.
        coarse: file with the coarse class of each class, one integer a line; CIFAR-100 has its own.
        limit: images of each set; 0 takes all.
        seed: of classifiers, their shares of labels, views and clusterings.
        workers: processes that load photographs.
        threads: of PyTorch and scikit-learn on the CPU; 0 leaves the choice to them.
        device: PyTorch's; auto is the GPU where there is one.
    """

    data: str | None = None
    data_dir: str | None = None
    neighbours: int = 5
    weighted_neighbours: int = 20
    shares: Sequence[float] = (0.01, 0.1)
    linear_epochs: int = 500
    finetune_epochs: int = 100
    finetune_lr: float = 0.01
    finetune_head_lr: float = 0.1
    coarse: str | None = None
    limit: int = 0
    seed: int = 0
    workers: int = 4
    threads: int = 0
    device: str = "auto"

    def check(self) -> None:
        """Before anything is computed."""
        for name in ("neighbours", "weighted_neighbours", "linear_epochs", "finetune_epochs"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")
        for share in self.shares:
            if not 0 < share <= 1:
                raise UsageError(f"shares must be above 0 and at most 1, got {share}")
        if self.coarse and not Path(self.coarse).is_file():
            raise UsageError(
                f"--coarse {self.coarse} is no file: one integer for each class, a line each"
            )


@dataclass
class Subject:
    """Features are computed when first asked for."""

    method: Method
    trained: TrainOptions
    prior: Prior  # of the training; uniform where the method has none
    source: data.Source  # may be another than the training's
    name: str
    folder: str  # of the data set
    options: EvalOptions
    device: torch.device

    @cached_property
    def networks(self) -> list[nn.Module]:
        """Encoder and projector."""
        return [part.to(self.device) for part in self.method.evaluated()]

    @property
    def encoder(self) -> nn.Module:
        return self.networks[0]

    @cached_property
    def loaders(self) -> tuple[DataLoader, DataLoader]:
        o = self.options
        train = data.plain_loader(self.source, "train", o.limit, o.workers)
        return train, data.plain_loader(self.source, "test", o.limit, o.workers)

    @cached_property
    def features(self) -> dict[str, Features]:
        found = evaluate.extract(self.networks, *self.loaders, self.device)
        return dict(zip(("encodings", "embeddings"), found, strict=True))

    @property
    def labels(self) -> np.ndarray:
        return self.features["encodings"].train_labels

    def each(self, measure: Callable[[Features], float]) -> dict[str, float]:
        return {name: measure(f) for name, f in self.features.items()}
