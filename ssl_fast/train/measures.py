"""What `ssl-fast eval` can measure, each a function: run and images -> rows of a table."""

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from .. import metrics
from . import data, evaluate, probes
from .clustering import cluster
from .errors import UsageError
from .evaluate import Features
from .labels import evenly
from .models import ViT
from .random import generator
from .subject import NotHere, Subject
from .tables import Percent

Rows = dict[str, dict[str, float]]  # row's name -> encodings or embeddings -> value
CLOUD = 200  # rows of a cluster in NEMD, whose cost is their square


def knn(s: Subject) -> Rows:
    """Majority of the nearest by cosine."""
    count = s.options.neighbours
    return {f"{count}-nn": s.each(lambda f: Percent(evaluate.knn_accuracy(f, count)))}


def weighted_knn(s: Subject) -> Rows:
    """The same with votes of exp(cosine / .07)."""
    count = s.options.weighted_neighbours

    def accuracy(f: Features) -> float:
        return Percent(metrics.knn_accuracy(*f, neighbours=count, weighted=True))

    return {f"{count}-nn, weighted": s.each(accuracy)}


def linear(s: Subject) -> Rows:
    """Linear classifier by Adam on un-augmented features."""
    return {"linear": s.each(lambda f: _linear(s, f))}


def linear_bn(s: Subject) -> Rows:
    """The same behind a batch norm."""
    return {"linear, batch norm": s.each(lambda f: _linear(s, f, batch_norm=True))}


def last_four(s: Subject) -> Rows:
    """The same on a transformer's last four layers together, with and without batch norm."""
    if not isinstance(s.encoder, ViT):
        raise NotHere(f"four layers are a transformer's, and the encoder is {s.trained.encoder}")
    f = evaluate.extract([LastFour(s.encoder)], *s.loaders, s.device)[0]
    name = "linear, last four layers"
    return {
        name: {"encodings": _linear(s, f)},
        f"{name}, batch norm": {"encodings": _linear(s, f, batch_norm=True)},
    }


def low_shot(s: Subject) -> Rows:
    """Linear classifier on shares of the labels."""
    out = {}
    for name, rows in _shares(s):

        def accuracy(f: Features, rows: np.ndarray = rows) -> float:
            return _linear(s, f._replace(train=f.train[rows], train_labels=f.train_labels[rows]))

        out[f"linear, {name}"] = s.each(accuracy)
    return out


def finetune(s: Subject) -> Rows:
    """Encoder and classifier trained together on shares of the labels."""
    out: Rows = {}
    train, test = s.loaders
    o = s.options
    for name, rows in _shares(s):
        found = probes.finetuned_accuracy(
            s.encoder,
            Subset(train.dataset, rows.tolist()),
            s.labels[rows],
            test,
            epochs=o.finetune_epochs,
            lr=o.finetune_lr,
            head_lr=o.finetune_head_lr,
            seed=o.seed,
            device=s.device,
        )
        out[f"fine-tuned, {name}"] = {"encodings": Percent(found)}
    return out


def coarse(s: Subject) -> Rows:
    """k-nn and linear classifier on coarse classes (CIFAR-100's 20, or --coarse)."""
    to_coarse = _coarse_classes(s)
    count = s.options.neighbours

    def coarsened(f: Features) -> Features:
        return f._replace(
            train_labels=to_coarse[f.train_labels], test_labels=to_coarse[f.test_labels]
        )

    name = f"{len(np.unique(to_coarse))} coarse classes"
    return {
        f"{count}-nn, {name}": s.each(
            lambda f: Percent(evaluate.knn_accuracy(coarsened(f), count))
        ),
        f"linear, {name}": s.each(lambda f: _linear(s, coarsened(f))),
    }


def ari(s: Subject) -> Rows:
    """Adjusted Rand index of k-means and classes."""

    def index(f: Features) -> float:
        return metrics.kmeans_ari(*_some(f.train, f.train_labels), seed=s.options.seed)

    return {"ARI of k-means": s.each(index)}


def silhouette(s: Subject) -> Rows:
    """Mean and deviation of the silhouette with the classes as clusters."""
    found = {n: metrics.silhouette(*_some(f.train, f.train_labels)) for n, f in s.features.items()}
    return {
        "silhouette": {name: value.mean for name, value in found.items()},
        "silhouette, deviation": {name: value.std for name, value in found.items()},
    }


def uniformity(s: Subject) -> Rows:
    """L_U: log of the mean Gaussian potential; lower is more uniform."""

    def value(f: Features) -> float:
        return metrics.gaussian_uniformity(torch.from_numpy(_some(f.test)[0]))

    return {"uniformity L_U": s.each(value)}


def w2(s: Subject) -> Rows:
    """Wasserstein distance to the uniform distribution; lower is more uniform."""

    def value(f: Features) -> float:
        return metrics.wasserstein_uniformity(torch.from_numpy(f.test))

    return {"uniformity W2": s.each(value)}


def effective_rank(s: Subject) -> Rows:
    """exp of the entropy of the centred features' singular values."""

    def value(f: Features) -> float:
        return metrics.effective_rank(torch.from_numpy(f.test), center=True)

    return {"effective rank": s.each(value)}


def alignment(s: Subject) -> Rows:
    """Mean squared distance between two strong views of an image; lower is more alike."""
    pairs: list[list[Tensor]] = [[], []]  # encodings, embeddings: (2, N, D) each
    with torch.no_grad(), evaluate.evaluating(s.networks):
        for views in _view_pairs(s):
            both = torch.cat(views).to(s.device)
            for network, found in zip(s.networks, pairs, strict=True):
                both = network(both)
                found.append(both.float().cpu().unflatten(0, (2, -1)))
    values = [metrics.alignment(*torch.cat(found, 1)) for found in pairs]
    return {"alignment": dict(zip(s.features, values, strict=True))}


