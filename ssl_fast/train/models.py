"""Encoders: image -> encoding h, and -> its patches' tokens where a method hides patches."""

import math
import re
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from .errors import UsageError
from .masks import Grid

SIZES = {  # width, depth, heads
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}


class Encoder(nn.Sequential):
    """A convolutional network that ends in a pooled map: (N, C, H, W) -> (N, dim).

    What a transformer does not see is black here. `keep` counts squares of an eighth of the side,
    `patch` pixels each, `mask` the cells of the last map, `stride` pixels each.
    """

    def __init__(
        self, *layers: nn.Module, channels: int, image_size: int, dim: int, stride: int
    ) -> None:
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.channels, self.image_size, self.patch = channels, image_size, image_size // 8
        self.dim, self.stride = dim, stride
        self.widths = [dim // 8, dim // 4, dim // 2, dim]  # of the four stages

    def squares(self, images: Tensor) -> Grid:
        return 8, 8

    def grid(self, images: Tensor) -> Grid:
        stem: Any = self[0]
        wider = 2 * (stem.padding[0] - stem.kernel_size[0] // 2)  # than a stem that keeps the size
        rows, columns = (math.ceil((side + wider) / self.stride) for side in images.shape[-2:])
        return rows, columns

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        if keep is not None:
            images = _shown(images, keep, self.squares(images))
        return super().forward(images)

    def visible(self, images: Tensor, keep: Tensor | None = None) -> Tensor:  # (N, 1, dim)
        """The pooled map is the one token."""
        return self(images, keep)[:, None]

    def pool(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0]

    def last_blocks(self, images: Tensor, count: int) -> list[Tensor]:  # (N, 64, width) each
        """Maps of the last `count` stages, averaged over the squares."""
        maps = []
        for layer in list(self)[:-2]:
            images = layer(images)
            maps.append(images)
        grid = self.squares(images)
        return [F.adaptive_avg_pool2d(m, grid).flatten(2).mT for m in maps[-count:]]

    def tokens(  # (N, 1 + T, dim): the pooled map, then its cells
        self, images: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None
    ) -> Tensor:
        if mask is not None:
            hidden = mask.view(-1, 1, *self.grid(images)).float()
            images = images * (1 - F.interpolate(hidden, images.shape[-2:]))
        for layer in list(self)[:-2]:
            images = layer(images)
        cells = images.flatten(2).mT
        return torch.cat([cells.mean(1, keepdim=True), cells], 1)


class ViT(nn.Module):
    """timm's vision transformer: (N, C, H, W) of any size -> (N, dim), the class token's output.

    `network.global_pool = "avg"` takes the mean of the patches' instead.
    """

    def __init__(
        self, channels: int, image_size: int, patch: int, width: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        self.channels, self.image_size, self.patch = channels, image_size, patch
        self.dim, self.widths = width, [width] * depth  # of the blocks
        self.network = VisionTransformer(
            img_size=image_size,
            patch_size=patch,
            in_chans=channels,
            num_classes=0,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            dynamic_img_size=True,
        )

    def grid(self, images: Tensor) -> Grid:
        return images.shape[-2] // self.patch, images.shape[-1] // self.patch

    squares = grid

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        return self.pool(self.visible(images, keep))

    def pool(self, tokens: Tensor) -> Tensor:
        return self.network.pool(tokens)

    def visible(  # (N, 1 + k, dim): class token, then the patches in `keep`
        self, images: Tensor, keep: Tensor | None = None
    ) -> Tensor:
        """`keep` (N, k): the patches that are seen."""
        return self._run(self.network.patch_embed(images), keep)

    def tokens(  # (N, 1 + T, dim): class token, then the patches
        self, images: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None
    ) -> Tensor:
        """`mask` (N, T): the patches that `mask_token` (dim,) replaces."""
        patches = self.network.patch_embed(images)
        if mask is not None:
            assert mask_token is not None
            hidden = mask.view(*patches.shape[:3], 1)
            patches = torch.where(hidden, mask_token.to(patches.dtype), patches)
        return self._run(patches, None)

    def last_blocks(self, images: Tensor, count: int) -> list[Tensor]:  # (N, T, dim) each
        """Patches after each of the last `count` blocks, before the final norm."""
        out: Any = self.network.forward_intermediates(
            images, count, output_fmt="NLC", intermediates_only=True
        )
        return out

    def _run(self, patches: Tensor, keep: Tensor | None) -> Tensor:
        x = self.network._pos_embed(patches)
        if keep is not None:
            index = torch.cat([keep.new_zeros(len(keep), 1), keep + 1], 1)
            x = x.take_along_dim(index[:, :, None], 1)
        return self.network.norm(self.network.blocks(self.network.norm_pre(x)))


AnyEncoder = Encoder | ViT


def patch_grid(encoder: AnyEncoder) -> Grid:
    """Patches of the images that the encoder was built for."""
    if isinstance(encoder, Encoder) and encoder.image_size % 8:
        raise ValueError(
            f"patches are eighths of the side, and {encoder.image_size} pixels are no multiple of "
            "8: try another --image-size, or a ViT"
        )
    side = encoder.image_size // encoder.patch
    return side, side


def average_patches(encoder: AnyEncoder) -> None:
    """From now on a transformer encodes by the mean of its patches, as others do."""
    if isinstance(encoder, ViT):
        encoder.network.global_pool = "avg"


def sine_positions(grid: Grid, width: int) -> Tensor:  # (1, 1 + T, width)
    """Fixed two-dimensional sines and cosines, after zeros for the class token."""
    if width % 4:
        raise ValueError(f"positions by sines need a width that is a multiple of 4, got {width}")
    patches = build_sincos2d_pos_embed(list(grid), width)
    return torch.cat([torch.zeros(1, width), patches])[None]


def build_encoder(name: str, channels: int, image_size: int) -> AnyEncoder:
    """`small-W`: four residual blocks of width W, 2W, 4W, 8W; a torchvision ResNet; `vit-W/P`.

    `-pad2` behind a ResNet pads its stem for images up to 64 pixels by 2, as solo-learn's.
    """
    if re.fullmatch(r"small-[1-9]\d*", name):
        return _small(channels, image_size, width=int(name[6:]))
    if match := re.fullmatch(r"(resnet(?:18|34|50))(-pad2)?", name):
        return _resnet(match[1], channels, image_size, padding=2 if match[2] else 1)
    if match := re.fullmatch(r"vit-(tiny|small|base|large|[1-9]\d*)/([1-9]\d*)", name):
        return _vit(match[1], int(match[2]), channels, image_size)
    raise UsageError(
        f"unknown encoder {name!r}. Known: small-W with a width W (small-16), resnet18, resnet34, "
        "resnet50, the same with -pad2, vit-W/P with a width W or tiny, small, base, large and "
        "patches of P pixels (vit-64/4)."
    )


def _small(channels: int, image_size: int, width: int) -> Encoder:
    stem = nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False)
    widths = [width, width, 2 * width, 4 * width, 8 * width]
    blocks = [_block(widths[i], widths[i + 1], stride=1 if i == 0 else 2) for i in range(4)]
    layers = [stem, nn.BatchNorm2d(width), nn.ReLU(), *blocks]
    return Encoder(*layers, channels=channels, image_size=image_size, dim=8 * width, stride=16)


def _block(inputs: int, outputs: int, stride: int) -> BasicBlock:
    shortcut = None
    if stride != 1 or inputs != outputs:
        convolution = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
        shortcut = nn.Sequential(convolution, nn.BatchNorm2d(outputs))
    return BasicBlock(inputs, outputs, stride, shortcut)


def _resnet(name: str, channels: int, image_size: int, padding: int) -> Encoder:
    network, small_images = getattr(torchvision.models, name)(), image_size <= 64
    dim, stride = network.fc.in_features, 8 if small_images else 32
    if small_images:
        network.conv1 = nn.Conv2d(channels, 64, 3, padding=padding, bias=False)
        network.maxpool = nn.Identity()
    elif channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    layers = list(network.children())[:-2]  # without pooling and classifier
    return Encoder(*layers, channels=channels, image_size=image_size, dim=dim, stride=stride)


def _vit(size: str, patch: int, channels: int, image_size: int) -> ViT:
    if image_size % patch:
        raise UsageError(
            f"images of {image_size} pixels do not divide into patches of {patch}: "
            f"try /{next(p for p in (4, 8, 7, 5, 3, 2, 1) if image_size % p == 0)}"
        )
    if size in SIZES:
        width, depth, heads = SIZES[size]
    else:
        width, depth, heads = int(size), 4, max(1, int(size) // 32)
        if width % heads:
            raise UsageError(f"the width of vit-{size} must be a multiple of 32, or below it")
    return ViT(channels, image_size, patch, width, depth, heads)


def _shown(images: Tensor, keep: Tensor, grid: Grid) -> Tensor:
    shown = images.new_zeros(len(images), grid[0] * grid[1]).scatter_(1, keep, 1.0)
    return images * F.interpolate(shown.view(-1, 1, *grid), images.shape[-2:])
