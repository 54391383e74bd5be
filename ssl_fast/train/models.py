"""Encoders (image -> encoding h) and the heads on top of them (h -> embedding z)."""

import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock
from torchvision.ops import MLP

from .errors import UsageError


class Encoder(nn.Sequential):
    """A network that knows the width of its encodings: (N, C, H, W) -> (N, dim)."""

    def __init__(self, *layers: nn.Module, dim: int) -> None:
        super().__init__(*layers)
        self.dim = dim


def build_encoder(name: str, channels: int, image_size: int) -> Encoder:
    """`small-W`: four residual blocks of width W, 2W, 4W, 8W; else a torchvision ResNet."""
    if name.startswith("small-") and name[6:].isdigit() and int(name[6:]) > 0:
        return _small(channels, width=int(name[6:]))
    if name in ("resnet18", "resnet34", "resnet50"):
        return _resnet(name, channels, small_images=image_size <= 64)
    raise UsageError(
        f"unknown encoder {name!r}. Known: small-W with a width W (small-16), "
        "resnet18, resnet34, resnet50."
    )


def projector(dim: int, hidden: int, out: int) -> nn.Module:
    """Three layers with batch norm and ReLU; the last batch norm has no affine parameters."""
    layers = MLP(dim, [hidden, hidden, out], norm_layer=nn.BatchNorm1d, bias=False)
    return nn.Sequential(layers, nn.BatchNorm1d(out, affine=False))


def predictor(dim: int, hidden: int) -> nn.Module:
    return MLP(dim, [hidden, dim], norm_layer=nn.BatchNorm1d, bias=False)


def _small(channels: int, width: int) -> Encoder:
    stem = nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False)
    widths = [width, width, 2 * width, 4 * width, 8 * width]
    blocks = [_block(widths[i], widths[i + 1], stride=1 if i == 0 else 2) for i in range(4)]
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return Encoder(stem, nn.BatchNorm2d(width), nn.ReLU(), *blocks, *head, dim=8 * width)


def _block(inputs: int, outputs: int, stride: int) -> BasicBlock:
    shortcut = None
    if stride != 1 or inputs != outputs:
        convolution = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
        shortcut = nn.Sequential(convolution, nn.BatchNorm2d(outputs))
    return BasicBlock(inputs, outputs, stride, shortcut)


def _resnet(name: str, channels: int, small_images: bool) -> Encoder:
    network = getattr(torchvision.models, name)()
    dim = network.fc.in_features
    if small_images:
        network.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    elif channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    network.fc = nn.Identity()
    return Encoder(network, dim=dim)
