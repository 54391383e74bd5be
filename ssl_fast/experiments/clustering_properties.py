"""Encodings against embeddings over training (ReSA, Figs. 3 and 4): which of them cluster better?

The paper's observation, on several methods: the encoder's output h has the higher ARI and a
steadier silhouette than the projector's output z, all through training.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from matplotlib.figure import Figure

from ..train import data, evaluate
from ..train import run as driver
from ..train.errors import UsageError
from ..train.methods import Method, find_method
from .frame import Outcome, of_seeds, track
from .training import Watch, digits_job, features, pretrain

EXAMPLE = """\
  ssl-fast experiment clustering-properties
  ssl-fast experiment clustering-properties --methods "[simclr,resa]" --epochs 20 --every 5
"""
MEASURES = {
    "ari": "ARI",
    "silhouette": "silhouette",
    "silhouette_std": "its deviation",
    "probe": "linear",
    "knn": "5-nn",
}
DRAWN = ("ari", "silhouette", "probe")
STAGES = ("encodings", "embeddings")

Row = tuple[str, int, int, str, float, float, float, float, float]


@dataclass
class Options:
    """Options of the study.

    Args:
        methods: of ssl-fast train, with their presets for the digits.
        epochs: of each run; 0 leaves the preset's.
        every: epochs between two measurements.
        seeds: how many runs of each method; seeds 0, 1, ...
        threads: of PyTorch; 0 leaves the choice to it.
    """

    methods: list[str] = field(default_factory=lambda: ["simclr", "vicreg", "swav", "resa"])
    epochs: int = 0
    every: int = 10
    seeds: int = 1
    threads: int = 1


def run(o: Options) -> Outcome:
    _check(o)
    driver.use_threads(o.threads)
    jobs = [(method, seed) for seed in range(o.seeds) for method in o.methods]
    rows: list[Row] = []
    for method, seed in track(jobs, lambda job: f"{job[0]}, seed {job[1]}"):
        rows += curve(o, method, seed)
    return Outcome(
        title=f"Encodings h against embeddings z over training on the digits, {of_seeds(o.seeds)}",
        columns=["method", "seed", "epoch", "features", *MEASURES.values()],
        rows=rows,
        figures={"curves": draw(o.methods, rows)},
        claims=claims(o.methods, rows),
    )


def curve(o: Options, name: str, seed: int) -> list[Row]:
    """Measures of h and z before, during and after one training."""
    job = digits_job(name, seed, o.epochs)
    source = data.open_data("digits", seed=seed)
    rows: list[Row] = []

    def measure(method: Method, epoch: int) -> None:
        for stage, found in zip(STAGES, features(method, source), strict=True):
            numbers = evaluate.measure(found)
            ari, mean, std, probe, knn = (numbers[key] for key in MEASURES)
            rows.append((name, seed, epoch, stage, ari, mean, std, probe, knn))

    pretrain(job, source, [Watch(measure, o.every)])
    return rows


def claims(methods: list[str], rows: list[Row]) -> dict[str, bool]:
    """The paper's sentences at the end of training, means over seeds."""
    held = {}
    for name in methods:
        end = max(row[2] for row in rows if row[0] == name)
        h, z = (_mean(rows, name, end, stage) for stage in STAGES)
        held[f"{name}: encodings have the higher ARI"] = bool(h["ari"] > z["ari"])
        steadier = h["silhouette_std"] < z["silhouette_std"]
        held[f"{name}: encodings have the steadier silhouette"] = bool(steadier)
        held[f"{name}: encodings are separated better by a line"] = bool(h["probe"] > z["probe"])
    return held


def _mean(rows: list[Row], method: str, epoch: int, stage: str) -> dict[str, float]:
    own = [row[4:] for row in rows if (row[0], row[2], row[3]) == (method, epoch, stage)]
    return dict(zip(MEASURES, np.mean(own, 0), strict=True))


def draw(methods: list[str], rows: list[Row]) -> Figure:
    """A column for each method; lines are means over seeds."""
    size = (3 * len(methods), 2.4 * len(DRAWN))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(DRAWN), len(methods), sharex="col", sharey="row", squeeze=False)
    for column, name in enumerate(methods):
        axes[0, column].set_title(name)
        axes[-1, column].set_xlabel("epoch")
        for stage, epochs, means in _curves(name, rows):
            for line, key in enumerate(DRAWN):
                values = [mean[key] for mean in means]
                axes[line, column].plot(epochs, values, marker=".", label=stage)
    for line, key in enumerate(DRAWN):
        axes[line, 0].set_ylabel(MEASURES[key])
        for plot in axes[line]:
            plot.grid(alpha=0.3)
    axes[0, 0].legend()
    return figure


def _curves(name: str, rows: list[Row]) -> Iterator[tuple[str, list[int], list[dict[str, float]]]]:
    epochs = sorted({row[2] for row in rows if row[0] == name})
    for stage in STAGES:
        yield stage, epochs, [_mean(rows, name, epoch, stage) for epoch in epochs]


def _check(o: Options) -> None:
    if not o.methods or o.seeds < 1 or o.every < 1 or o.epochs < 0:
        raise UsageError(
            "at least one of methods, seeds >= 1, every >= 1 and epochs >= 0 are needed"
        )
    for name in o.methods:
        find_method(name)
