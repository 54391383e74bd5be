"""Photographs in folders: ImageFolder's layout, and iNaturalist's as torchvision has it on disk."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torchvision.datasets import ImageFolder, INaturalist

from .corrupt import open_image
from .errors import UsageError
from .labels import Images, take

INATURALIST = (
    "iNaturalist lies in one of these layouts: 2021_train or 2021_train_mini, and 2021_valid; 2018 "
    "(or 2017, 2019) with train2018.json and val2018.json; train/SPECIES/1.jpg and val/SPECIES/..."
)


def expect(folder: Path, names: Sequence[str], origin: str) -> None:
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        listing = "\n".join(f"  {folder / name}" for name in missing)
        raise UsageError(f"these files are expected and missing:\n{listing}\n({origin})")


def image_folder(
    folder: Path, origin: str = "one folder per class in each: train/cat/001.jpg"
) -> tuple[Images, Images]:
    """Training and held-out images."""
    held_out = "test" if (folder / "test").is_dir() else "val"
    expect(folder, ["train", held_out], origin)
    train, test = (
        ImageFolder(str(folder / part), loader=open_image) for part in ("train", held_out)
    )
    _same_classes(train.classes, test.classes, folder)
    return train, test


def inaturalist(folder: Path) -> tuple[Images, Images]:
    """Training and held-out images; before 2021 they share a folder, and lists tell them apart."""
    for version in ("2021_train", "2021_train_mini"):
        if (folder / version).is_dir():
            expect(folder, ["2021_valid"], INATURALIST)
            train, test = (_inaturalist(folder, part) for part in (version, "2021_valid"))
            _same_classes(train.all_categories, test.all_categories, folder)
            return train, test
    for year in ("2019", "2018", "2017"):
        if (folder / year).is_dir():
            lists = [f"{part}{year}.json" for part in ("train", "val")]
            expect(folder, lists, INATURALIST)
            images = _inaturalist(folder, year)
            train, test = (_listed(images, folder / name) for name in lists)
            return train, test
    return image_folder(folder, INATURALIST)


def _inaturalist(folder: Path, version: str) -> Any:
    images: Any = INaturalist(folder, version, loader=open_image)
    images.index.sort()  # torchvision leaves the file system's order
    images.targets = [label for label, _ in images.index]
    return images


def _listed(images: Any, path: Path) -> Images:
    """Those that a competition's list names: train_val2018/Aves/2761/1.jpg."""
    names = {
        image["file_name"].partition("/")[2] for image in json.loads(path.read_text())["images"]
    }
    files = [f"{images.all_categories[label]}/{file}" for label, file in images.index]
    missing = sorted(names.difference(files))
    if missing:
        raise UsageError(
            f"{path} lists {len(names)} images; {len(missing)} are missing in {images.root}, such "
            f"as {missing[0]}"
        )
    return take(images, torch.tensor([i for i, file in enumerate(files) if file in names]))


def _same_classes(train: Sequence[str], test: Sequence[str], folder: Path) -> None:
    if list(train) != list(test):
        lonely = sorted(set(train) ^ set(test))
        raise UsageError(
            f"training and held-out images in {folder} must have the same classes; these are in "
            f"one part only: {', '.join(lonely[:5])}{' ...' if lonely[5:] else ''}"
        )
