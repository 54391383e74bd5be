"""`--sampler`: which images make a batch. Whole epochs are drawn; every process takes its share."""

from collections.abc import Iterator
from itertools import islice
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.data import Sampler

from .errors import UsageError, unknown
from .labels import Images, labels_of
from .random import generator


class Order:
    """The images of an epoch, batch by batch: a function of seed and epoch.

    Args:
        images: the training set.
        batch_size: of all processes together.
        seed: of the order.
        classes_per_batch: in orders that count classes; 0 leaves the choice to them.
    """

    takes_classes: ClassVar[bool] = False

    def __init__(
        self, images: Images, batch_size: int, seed: int, classes_per_batch: int = 0
    ) -> None:
        self.images, self.batch_size, self.seed = len(images), batch_size, seed
        self.classes_per_batch = classes_per_batch
        self.batches = self.images // batch_size

    def __len__(self) -> int:
        return self.batches * self.batch_size

    def __call__(self, epoch: int) -> Tensor:  # (len(self),)
        return self.draw(generator(self.seed, 5, epoch))

    def draw(self, random: torch.Generator) -> Tensor:
        raise NotImplementedError


class Shuffled(Order):
    """No image twice in an epoch."""

    def draw(self, random: torch.Generator) -> Tensor:
        return torch.randperm(self.images, generator=random)[: len(self)]


class ClassBalanced(Order):
    """Classes at random, and equally many images of each (Hidden Uniform Cluster Prior, 4 and G).

    An image of a class of N is in a batch with probability (k / classes) * (batch_size / k) / N,
    whatever k is; and in an epoch, classes appear equally often but for one time, as do the
    images of a class. k is `classes_per_batch`; by default as many as divide the batch.
    """

    takes_classes = True

    def __init__(self, images: Images, *rest: int) -> None:
        super().__init__(images, *rest)
        labels = labels_of(images)
        names, counts = (part.tolist() for part in labels.unique(return_counts=True))
        self.members = [part.tolist() for part in labels.argsort(stable=True).split(counts)]
        self.classes = self.classes_per_batch or self.default(len(names))
        _check_classes(self.classes, names, counts, self.batch_size)

    def default(self, classes: int) -> int:
        return _divisors(self.batch_size, classes)[-1]

    def draw(self, random: torch.Generator) -> Tensor:
        classes = Deck(list(range(len(self.members))), random)
        images = [Deck(members, random) for members in self.members]
        each = self.batch_size // self.classes
        batches = []
        for _ in range(self.batches):
            batch = [i for c in classes.deal(self.classes) for i in images[c].deal(each)]
            mixed = torch.randperm(self.batch_size, generator=random)  # a share is no block
            batches.append(torch.tensor(batch)[mixed])
        return torch.cat(batches)


class ClassImbalanced(ClassBalanced):
    """Few classes a batch: by default two, as the paper has it for MSN and VICReg."""

    def default(self, classes: int) -> int:
        return 2


class InverseSquareRoot(Order):
    """Class k of D_k images with probability sqrt(D_k) / sum_j sqrt(D_j), its images uniformly.

    Hidden Uniform Cluster Prior, F (which prints another normaliser). An epoch holds each class,
    and each image, as often as expected, rounded up or down; small classes repeat their images.
    """

    def __init__(self, images: Images, *rest: int) -> None:
        super().__init__(images, *rest)
        labels = labels_of(images)
        _, which, counts = labels.unique(return_inverse=True, return_counts=True)
        self.by_class = which.argsort(stable=True)
        weight = counts.double().rsqrt()[which[self.by_class]]
        self.edges = (weight.cumsum(0) / weight.sum())[:-1]  # of the images' parts of [0, 1)

    def draw(self, random: torch.Generator) -> Tensor:
        """One point in each of len(self) equal parts of [0, 1), in random order."""
        offset = torch.rand((), dtype=torch.float64, generator=random)
        points = (torch.randperm(len(self), generator=random) + offset) / len(self)
        return self.by_class[torch.searchsorted(self.edges, points, right=True)]


class Deck:
    """Cards dealt without replacement, shuffled anew when they run out, no two alike in a hand.

    No card is preferred: each is in a hand of n with probability n / len(cards).
    """

    def __init__(self, cards: list[int], random: torch.Generator) -> None:
        self.cards, self.random = cards, random
        self.pile: Iterator[int] = iter(())

    def deal(self, count: int) -> list[int]:
        hand = list(islice(self.pile, count))
        if len(hand) < count:
            order = torch.randperm(len(self.cards), generator=self.random).tolist()
            fresh = sorted((self.cards[i] for i in order), key=set(hand).__contains__)
            self.pile = iter(fresh)  # what the hand holds comes last
            hand += islice(self.pile, count - len(hand))
        return hand


SAMPLERS: dict[str, type[Order]] = {
    "epoch": Shuffled,
    "class_balanced": ClassBalanced,
    "class_imbalanced": ClassImbalanced,
    "inverse_sqrt": InverseSquareRoot,
}


def build_order(
    name: str, images: Images, batch_size: int, seed: int, classes_per_batch: int = 0
) -> Order:
    if name not in SAMPLERS:
        raise unknown("sampler", name, SAMPLERS)
    if classes_per_batch and not SAMPLERS[name].takes_classes:
        takers = [other for other, order in SAMPLERS.items() if order.takes_classes]
        raise UsageError(
            f"--sampler {name} takes no --classes-per-batch; these do: {', '.join(takers)}"
        )
    return SAMPLERS[name](images, batch_size, seed, classes_per_batch)


class Share(Sampler):
    """One process's (draw, index), every world-size-th; `draw` counts images since the start.

    It seeds the image's augmentation. `skip` = (epoch, batches) that a run which stopped inside
    that epoch has seen of it already.
    """

    def __init__(self, order: Order, world: int, rank: int, skip: tuple[int, int]) -> None:
        self.order, self.world, self.rank, self.skip = order, world, rank, skip
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.order) // self.world

    def set_epoch(self, epoch: int) -> None:  # Lightning calls it
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        indices = self.order(self.epoch).tolist()
        seen = self.skip[1] * self.order.batch_size if self.epoch == self.skip[0] else 0
        for place in range(seen + self.rank, len(indices), self.world):
            yield self.epoch * len(indices) + place, indices[place]


def _divisors(number: int, most: int) -> list[int]:
    return [d for d in range(1, most + 1) if number % d == 0]


def _check_classes(classes: int, names: list[int], counts: list[int], batch_size: int) -> None:
    if not 1 <= classes <= len(names):
        raise UsageError(
            f"--classes-per-batch must lie between 1 and the {len(names)} classes of the training "
            f"images, got {classes}"
        )
    if batch_size % classes:
        fits = _divisors(batch_size, len(names))
        raise UsageError(
            f"a batch takes equally many images of each class: batch_size {batch_size} is no "
            f"multiple of {classes} classes; --classes-per-batch may be "
            f"{', '.join(map(str, fits))}"
        )
    fewest, each = min(counts), batch_size // classes
    if each > fewest:
        raise UsageError(
            f"a batch of {batch_size} takes {each} images of each of its {classes} classes, and "
            f"class {names[counts.index(fewest)]} has {fewest}: raise --classes-per-batch, or "
            f"try --batch-size {fewest * classes}"
        )
