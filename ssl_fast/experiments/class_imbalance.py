"""Batches of few classes (Hidden Uniform Cluster Prior, Table 1), on the digits.

The paper's claim: with volume maximisation (SimCLR, MSN, VICReg) features get worse when a batch
holds few classes, although each image is seen as often; controls without it (MAE, data2vec) hardly
change. Methods are the presets for the digits; MSN's has the Sinkhorn steps of its released
configurations, which draw to the uniform prior as its penalty does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.figure import Figure

from ..train import data
from ..train import run as driver
from ..train.errors import UsageError
from ..train.methods import find_method
from .frame import Cell, Outcome, bars, of_seeds, track
from .training import accuracies, digits_job, pretrain

EXAMPLE = """\
  ssl-fast experiment class-imbalance
  ssl-fast experiment class-imbalance --methods "[simclr,mae]" --epochs 20 --seeds 1
"""
CONTROLS = ("mae", "data2vec")
SAMPLERS = ("class_balanced", "class_imbalanced")
_EACH = ("imbalanced", "drop", "its deviation")
COLUMNS = ("method", "5-nn balanced", *_EACH, "linear balanced", *_EACH)

Measured = dict[tuple[str, str], list[tuple[float, float]]]  # method, sampler -> 5-nn, linear


@dataclass
class Options:
    """Options of the study.

    Args:
        methods: of ssl-fast train, with their presets for the digits.
        classes_per_batch: of the ten, in imbalanced batches; balanced ones hold eight of them.
        epochs: of each run; 0 leaves the preset's.
        seeds: how many pairs of runs of each method; seeds 0, 1, ...
        threads: of PyTorch; 0 leaves the choice to it.
    """

    methods: list[str] = field(default_factory=lambda: ["simclr", "msn", "vicreg", *CONTROLS])
    classes_per_batch: int = 2
    epochs: int = 30
    seeds: int = 3
    threads: int = 1


def run(o: Options) -> Outcome:
    _check(o)
    driver.use_threads(o.threads)
    jobs = [(m, s, seed) for m in o.methods for seed in range(o.seeds) for s in SAMPLERS]
    found: Measured = {(m, s): [] for m in o.methods for s in SAMPLERS}
    for method, sampler, seed in track(jobs, lambda job: f"{job[0]}, {job[1]}, seed {job[2]}"):
        found[method, sampler].append(train_one(o, method, sampler, seed))
    rows = [row(method, found) for method in o.methods]
    return Outcome(
        title=f"Batches of {o.classes_per_batch} classes on the digits: encodings, means of "
        f"{of_seeds(o.seeds)}; drop = balanced - imbalanced, in points",
        columns=COLUMNS,
        rows=rows,
        figures={"drops": draw(o.methods, found)},
        claims=claims(o.methods, found),
        facts={"runs": [[*key, values] for key, values in found.items()]},
    )


def train_one(o: Options, name: str, sampler: str, seed: int) -> tuple[float, float]:
    arguments = ["--sampler", sampler]
    if sampler == "class_imbalanced":
        arguments += ["--classes-per-batch", str(o.classes_per_batch)]
    source = data.open_data("digits", seed=seed)
    return accuracies(pretrain(digits_job(name, seed, o.epochs, arguments), source), source)


def drops(method: str, found: Measured) -> np.ndarray:  # (seeds, 2) points of 5-nn and linear
    balanced, imbalanced = (np.array(found[method, sampler]) for sampler in SAMPLERS)
    return 100 * (balanced - imbalanced)


def row(method: str, found: Measured) -> list[Cell]:
    means = [np.mean(found[method, sampler], 0) for sampler in SAMPLERS]
    lost = drops(method, found)
    cells: list[Cell] = [method]
    for i in range(2):
        cells += [float(mean[i]) for mean in means]
        cells += [float(lost[:, i].mean()), float(lost[:, i].std())]
    return cells


def claims(methods: Sequence[str], found: Measured) -> dict[str, bool]:
    """The signs of the paper's table, by linear accuracy."""
    lost = {method: float(drops(method, found)[:, 1].mean()) for method in methods}
    volume = [method for method in methods if method not in CONTROLS]
    held = {f"{m}: imbalanced batches lower linear accuracy": lost[m] > 0 for m in volume}
    for control in (m for m in CONTROLS if m in methods and volume):
        smaller = abs(lost[control]) < min(lost[m] for m in volume)
        held[f"{control}: hardly changes, less than any method above"] = smaller
    return held


def draw(methods: Sequence[str], found: Measured) -> Figure:
    figure = Figure(figsize=(1.6 + 1.3 * len(methods), 3.4), layout="constrained")
    axes = figure.subplots()
    lost = np.stack([drops(method, found) for method in methods])
    bars(axes, methods, {"5-nn": lost[..., 0], "linear": lost[..., 1]})
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(ylabel="balanced - imbalanced, points")
    axes.legend()
    return figure


def _check(o: Options) -> None:
    if not o.methods or o.seeds < 1 or o.epochs < 0 or not 1 <= o.classes_per_batch <= 10:
        raise UsageError(
            "at least one of methods, seeds >= 1, epochs >= 0 and classes_per_batch of 1 to 10 "
            "are needed"
        )
    for name in o.methods:
        find_method(name)
