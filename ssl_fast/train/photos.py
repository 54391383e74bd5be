"""Augmentations of photographs, by recipes that carry their source's name.

Crop and flip are a worker's, who reads the image. Colours are too, by torchvision, or with
`--augment-on device` those of a whole batch are changed where the training runs, by kornia, each
image by its own numbers. The second has one order of brightness, contrast, saturation and hue for
all images of a batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from .errors import UsageError, unknown

# Mean and standard deviation of red, green and blue, as published recipes have them.
Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]
IMAGENET: Statistics = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STATISTICS: dict[str, Statistics] = {  # of other photographs
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "stl10": ((0.4914, 0.4823, 0.4466), (0.2470, 0.2430, 0.2610)),
}
SOLARIZED_FROM = 128  # of 255
SIGMAS = 0.1, 2.0  # of blurs, in pixels


@dataclass(frozen=True)
class Recipe:
    """Shares of images; where there are two, of the first strong view and of the others."""

    least_area: float = 0.08  # that a crop keeps
    bicubic: tuple[bool, bool] = (True, True)  # crops of weak views, of the others
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)  # as v2.ColorJitter's
    jittered: float = 0.8
    gray: float = 0.2
    blurred: tuple[float, float] = (0.5, 0.5)
    blurred_from: int = 0  # pixels of the side; smaller images keep their edges
    solarized: tuple[float, float] = (0.0, 0.0)


_CALM = (0.4, 0.4, 0.2, 0.1)
_WILD = (0.8, 0.8, 0.8, 0.2)
_LINEAR = (False, False)

RECIPES = {
    # solo-learn 9187ea3, scripts/pretrain/cifar
    "symmetric": Recipe(jitter=_WILD),
    "symmetric_weak": Recipe(),
    "asymmetric": Recipe(jitter=_CALM, blurred=(0, 0), solarized=(0, 0.2)),
    "vicreg": Recipe(0.2, jitter=_CALM, blurred=(0, 0), solarized=(0.1, 0.1)),
    "wmse": Recipe(0.2, jitter=_WILD, blurred=(0, 0)),
    "reconstruction": Recipe(),  # a weak view alone
    # statsle/WassersteinSSL a16a931
    "wasserstein": Recipe(jitter=_CALM, solarized=(0.2, 0.2)),
    # ssnl/align_uniform 505907b, STL-10
    "align_uniform": Recipe(
        jitter=(0.4, 0.4, 0.4, 0.4), jittered=1, blurred=(0, 0), bicubic=_LINEAR
    ),
    # facebookresearch/moco 010242b, --aug-plus
    "moco": Recipe(0.2, bicubic=_LINEAR),
    # the paper's Table 6
    "byol": Recipe(jitter=_CALM, blurred=(1.0, 0.1), solarized=(0, 0.2)),
    # facebookresearch/msn b334057, msn_vits16.yaml
    "msn": Recipe(0.3, bicubic=_LINEAR),
    # the paper's A.1; a weak view alone
    "mae": Recipe(0.2),
    # winci-ai/resa 0504a2b; its CIFAR runs do not blur
    "resa": Recipe(0.2, (False, True), jitter=_CALM, blurred_from=65, solarized=(0.2, 0.2)),
}


class Colours:
    """What becomes of a crop's colours, and the numbers that networks take."""

    def __init__(
        self, size: int, statistics: Statistics, recipe: Recipe | None = None, number: int = 0
    ) -> None:
        self.statistics = statistics
        self.jitter, self.jittered, self.gray = (0.0,) * 4, 0.0, 0.0
        self.blurred = self.solarized = 0.0
        self.kernel = 23 if size > 64 else 13  # pixels; 13 are three of the largest sigmas
        if recipe is not None:
            self.jitter, self.jittered, self.gray = recipe.jitter, recipe.jittered, recipe.gray
            self.solarized = recipe.solarized[number]
            self.blurred = recipe.blurred[number] if size >= recipe.blurred_from else 0.0

    def transform(self) -> Callable:
        """Of one image."""
        steps = [
            (self.jittered, v2.ColorJitter(*self.jitter)),
            (self.gray, v2.Grayscale(3)),
            (self.blurred, v2.GaussianBlur(self.kernel, SIGMAS)),
            (self.solarized, v2.RandomSolarize(SOLARIZED_FROM, p=1.0)),
        ]
        taken = [v2.RandomApply([step], p=share) for share, step in steps if share]
        numbers = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(*self.statistics)]
        return v2.Compose([*taken, v2.ToImage(), *numbers])

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, list[int]]:
        """Random numbers (N, 9) of `count` images, and the batch's order of the jitter's steps."""
        u = torch.rand(count, 9, generator=generator)
        return u, torch.randperm(4, generator=generator).tolist()

    def batch(self, images: Tensor, u: Tensor, order: list[int]) -> Tensor:
        """(N, 3, H, W) of bytes -> floats."""
        x = F.to_dtype(images, torch.float32, scale=True)
        if self.jittered:
            x = _where(u[:, 0] < self.jittered, self._jitter(x, u[:, 1:5], order), x)
        if self.gray:
            x = _where(u[:, 5] < self.gray, F.rgb_to_grayscale(x, 3), x)
        if self.blurred:
            x = _where(u[:, 6] < self.blurred, self._blur(x, u[:, 7]), x)
        if self.solarized:
            x = _where(u[:, 8] < self.solarized, F.solarize(x, SOLARIZED_FROM / 255), x)
        return F.normalize(x, *(list(each) for each in self.statistics))

    def _jitter(self, x: Tensor, u: Tensor, order: list[int]) -> Tensor:
        enhance = kornia().enhance
        steps = (
            enhance.adjust_brightness_accumulative,
            enhance.adjust_contrast_with_mean_subtraction,
            enhance.adjust_saturation_with_gray_subtraction,
            enhance.adjust_hue,  # radians
        )
        for i in order:
            strength, turn = self.jitter[i], 2 * u[:, i] - 1
            x = steps[i](x, 2 * torch.pi * strength * turn if i == 3 else 1 + strength * turn)
        return x

    def _blur(self, x: Tensor, u: Tensor) -> Tensor:
        low, high = SIGMAS
        sigma = (low + (high - low) * u)[:, None].expand(-1, 2)
        return kornia().filters.gaussian_blur2d(x, (self.kernel, self.kernel), sigma)


