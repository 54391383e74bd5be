"""`--long-tail`: training sets whose classes fall off in size; test sets stay as they are."""

from typing import NamedTuple

import torch
from torch import Tensor

from .data import Source
from .errors import UsageError
from .labels import labels_of, take
from .random import generator


class LongTail(NamedTuple):
    """`name` is imbalance or power_law; classes are ranked by their labels' numbers."""

    name: str
    imbalance_factor: float = 20.0
    tail_exponent: float = 0.5

    def shares(self, classes: int) -> Tensor:  # (classes,), the first is 1
        """Of a class, relative to the first: 1 down to 1 / factor evenly in logs, or a power."""
        rank = torch.arange(classes, dtype=torch.float64)
        if self.name == "power_law":
            return (rank + 1) ** -self.tail_exponent
        return self.imbalance_factor ** (-rank / max(classes - 1, 1))

    def sizes(self, counts: Tensor) -> Tensor:  # (classes,) each
        """As many of `counts` images as keep the shares, rounded down as CIFAR100-LT's are."""
        shares = self.shares(len(counts))
        head = (counts / shares + 1e-9).floor().min()
        return (head * shares + 1e-9).floor().long()


def cut(source: Source, tail: LongTail, seed: int) -> Source:
    """The source with a long-tailed training set; the seed draws the images that stay."""
    labels = labels_of(source.pretrain)
    names, counts = labels.unique(return_counts=True)
    sizes = tail.sizes(counts)
    if not sizes.all():
        empty = names[sizes == 0].tolist()
        raise UsageError(
            f"--long-tail {tail.name} leaves no image of class {', '.join(map(str, empty))}: "
            "lower --imbalance-factor or --tail-exponent"
        )
    shuffled = torch.randperm(len(labels), generator=generator(seed, 6))
    members = shuffled[labels[shuffled].argsort(stable=True)].split(counts.tolist())
    kept = torch.cat([m[:size] for m, size in zip(members, sizes.tolist(), strict=True)])
    subset = take(source.pretrain, kept.sort().values)
    return source._replace(pretrain=subset, train=subset)
