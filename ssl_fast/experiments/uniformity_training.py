"""Training with the Wasserstein uniformity term (Fang et al. 2024, Table 2), on the digits.

The paper's claim: with W2 as an auxiliary loss, methods train to better linear accuracy, and their
embeddings use more dimensions. Weights are the released scripts' where their base loss is ours.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from .. import metrics
from ..train import data, evaluate
from ..train import run as driver
from ..train.errors import UsageError
from .frame import Outcome, of_seeds, track
from .training import digits_job, features, pretrain

EXAMPLE = """\
  ssl-fast experiment uniformity-training
  ssl-fast experiment uniformity-training --methods "[byol]" --epochs 20 --seeds 1
"""
# statsle/WassersteinSSL a16a931. Its Barlow Twins has 30 on a loss that our preset scales by .1.
WEIGHTS = {
    "moco_v2": (1.0, "constant"),
    "byol": (0.2, "constant"),
    "barlow_twins": (3.0, "linear"),
}
TERMS = ("without", "with W2")
MEASURES = ("5-nn, h", "linear, h", "-W2, z", "-L_U, z", "effective rank, z")


@dataclass
class Options:
    """Options of the study.

    Args:
        methods: moco_v2, byol, barlow_twins, with their presets for the digits.
        epochs: of each run; 0 leaves the preset's.
        seeds: how many runs of each; seeds 0, 1, ...
        threads: of PyTorch; 0 leaves the choice to it.
    """

    methods: list[str] = field(default_factory=lambda: list(WEIGHTS))
    epochs: int = 0
    seeds: int = 2
    threads: int = 1


def run(o: Options) -> Outcome:
    _check(o)
    driver.use_threads(o.threads)
    jobs = [(m, t, seed) for m in o.methods for seed in range(o.seeds) for t in TERMS]
    rows: list[list[Any]] = []
    spectra: dict[tuple[str, str], list[Tensor]] = {(m, t): [] for m in o.methods for t in TERMS}
    for method, term, seed in track(jobs, lambda job: f"{job[0]} {job[1]}, seed {job[2]}"):
        measured, spectrum = train_one(o, method, term, seed)
        rows.append([method, term, seed, *measured])
        spectra[method, term].append(spectrum)
    return Outcome(
        title=f"With and without the W2 term on the digits, {of_seeds(o.seeds)}",
        columns=["method", "term", "seed", *MEASURES],
        rows=rows,
        figures={"spectrum": draw(o.methods, spectra)},
        claims=claims(o.methods, rows),
        facts={"weights": {name: list(WEIGHTS[name]) for name in o.methods}},
    )


def train_one(o: Options, name: str, term: str, seed: int) -> tuple[list[float], Tensor]:
    """MEASURES, and the eigenvalues of the normalised embeddings' covariance."""
    weight, decay = WEIGHTS[name]
    arguments = []
    if term != TERMS[0]:
        arguments += ["--uniformity", "w2", f"--uniformity-weight={weight}"]
        arguments += ["--uniformity-decay", decay]
    source = data.open_data("digits", seed=seed)
    method = pretrain(digits_job(name, seed, o.epochs, arguments), source)
    h, z = features(method, source)
    rows = torch.from_numpy(np.concatenate([z.train, z.test]))
    spectrum = metrics.spectrum(rows)
    measured = [
        evaluate.knn_accuracy(h),
        evaluate.probe_accuracy(h),
        -metrics.wasserstein_uniformity(rows),
        -metrics.gaussian_uniformity(rows),
        metrics.effective_rank(rows, center=True, normalize=True),
    ]
    return measured, spectrum


def claims(methods: list[str], rows: list[list[Any]]) -> dict[str, bool]:
    """The paper's sentences, on means over seeds."""
    held = {}
    for name in methods:
        without, with_w2 = (
            np.mean([row[3:] for row in rows if row[:2] == [name, term]], 0) for term in TERMS
        )
        gains = dict(zip(MEASURES, (with_w2 > without).tolist(), strict=True))
        held[f"{name}: the term raises linear accuracy"] = gains["linear, h"]
        held[f"{name}: the term raises -W2"] = gains["-W2, z"]
        held[f"{name}: the term raises the effective rank"] = gains["effective rank, z"]
    return held


def draw(methods: list[str], spectra: dict[tuple[str, str], list[Tensor]]) -> Figure:
    """Eigenvalues on a logarithmic axis, means over seeds; a collapse is where a curve drops."""
    figure = Figure(figsize=(3.6 * len(methods), 3.2), layout="constrained")
    plots = figure.subplots(1, len(methods), sharey=True, squeeze=False)[0]
    for axes, name in zip(plots, methods, strict=True):
        for term in TERMS:
            mean = torch.stack(spectra[name, term]).mean(0)
            axes.semilogy(range(1, len(mean) + 1), mean.clamp(min=1e-12), label=term)
        axes.set(title=name, xlabel="eigenvalue")
        axes.grid(alpha=0.3)
    plots[0].set_ylabel("of the covariance of z")
    plots[0].legend()
    return figure


def _check(o: Options) -> None:
    if not o.methods or not set(o.methods) <= set(WEIGHTS):
        raise UsageError(f"methods are some of {', '.join(WEIGHTS)}, got {o.methods}")
    if o.epochs < 0 or o.seeds < 1:
        raise UsageError("epochs must be at least 0 and seeds at least 1")
