"""Labelled images and the views that a method asks for."""

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from torchvision import datasets

from . import photos, views
from .corrupt import readable
from .errors import UsageError, unknown
from .folders import expect, image_folder, inaturalist
from .labels import Images, evenly
from .random import derive_seed, generator
from .samplers import Order, Share

CANVAS = 32  # pixels
SMALLEST, LARGEST, DEGREES = 14, 26, 30  # of the digits on it


class Source(NamedTuple):
    """What a data set offers; a view is a weak or strong augmentation, or a small local crop."""

    pretrain: Images  # labels serve class priors and samplers by class
    train: Images  # for nearest neighbours and linear probe
    test: Images
    plain: Callable | None  # un-augmented image -> tensor; None: images are tensors already
    views: dict[str, Any]
    channels: int
    image_size: int
    statistics: photos.Statistics = photos.IMAGENET  # that photographs are normalised by

    def chosen(self, names: Sequence[str]) -> list[Any]:
        """Views by name; the second of a name, and later ones, may have a recipe of their own."""
        again = [f"{name} again" if name in names[:i] else name for i, name in enumerate(names)]
        return [
            self.views.get(other, self.views[name])
            for other, name in zip(again, names, strict=True)
        ]


def digits(seed: int) -> Source:
    """Real handwritten digits on a 32 x 32 canvas, each turned, scaled and shifted once.

    Training and test sets share no digit: 1437 and 360 of them, stratified by class.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    digit = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16  # (1797, 1, 8, 8)
    u = torch.rand(len(digit), 4, generator=generator(seed, 0))
    side = (SMALLEST + (LARGEST - SMALLEST) * u[:, :1]) / CANVAS
    shift = (2 * u[:, 1:3] - 1) * (1 - side)  # the upright digit stays on the canvas
    angle = math.radians(DEGREES) * (2 * u[:, 3] - 1)
    images = views.affine_sample(digit, angle, side.expand(-1, 2), shift, CANVAS)

    labels = torch.tensor(data.target)
    parts = train_test_split(
        np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=seed % 2**32
    )
    train, test = (TensorDataset(images[part], labels[part]) for part in parts)
    augment = {
        "weak": views.DigitView(degrees=8, zoom=0.15, shift=0.1),
        "strong": views.DigitView(degrees=15, zoom=0.3, shift=0.2, contrast=0.4, noise=0.1),
        "local": views.DigitView(
            degrees=15, zoom=0.2, shift=0.5, contrast=0.4, noise=0.1, enlarge=1.7, size=CANVAS // 2
        ),
    }
    return Source(train, train, test, None, augment, channels=1, image_size=CANVAS)


def _cifar(name: str, size: int, folder: Path, augmentation: str) -> Source:
    dataset: Any = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    names = [name for name, _ in dataset.train_list + dataset.test_list]
    expect(folder, [f"{dataset.base_folder}/{name}" for name in names], dataset.url)
    train, test = (dataset(str(folder), train=part) for part in (True, False))
    return _photos(train, test, size or 32, augmentation, name)


def _stl10(size: int, folder: Path, augmentation: str) -> Source:
    names = ["train_X.bin", "train_y.bin", "unlabeled_X.bin", "test_X.bin", "test_y.bin"]
    base = datasets.STL10.base_folder
    expect(folder, [f"{base}/{name}" for name in names], datasets.STL10.url)
    everything, train, test = (
        datasets.STL10(str(folder), split=split) for split in ("train+unlabeled", "train", "test")
    )
    return _photos(train, test, size or 96, augmentation, "stl10")._replace(pretrain=everything)


def _photos(train: Images, test: Images, size: int, augmentation: str, name: str = "") -> Source:
    statistics = photos.STATISTICS.get(name, photos.IMAGENET)
    plain = photos.photo_plain(size, statistics)
    augment = photos.photo_views(size, augmentation, statistics)
    return Source(train, train, test, plain, augment, 3, size, statistics)


DATA: dict[str, Callable[[int, Path, int, str], Source]] = {
    "digits": lambda seed, folder, size, how: digits(seed),
    "cifar10": lambda seed, folder, size, how: _cifar("cifar10", size, folder, how),
    "cifar100": lambda seed, folder, size, how: _cifar("cifar100", size, folder, how),
    "stl10": lambda seed, folder, size, how: _stl10(size, folder, how),
    "imagefolder": lambda seed, folder, size, how: _photos(*image_folder(folder), size or 224, how),
    "inaturalist": lambda seed, folder, size, how: _photos(*inaturalist(folder), size or 224, how),
}


def open_data(
    name: str,
    *,
    seed: int,
    data_dir: str = "data",
    image_size: int = 0,
    augmentation: str = "resa",
) -> Source:
    if name not in DATA:
        raise unknown("data", name, DATA)
    try:
        return DATA[name](seed, Path(data_dir), image_size, augmentation)
    except (RuntimeError, FileNotFoundError) as error:  # what torchvision says of its files
        raise UsageError(f"{name} in {data_dir} cannot be used: {error}") from error


def skip_corrupt(source: Source, workers: int) -> Source:
    """Without the photographs that cannot be read: opens them all, and names those."""
    if source.plain is None:
        return source
    parts = {id(part): part for part in (source.pretrain, source.train, source.test)}
    kept = {key: readable(images, workers) for key, images in parts.items()}
    _tell([complaint for _, complaints in kept.values() for complaint in complaints])
    pretrain, train, test = (kept[id(p)][0] for p in (source.pretrain, source.train, source.test))
    return source._replace(pretrain=pretrain, train=train, test=test)


@rank_zero_only
def _tell(complaints: list[str]) -> None:
    for complaint in complaints:
        print(f"skipped: {complaint}", file=sys.stderr)


class Views(Dataset):
    """Photographs: (draw, index) -> views, index and draw; seeded by (seed, draw, index)."""

    def __init__(self, images: Images, transforms: Sequence[Callable], seed: int) -> None:
        self.images, self.transforms, self.seed = images, transforms, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[list[Tensor], int, int]:
        draw, index = key
        image, _ = self.images[index]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, *key))
            return [transform(image) for transform in self.transforms], index, draw


class Batches(Dataset):
    """Images that are tensors already, fetched a batch at a time and augmented later.

    Behind images and indices, how many batches were before since the start.
    """

    def __init__(self, images: Images, batch_size: int) -> None:
        self.images, self.batch_size = images, batch_size

    def __getitems__(self, keys: list[tuple[int, int]]) -> tuple[Tensor, Tensor, int]:
        index = torch.tensor([index for _, index in keys])
        return self.images[index][0], index, keys[0][0] // self.batch_size


class ViewData(LightningDataModule):
    """Batches of `views`, e.g. ("weak", "strong"): a list of (N, C, H, W), and indices (N,).

    A process gets every world-size-th image of the order's batches, with the same augmentation as
    one process would give it.
    """

    def __init__(
        self,
        source: Source,
        views: Sequence[str],
        order: Order,
        workers: int,
        colours_on_device: bool = False,  # of photographs
    ) -> None:
        super().__init__()
        self.source, self.views, self.order, self.workers = source, views, order, workers
        self.batch_size, self.seed = order.batch_size, order.seed
        self.colours_on_device = colours_on_device
        self.skip = (0, 0)

    def state_dict(self) -> dict[str, Any]:
        """Where in which epoch the training stands."""
        assert self.trainer is not None
        each = self.trainer.accumulate_grad_batches
        epoch, steps = divmod(
            self.trainer.global_step, int(self.trainer.num_training_batches) // each
        )
        return {"epoch": epoch, "batches": steps * each}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.skip = state["epoch"], state["batches"]

    def train_dataloader(self) -> DataLoader:
        world, rank = self._place()
        images, size = self.source.pretrain, self.batch_size // world
        sampler = Share(self.order, world, rank, self.skip)
        if self.source.plain is None:
            batches = Batches(images, self.batch_size)
            return DataLoader(batches, size, sampler=sampler, drop_last=True, collate_fn=_unchanged)
        views = self.source.chosen(self.views)
        transforms = [view.crop for view in views] if self.colours_on_device else views
        photographs = Views(images, transforms, self.seed)
        return DataLoader(
            photographs, size, sampler=sampler, drop_last=True, num_workers=self.workers
        )

    def on_after_batch_transfer(self, batch, dataloader_idx: int) -> tuple[list[Tensor], Tensor]:
        images, index, number = batch
        views = self.source.chosen(self.views)
        if self.source.plain is None:
            return self._augmented(views, images, number), index
        if self.colours_on_device:
            images = self._coloured(views, images, int(number[0]) // self.batch_size)
        return images, index

    def _augmented(self, views: list[Any], images: Tensor, number: int) -> list[Tensor]:
        """Views of batch `number`: every process draws for all of it, and takes its own."""
        random, (world, rank) = generator(self.seed, 1, number), self._place()
        out = []
        for view in views:
            numbers = view.draw(self.batch_size, images.shape[-1], random)
            own = {k: v[rank::world].to(images.device) for k, v in numbers.items()}
            out.append(view(images, **own))
        return out

    def _coloured(self, views: list[Any], crops: list[Tensor], number: int) -> list[Tensor]:
        """As `_augmented`, of photographs that are cropped already."""
        random, (world, rank) = generator(self.seed, 1, number), self._place()
        out = []
        for view, images in zip(views, crops, strict=True):
            u, order = view.colours.draw(self.batch_size, random)
            out.append(view.colours.batch(images, u[rank::world].to(images.device), order))
        return out

    def _place(self) -> tuple[int, int]:
        """World size and rank."""
        assert self.trainer is not None
        return self.trainer.world_size, self.trainer.global_rank


def plain_loader(source: Source, part: str, limit: int = 0, workers: int = 0) -> DataLoader:
    """Un-augmented images and labels of a part of the source; at most `limit`, evenly spread."""
    dataset = getattr(source, part)
    if source.plain is None:
        workers = 0
    else:
        dataset = Plain(dataset, source.plain)
    if limit:
        dataset = Subset(dataset, evenly(len(dataset), limit).tolist())
    return DataLoader(dataset, 512, num_workers=workers)


class Plain(Dataset):
    def __init__(self, images: Images, transform: Callable) -> None:
        self.images, self.transform = images, transform

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[index]
        return self.transform(image), label

    def __len__(self) -> int:
        return len(self.images)


def _unchanged(batch: Any) -> Any:
    return batch