class PhotoView:
    """One kind of view, in two parts: `crop` of an image, and `colours` of it or of a batch."""

    def __init__(self, size: int, area: tuple[float, float], bicubic: bool, colours: Colours):
        how = InterpolationMode.BICUBIC if bicubic else InterpolationMode.BILINEAR
        crop = v2.RandomResizedCrop(size, scale=area, interpolation=how, antialias=True)
        geometry = [v2.RGB(), crop, v2.RandomHorizontalFlip()]
        self.crop = v2.Compose([*geometry, v2.PILToTensor()])
        self.colours, self._whole = colours, v2.Compose([*geometry, colours.transform()])

    def __call__(self, image: Any) -> Tensor:
        """The whole view of one image."""
        return self._whole(image)


def photo_views(
    size: int, augmentation: str, statistics: Statistics = IMAGENET
) -> dict[str, PhotoView]:
    """`weak`: crop and flip; `strong`: colours too, and `strong again` where the second differs;
    `local`: as the first, of a small part at half the size, for multi-crop."""
    if augmentation not in RECIPES:
        raise unknown("augmentation", augmentation, RECIPES)
    recipe = RECIPES[augmentation]
    small = 96 if size == 224 else size // 2

    def whole(*colours: Any) -> PhotoView:
        area, bicubic = (recipe.least_area, 1.0), recipe.bicubic[bool(colours)]
        return PhotoView(size, area, bicubic, Colours(size, statistics, *colours))

    part = Colours(small, statistics, recipe)
    views = {
        "weak": whole(),
        "strong": whole(recipe),
        "local": PhotoView(small, (0.05, 0.2), recipe.bicubic[1], part),
    }
    if len({*recipe.blurred}) > 1 or len({*recipe.solarized}) > 1:
        views["strong again"] = whole(recipe, 1)
    return views


def photo_plain(size: int, statistics: Statistics = IMAGENET) -> Callable:
    """For evaluation: the central square, seven eighths of it for large photographs."""
    resize = size if size <= 64 else size * 8 // 7
    whole = v2.Compose([v2.RGB(), v2.Resize(resize), v2.CenterCrop(size)])
    return v2.Compose([whole, Colours(size, statistics).transform()])


def kornia() -> Any:
    try:
        import kornia
    except ImportError as error:
        raise UsageError("--augment-on device needs kornia: pip install kornia") from error
    return kornia


def _where(chosen: Tensor, changed: Tensor, x: Tensor) -> Tensor:
    return torch.where(chosen[:, None, None, None], changed, x)