def prototypes(s: Subject) -> Rows:
    """Which prototypes are nearest to an image; the mean assignment, as trained, and the prior."""
    centres = s.method.centres()
    if centres is None:
        raise NotHere(f"{s.trained.method} has no prototypes, or none yet")
    owner: Any = s.method.criterion if hasattr(s.method.criterion, "temperature") else s.method
    z = F.normalize(torch.from_numpy(s.features["embeddings"].train))
    cosines = z @ F.normalize(centres.detach().float().cpu()).T
    mean = (cosines.double() / owner.temperature).softmax(1).mean(0)
    shares = s.prior.shares(len(centres))
    wanted = torch.full_like(mean, 1 / len(centres)) if shares is None else shares.double()
    difference = mean - wanted
    if s.prior.order == "sorted":
        difference = mean.sort().values - wanted.sort().values
    rows = {
        f"prototypes nearest to an image, of {len(centres)}": Percent(
            len(cosines.argmax(1).unique()) / len(centres)
        ),
        "perplexity of the mean assignment": float(torch.special.entr(mean).sum().exp()),
        "its total variation from the prior": float(difference.abs().sum() / 2),
    }
    return {name: {"embeddings": value} for name, value in rows.items()}


def nemd(s: Subject) -> Rows:
    """PAUC's earth mover's distance between as many k-means clusters as there are classes."""

    def value(f: Features) -> float:
        z = F.normalize(torch.from_numpy(f.test))
        classes = len(np.unique(f.test_labels))
        (found,) = cluster(z, [classes], seed=s.options.seed, progress=False)
        return metrics.nemd(z, found.index, points=CLOUD)

    return {"NEMD": s.each(value)}


MEASURES: dict[str, Callable[[Subject], Rows]] = {
    measure.__name__: measure
    for measure in (
        knn, weighted_knn, linear, linear_bn, last_four, low_shot, finetune, coarse, ari,
        silhouette, uniformity, w2, alignment, effective_rank, prototypes, nemd,
    )
}  # fmt: skip


class LastFour(nn.Module):
    """What the encoder pools after each of the last four blocks, side by side: (N, 4 D)."""

    def __init__(self, encoder: ViT) -> None:
        super().__init__()
        self.network = encoder.network

    def forward(self, images: Tensor) -> Tensor:
        depth = min(4, len(self.network.blocks))
        layers = self.network.get_intermediate_layers(
            images, n=depth, return_prefix_tokens=True, norm=True
        )
        averaged = self.network.global_pool == "avg"
        return torch.cat([x.mean(1) if averaged else prefix[:, 0] for x, prefix in layers], 1)


def _linear(s: Subject, f: Features, batch_norm: bool = False) -> Percent:
    o = s.options
    return Percent(
        probes.linear_accuracy(
            f, batch_norm=batch_norm, epochs=o.linear_epochs, seed=o.seed, device=s.device
        )
    )


def _shares(s: Subject) -> Iterator[tuple[str, np.ndarray]]:
    """(name, rows) of each share of the labels."""
    for share in s.options.shares:
        rows = probes.some_of_each_class(s.labels, share, s.options.seed)
        yield f"{share:.3g} of the labels ({len(rows)})", rows


def _some(*arrays: np.ndarray) -> list[np.ndarray]:
    keep = evenly(len(arrays[0]), evaluate.CLUSTERED)
    return [array[keep] for array in arrays]


def _coarse_classes(s: Subject) -> np.ndarray:  # (classes,): the coarse class of each
    classes = int(max(f.max() for f in (s.labels, s.features["encodings"].test_labels))) + 1
    if s.options.coarse is None and s.name != "cifar100":
        raise NotHere(
            f"{s.name} has no coarse classes: --coarse FILE takes one integer for each class"
        )
    if s.options.coarse is None:
        path = Path(s.folder) / "cifar-100-python/train"
        fields: Any = pickle.loads(path.read_bytes(), encoding="latin1")
        found = np.zeros(classes, dtype=int)
        found[fields["fine_labels"]] = fields["coarse_labels"]
        return found
    path = Path(s.options.coarse)
    try:
        found = np.loadtxt(path, dtype=int, ndmin=1)
    except ValueError as error:
        raise UsageError(f"{path} must hold one integer for each class: {error}") from error
    if found.shape != (classes,):
        raise UsageError(
            f"{path} holds {found.size} numbers, {s.name} has {classes} classes: one for each"
        )
    return found


def _view_pairs(s: Subject) -> Iterator[list[Tensor]]:
    """Two strong views of the test images, batch by batch."""
    pair = s.source.chosen(("strong", "strong"))
    if s.source.plain is not None:
        pairs = data.Views(s.source.test, pair, s.options.seed)
        index = evenly(len(s.source.test), s.options.limit or len(s.source.test))
        keys = [(0, i) for i in index.tolist()]
        loader = DataLoader(pairs, 256, sampler=keys, num_workers=s.options.workers)
        yield from (views for views, *_ in loader)
        return
    random = generator(s.options.seed, 8)
    for images, _ in s.loaders[1]:
        draws = [view.draw(len(images), images.shape[-1], random) for view in pair]
        yield [view(images, **numbers) for view, numbers in zip(pair, draws, strict=True)]
