"""The toy setting of the uniform-prior paper (5.1, E.1.1): which feature does a prior select?

PMSN with ten prototypes learns images of two independent features: a digit, whose classes follow a
power law, and a background, whose ten classes are uniform. Where the mean assignment is drawn to
the digits' power law, nearest neighbours should share the digit; where to the uniform distribution,
the background.
"""

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from ..train import data
from ..train import run as driver
from ..train.config import TrainOptions
from ..train.errors import UsageError
from ..train.evaluate import Features
from ..train.labels import labels_of
from .frame import Cell, Outcome, of_seeds, track
from .training import Job, features, pretrain
from .two_features import two_features

EXAMPLE = """\
  ssl-fast experiment uniform-prior
  ssl-fast experiment uniform-prior --seeds 1 --epochs 30
"""
PRIORS = ("uniform", "power_law")
SHOWN, NEIGHBOURS = 8, 5  # pictures


@dataclass
class Options:
    """Options of the study.

    Args:
        images: for training.
        held_out: for the nearest neighbours; none of their digits is in the training images.
        exponent: of the digits' power law, and of the power-law prior.
        seeds: how many runs of each prior; seeds 0, 1, ...
        epochs: of each run.
        batch_size: images a step.
        encoder: as in ssl-fast train.
        lr: of AdamW.
        prior_weight: lambda.
        temperature: of the assignments.
        sharpening: of the targets.
        momentum: of the target network at the start.
        patch_drop: share of the squares that the view loses.
        threads: of PyTorch; 0 leaves the choice to it.
    """

    images: int = 4096
    held_out: int = 1024
    exponent: float = 0.5
    seeds: int = 3
    epochs: int = 150
    batch_size: int = 512
    encoder: str = "small-16"
    lr: float = 0.002
    prior_weight: float = 100.0
    temperature: float = 0.1
    sharpening: float = 0.25
    momentum: float = 0.99
    patch_drop: float = 0.05
    threads: int = 0


def job_of(o: Options, prior: str, seed: int) -> Job:
    """No preset's, and no Sinkhorn, which draws to the uniform prior."""
    options = TrainOptions(
        method="pmsn",
        encoder=o.encoder,
        epochs=o.epochs,
        batch_size=o.batch_size,
        optimizer="adamw",
        lr=o.lr,
        weight_decay=0.04,
        weight_decay_end=0.4,
        decay_norms=False,
        warmup_epochs=o.epochs / 20,
        lr_floor=0.0,
        seed=seed,
        prior=prior,
        prior_exponent=o.exponent,
    )
    own = {
        "prototypes": 10,
        "random_views": 1,
        "focal_views": 0,
        "patch_drop": o.patch_drop,
        "temperature": o.temperature,
        "sharpening": o.sharpening,
        "prior_weight": o.prior_weight,
        "sinkhorn_iterations": 0,
        "momentum": o.momentum,
        "hidden_dim": 512,
        "embedding_dim": 128,
    }
    return Job(options, own)


def run_one(o: Options, source: data.Source, prior: str, seed: int) -> list[Features]:
    """Encodings and embeddings of the images, trained with one prior; `untrained` trains not."""
    if prior == "untrained":
        job = job_of(o, "uniform", seed)
        return features(driver.build_method(job.options, job.own, source), source)
    return features(pretrain(job_of(o, prior, seed), source), source)


def run(o: Options) -> Outcome:
    if not 1 <= o.seeds or o.batch_size > o.images or o.held_out <= NEIGHBOURS:
        raise UsageError(
            f"seeds must be at least 1, batch_size at most images, held_out more than {NEIGHBOURS}"
        )
    driver.use_threads(o.threads)
    sources = [two_features(seed, o.images, o.held_out, o.exponent) for seed in range(o.seeds)]
    jobs = [(p, seed) for seed in range(o.seeds) for p in ("untrained", *PRIORS)]
    found = {
        (prior, seed): run_one(o, sources[seed], prior, seed)
        for prior, seed in track(jobs, lambda job: f"{job[0]} prior, seed {job[1]}")
    }
    rows: list[list[Cell]] = []
    mean = {}
    for prior in ("untrained", *PRIORS):
        shares = np.array([_shares(found[prior, seed]) for seed in range(o.seeds)])
        rows += [[prior, seed, *map(float, row)] for seed, row in enumerate(shares)]
        mean[prior] = shares.mean(0)
        rows.append([prior, "mean", *map(float, mean[prior])])
    rows.append(["chance", "-", *_chance(sources[0]) * 2])
    uniform, power = mean["uniform"], mean["power_law"]
    return Outcome(
        title=f"Neighbours that share a feature, by PMSN's prior: {of_seeds(o.seeds)}, "
        f"{o.epochs} epochs of {o.images} images",
        columns=["prior", "seed", "digit, z", "background, z", "digit, h", "background, h"],
        rows=rows,
        figures={"neighbours": _grid(sources[0], found)},
        claims={
            "neighbours (z) share the digit more often with the power-law prior than with the "
            "uniform one": bool(power[0] > uniform[0]),
            "with the power-law prior neighbours (z) share the digit more often than the "
            "background": bool(power[0] > power[1]),
            "with the uniform prior neighbours (z) share the background more often than the "
            "digit": bool(uniform[1] > uniform[0]),
        },
        facts={
            "z": "embeddings, on which the prototypes stand",
            "h": "encodings",
            "neighbours": f"{NEIGHBOURS} nearest by cosine among the held-out images",
        },
    )


def _nearest(rows: np.ndarray) -> np.ndarray:  # (N, 5) indices of other rows
    rows = normalize(rows)
    search = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(rows)
    return search.kneighbors(return_distance=False)  # of the fitted rows: itself left out


def _shares(features: list[Features]) -> list[float]:
    """Of neighbours with the same digit and background: by embeddings, then by encodings."""
    out = []
    for f in reversed(features):
        near = f.test_labels[_nearest(f.test)]
        for feature in (lambda label: label // 10, lambda label: label % 10):
            out.append(float((feature(near) == feature(f.test_labels)[:, None]).mean()))
    return out


def _chance(source: data.Source) -> list[float]:
    labels = labels_of(source.test).numpy()
    return [
        float(((np.bincount(part, minlength=10) / len(part)) ** 2).sum())
        for part in (labels // 10, labels % 10)
    ]


def _grid(source: data.Source, found: dict[tuple[str, int], list[Features]]) -> Figure:
    """A row an image: itself, its neighbours with the uniform prior, with the power law."""
    images = source.test.tensors[0][:, 0]
    figure = Figure(figsize=(1.0 * (1 + 2 * NEIGHBOURS) + 0.6, 1.0 * SHOWN + 0.5))
    axes = figure.subplots(SHOWN, 1 + 2 * NEIGHBOURS)
    near = [_nearest(found[prior, 0][1].test) for prior in PRIORS]
    for row in range(SHOWN):
        for column, index in enumerate([row, *near[0][row], *near[1][row]]):
            axes[row, column].imshow(images[index], cmap="gray", vmin=0, vmax=1)
            axes[row, column].set(xticks=[], yticks=[])
    for column, name in ((0, "image"), (1, "uniform prior"), (1 + NEIGHBOURS, "power-law prior")):
        axes[0, column].set_title(name, loc="left", fontsize=10)
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.95, 0.05, 0.05)
    return figure
