"""Classifiers on top of an encoder: linear on its features, and trained together with it."""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR
from torch.utils.data import DataLoader, Dataset

from . import evaluate
from .evaluate import Features
from .random import generator

BATCH = 1000  # features a step
FIRST_LR, LAST_LR, DECAY = 1e-2, 1e-6, 5e-6


def linear_accuracy(
    f: Features,
    *,
    batch_norm: bool = False,
    epochs: int = 500,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> float:
    """Of a linear classifier by Adam, learning rate 1e-2 to 1e-6 exponentially, on fixed features.

    Args:
        f: un-augmented features.
        batch_norm: one without affine parameters in front of it.
        epochs: passes over the features, 1000 a step.
        seed: of their order.
        device: where it is trained.

    Source: ReSA, B.3 (W-MSE's and INTL's protocol), weight decay 5e-6.
    """
    names, targets = np.unique(f.train_labels, return_inverse=True)
    x = torch.from_numpy(f.train).to(device)
    y = torch.from_numpy(targets).to(device)
    norm: nn.Module = nn.Identity()
    if batch_norm:
        norm = nn.BatchNorm1d(x.shape[1], affine=False, momentum=None)  # features stand still
    head = nn.Sequential(norm, _zero_linear(x.shape[1], len(names))).to(device)
    optimizer = torch.optim.Adam(head.parameters(), FIRST_LR, weight_decay=DECAY)
    schedule = ExponentialLR(optimizer, (LAST_LR / FIRST_LR) ** (1 / epochs))
    for rows in _orders(len(x), epochs, seed):
        for part in rows.to(device).chunk(-(-len(x) // BATCH)):  # no chunk of a single row
            optimizer.zero_grad()
            F.cross_entropy(head(x[part]), y[part]).backward()
            optimizer.step()
        schedule.step()
    with torch.no_grad():
        found = head.eval()(torch.from_numpy(f.test).to(device)).argmax(1).cpu().numpy()
    return float((names[found] == f.test_labels).mean())


def finetuned_accuracy(
    encoder: nn.Module,
    train: Dataset,
    labels: np.ndarray,
    test: DataLoader,
    *,
    epochs: int = 100,
    lr: float = 0.01,
    head_lr: float = 0.1,
    batch_size: int = 256,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> float:
    """Of encoder and linear classifier trained together; the given encoder stays as it is.

    SGD with momentum .9 and a cosine to 0, as ReSA's Table 10.

    Args:
        encoder: with its width in `dim`.
        train: (image, label) without augmentation.
        labels: of `train`.
        test: batches of the same.
        epochs: passes over the images; the paper takes 20 of many steps each.
        lr: of the encoder; the paper takes 2e-4.
        head_lr: of the classifier, which starts from 0; the paper takes 40.
        batch_size: images a step.
        seed: of their order.
        device: where it is trained.
    """
    names = torch.from_numpy(np.unique(labels))
    encoder = copy.deepcopy(encoder).to(device).train().requires_grad_(True)
    head = _zero_linear(encoder.dim, len(names)).to(device)
    rates = [(encoder, lr), (head, head_lr)]
    groups = [{"params": list(part.parameters()), "lr": rate} for part, rate in rates]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    drop = len(labels) > batch_size  # one image has no batch norm
    order = generator(seed, 7)
    loader = DataLoader(train, batch_size, shuffle=True, drop_last=drop, generator=order)
    schedule = CosineAnnealingLR(optimizer, epochs * len(loader))
    for _ in range(epochs):
        for images, given in loader:
            optimizer.zero_grad()
            targets = torch.searchsorted(names, given).to(device)
            F.cross_entropy(head(encoder(images.to(device))), targets).backward()
            optimizer.step()
            schedule.step()
    return accuracy(nn.Sequential(encoder, head), names, test, torch.device(device))


@torch.no_grad()
def accuracy(network: nn.Module, names: Tensor, test: DataLoader, device: torch.device) -> float:
    """Share of images whose largest output belongs to their label; `names`: labels of outputs."""
    right, count = 0, 0
    with evaluate.evaluating([network]):
        for images, labels in test:
            found = names[network(images.to(device)).argmax(1).cpu()]
            right, count = right + int((found == labels).sum()), count + len(labels)
    return right / count


def some_of_each_class(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Row numbers of a share of each class, at least one; the same for the same seed."""
    random = np.random.default_rng(seed)
    kept = [
        random.choice(rows, max(1, round(share * len(rows))), replace=False)
        for rows in (np.flatnonzero(labels == name) for name in np.unique(labels))
    ]
    return np.sort(np.concatenate(kept))


def _zero_linear(inputs: Any, outputs: int) -> nn.Linear:
    """What it learns in few steps is not drowned in what it was drawn as."""
    linear = nn.Linear(inputs, outputs)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _orders(count: int, epochs: int, seed: int) -> Iterator[Tensor]:
    random = generator(seed, 7)
    for _ in range(epochs):
        yield torch.randperm(count, generator=random)
