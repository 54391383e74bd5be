"""Augmentations of digits. `weak`: what keeps the content; `strong`: everything; `local`: the same
on a small part, at half the size, for multi-crop.

They work on a batch on the device, each image with its own parameters (torchvision draws one set
for a whole batch). photos.py has those of photographs.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def affine_sample(
    images: Tensor,  # (N, C, H, W)
    angle: Tensor,  # (N,) radians
    scale: Tensor,  # (N, 2) above 1 enlarges, horizontally and vertically
    shift: Tensor,  # (N, 2) to the right and down; 2 is the image's width
    size: int,
) -> Tensor:  # (N, C, size, size)
    """Each image turned, scaled and shifted by its own amounts; zeros outside."""
    cos, sin = torch.cos(angle), torch.sin(angle)
    turn = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)
    inverse = turn / scale[:, :, None]  # grid_sample wants the map from output to input
    theta = torch.cat([inverse, -inverse @ shift[:, :, None]], 2)
    grid = F.affine_grid(theta, [len(images), images.shape[1], size, size], align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


class DigitView:
    """No flips: a mirrored digit is another sign."""

    def __init__(
        self,
        degrees: float,
        zoom: float,
        shift: float,
        contrast: float = 0.0,
        noise: float = 0.0,
        erase: float = 0.0,
        enlarge: float = 1.0,  # before the random zoom
        size: int | None = None,  # of the view in pixels; None keeps the image's
    ) -> None:
        self.radians, self.zoom, self.shift = math.radians(degrees), zoom, shift
        self.contrast, self.noise, self.erase = contrast, noise, erase
        self.enlarge, self.size = enlarge, size

    def draw(self, count: int, size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Random numbers for `count` images; drawn on the CPU, so the same on every device."""
        numbers = {"u": torch.rand(count, 12, generator=generator)}
        size = self.size or size
        if self.noise:
            numbers["pixels"] = torch.randn(count, 1, size, size, generator=generator)
        return numbers

    def __call__(self, images: Tensor, u: Tensor, pixels: Tensor | None = None) -> Tensor:
        n, size = len(images), self.size or images.shape[-1]
        signed = 2 * u - 1
        aspect = torch.stack([signed[:, 1], -signed[:, 1]], 1) / 10
        scale = self.enlarge * torch.exp(self.zoom * signed[:, :1] + aspect)
        angle = self.radians * signed[:, 2]
        images = affine_sample(images, angle, scale, self.shift * signed[:, 3:5], size)
        images = images * torch.exp(self.contrast * signed[:, 5]).view(n, 1, 1, 1)
        if pixels is not None:
            images = images + pixels * (self.noise * u[:, 6]).view(n, 1, 1, 1)
        return images.masked_fill(self._erased(u, size), 0) if self.erase else images

    def _erased(self, u: Tensor, size: int) -> Tensor:  # (N, 1, size, size) bool
        """A rectangle of one to three tenths of the side, in a share `erase` of the images."""
        position = torch.linspace(0, 1, size, device=u.device)
        inside = [
            (position - u[:, 7 + axis, None]).abs() < 0.05 + 0.1 * u[:, 9 + axis, None]
            for axis in (0, 1)
        ]
        box = inside[0][:, None, :] & inside[1][:, :, None]
        return (box & (u[:, 11, None, None] < self.erase))[:, None]
