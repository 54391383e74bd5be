"""Labels of a data set without opening its images, and subsets."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from .errors import UsageError

Images = Any  # a map-style data set of (image, label)


def labels_of(images: Images) -> Tensor:  # (N,)
    """Refuses a set of which some images have none."""
    labels = _labels(images)
    unlabelled = int((labels < 0).sum())  # torchvision's mark
    if unlabelled:
        raise UsageError(
            f"{unlabelled} of the {len(labels)} training images have no label: they take no class "
            "prior, no long tail and no sampler but epoch"
        )
    return labels


def take(images: Images, keep: Tensor) -> Images:
    """The images with these indices."""
    if isinstance(images, TensorDataset):
        return TensorDataset(*(part[keep] for part in images.tensors))
    return Subset(images, keep.tolist())


def evenly(count: int, most: int) -> np.ndarray:
    """At most `most` row numbers, evenly spread over `count`."""
    return np.linspace(0, count - 1, min(most, count)).astype(int)


def _labels(images: Images) -> Tensor:
    if isinstance(images, Subset):
        return _labels(images.dataset)[images.indices]
    if isinstance(images, TensorDataset):
        return images.tensors[1]
    return torch.as_tensor(images.targets if hasattr(images, "targets") else images.labels)
