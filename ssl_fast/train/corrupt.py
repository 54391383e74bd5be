"""`--corrupt`: photographs that no decoder reads, named and fatal, or named and left out."""

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets.folder import default_loader

from .errors import UsageError
from .labels import Images, take


class CorruptImage(UsageError):
    """Names the file, whether raised here or in a loader's worker, which adds its traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition("CorruptImage: ")[2].strip())


def open_image(path: str | Path) -> Any:
    try:
        return default_loader(path)
    except Exception as error:  # each decoder has its own
        raise CorruptImage(f"corrupt image {path} ({error})") from None


def readable(images: Images, workers: int) -> tuple[Images, list[str]]:
    """The images that can be read, in their order, and what is said of the others."""
    loader = DataLoader(_Complaints(images), 64, num_workers=workers, collate_fn=list)
    complaints = [complaint for batch in loader for complaint in batch]
    kept = [i for i, complaint in enumerate(complaints) if not complaint]
    if not kept:
        raise UsageError(f"none of {len(complaints)} images can be read: {complaints[0]}, ...")
    if len(kept) == len(complaints):
        return images, []
    return take(images, torch.tensor(kept)), [c for c in complaints if c]


class _Complaints(Dataset):
    """Nothing for an image that can be read."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> str:
        try:
            self.images[index]
        except CorruptImage as error:
            return str(error)
        return ""
