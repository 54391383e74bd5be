"""Labels of a data set, without opening its images."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from .errors import UsageError

Images = Any  # a map-style data set of (image, label)


def labels_of(images: Images) -> Tensor:  # (N,)
    """Refuses a set of which some images have none."""
    if isinstance(images, TensorDataset):
        labels = images.tensors[1]
    else:
        labels = torch.as_tensor(images.targets if hasattr(images, "targets") else images.labels)
    unlabelled = int((labels < 0).sum())  # torchvision's mark
    if unlabelled:
        raise UsageError(
            f"{unlabelled} of the {len(labels)} training images have no label: they take no class "
            "prior, no long tail and no sampler but epoch"
        )
    return labels
