"""Images of two independent features: a digit, by power law; a background, uniform."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import TensorDataset

from ..train.data import Source
from ..train.random import generator
from ..train.views import DigitView

CANVAS, DIGIT, EDGE = 32, 16, 2  # pixels; the digit stands in the top left corner
ANGLES, WAVES = 5, (3.0, 6.0)  # backgrounds: gratings of five directions and two frequencies


def two_features(seed: int, images: int, held_out: int, exponent: float) -> Source:
    """Labels are (digit, background) pairs as 10 digit + background; no digit is in both sets.

    The k-th digit has a share proportional to k^-exponent; which digit is the k-th is drawn.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    drawn = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(data.target)
    parts = train_test_split(
        np.arange(len(labels)), test_size=0.3, stratify=data.target, random_state=seed
    )
    order = torch.randperm(10, generator=generator(seed, 20))
    share = torch.empty(10, dtype=torch.float64)
    share[order] = torch.arange(1, 11, dtype=torch.float64) ** -exponent
    train, test = (
        _compose(drawn[part], labels[part], count, share, generator(seed, 21 + i))
        for i, (part, count) in enumerate(zip(parts, (images, held_out), strict=True))
    )
    view = DigitView(degrees=8, zoom=0.15, shift=0.1, contrast=0.4, noise=0.1)
    return Source(train, train, test, None, {"strong": view}, channels=1, image_size=CANVAS)


def _compose(
    drawn: Tensor,  # (M, 1, 8, 8)
    labels: Tensor,  # (M,)
    count: int,
    share: Tensor,  # (10,) of the digits
    random: torch.Generator,
) -> TensorDataset:
    digit = torch.multinomial(share, count, replacement=True, generator=random)
    background = torch.randint(10, (count,), generator=random)
    rows = [(labels == k).nonzero().flatten() for k in range(10)]
    u = torch.rand(count, generator=random)
    chosen = torch.stack([rows[k][int(x * len(rows[k]))] for k, x in zip(digit, u, strict=True)])
    image = 0.5 * _gratings(background, random)
    corner = F.interpolate(drawn[chosen], size=(DIGIT, DIGIT), mode="bilinear")
    place = image[:, :, EDGE : EDGE + DIGIT, EDGE : EDGE + DIGIT]
    place.copy_(torch.maximum(place * (1 - corner), corner))
    return TensorDataset(image, 10 * digit + background)


def _gratings(kind: Tensor, random: torch.Generator) -> Tensor:  # (N, 1, 32, 32) in 0 to 1
    """A random phase and contrast, and a few degrees of turn."""
    u = torch.rand(3, len(kind), 1, 1, generator=random)
    angle = (kind % ANGLES).view(-1, 1, 1) * math.pi / ANGLES + math.radians(6) * (2 * u[0] - 1)
    waves = torch.tensor(WAVES)[kind // ANGLES].view(-1, 1, 1)
    x = torch.linspace(0, 1, CANVAS)
    along = x * torch.cos(angle) + x[:, None] * torch.sin(angle)
    wave = torch.sin(2 * math.pi * (waves * along + u[1]))
    return (0.5 + (0.25 + 0.25 * u[2]) * wave)[:, None]
