"""What the examples share: scikit-learn's digits in several views, small networks, options."""

import argparse
from collections.abc import Callable, Iterable, Sequence

import timm
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.models import resnet18
from torchvision.transforms import v2

Crop = Callable[[Tensor], Tensor]


def options(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--steps", type=int, default=200, help="default 200")
    parser.add_argument("--batch-size", type=int, default=128, help="default 128")
    chosen = parser.parse_args()
    torch.manual_seed(0)
    return chosen


def resnet() -> nn.Module:
    """(N, 1, H, W) to (N, 512)."""
    network = resnet18()
    network.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    network.fc = nn.Identity()
    return network


def vit(**more) -> nn.Module:
    """(N, 1, H, W) to (N, 192), sides a multiple of 8."""
    size = {"img_size": 32, "patch_size": 8, "in_chans": 1, "depth": 4}
    name = "vit_tiny_patch16_224"
    return timm.create_model(name, num_classes=0, dynamic_img_size=True, **size, **more)


def images() -> tuple[Tensor, Tensor]:
    """(1797, 1, 32, 32) between 0 and 1, and their digits."""
    pixels, digits = load_digits(return_X_y=True)
    small = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    return v2.functional.resize(small, [32, 32]), torch.tensor(digits)


def crop(size: int, least: float, most: float = 1.0) -> Crop:
    """A random part of the image, `least` to `most` of its area, turned and blurred a little."""
    return v2.Compose([
        v2.RandomResizedCrop(size, scale=(least, most), ratio=(0.8, 1.25)),
        v2.RandomRotation(10),
        v2.GaussianBlur(3, (0.1, 1.0)),
    ])  # fmt: skip


class Views(Dataset):
    """Every image as a list of its crops."""

    def __init__(self, crops: Sequence[Crop]):
        self.images, self.crops = images()[0], crops

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> list[Tensor]:
        return [crop(self.images[index]) for crop in self.crops]


def batches(crops: Sequence[Crop], chosen: argparse.Namespace) -> Iterable[list[Tensor]]:
    """A list a step: for each crop a tensor (batch size, 1, H, W)."""
    views = Views(crops)
    order = RandomSampler(views, num_samples=chosen.steps * chosen.batch_size)
    return DataLoader(views, chosen.batch_size, sampler=order)


def report(step: int, loss: Tensor) -> None:
    if step % 10 == 0:
        print(f"step {step:4d}  loss {loss.item():.4f}", flush=True)


@torch.no_grad()
def report_neighbours(features: Callable[[Tensor], Tensor], count: int = 600) -> None:
    """How often the five nearest of the other images name the digit."""
    pictures, digits = images()
    found = torch.cat([features(part) for part in pictures[:count].split(100)])
    nearest = KNeighborsClassifier(5, metric="cosine")
    accuracy = cross_val_score(nearest, found.numpy(), digits[:count].numpy()).mean()
    print(f"nearest neighbours: {accuracy:.1%}")
