"""ReSA's choices, one by one (Figs. 10 and 11, Tables 11 and 12), on the digits.

Assignment from encodings or embeddings; momentum x predictor; temperature; what weak augmentation
does to other methods; the self-assignment's diagonal in early training. Short runs of the presets:
an ablation compares runs of this study with each other.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from ..functional import Assignment
from ..train import data, evaluate
from ..train import run as driver
from ..train.errors import UsageError
from ..train.methods import Method
from .frame import Cell, Outcome, of_seeds, track
from .training import Watch, digits_job, features, pretrain

EXAMPLE = """\
  ssl-fast experiment resa-ablations
  ssl-fast experiment resa-ablations --parts "[assignment]" --epochs 20 --seeds 2
"""
WEAK, STRONG = ("weak", "weak"), ("strong", "strong")
EARLY = 3  # epochs whose assignments are drawn
DRAWN = 100  # images of an assignment


class Variant(NamedTuple):
    """One line of the table."""

    part: str
    name: str
    method: str
    arguments: tuple[str, ...] = ()
    views: tuple[str, ...] = ()


PARTS = {
    "assignment": [
        Variant("assignment", kind, "resa", (f"--resa.assign-from={kind}",))
        for kind in ("encodings", "embeddings")
    ],
    "momentum": [
        Variant(
            "momentum",
            f"momentum {momentum}, {'a' if own == 'true' else 'no'} predictor",
            "resa",
            (f"--resa.momentum={momentum}", f"--resa.use-predictor={own}"),
        )
        for momentum in (0.0, 0.9, 0.99)
        for own in ("false", "true")
    ],
    "temperature": [
        Variant("temperature", f"temperature {t}", "resa", (f"--resa.temperature={t}",))
        for t in (0.1, 0.2, 0.3, 0.4, 0.5)
    ],
    "augmentation": [
        Variant("augmentation", f"{method}, {views[0]} views", method, (), views)
        for method in ("swav", "vicreg", "moco_v3")
        for views in (WEAK, STRONG)
    ],
}


@dataclass
class Options:
    """Options of the study.

    Args:
        parts: of it: assignment, momentum, temperature, augmentation.
        epochs: of each run.
        seeds: how many runs of each variant; seeds 0, 1, ...
        threads: of PyTorch; 0 leaves the choice to it.
    """

    parts: list[str] = field(default_factory=lambda: list(PARTS))
    epochs: int = 20
    seeds: int = 1
    threads: int = 1


def run(o: Options) -> Outcome:
    _check(o)
    driver.use_threads(o.threads)
    variants = [variant for part in o.parts for variant in PARTS[part]]
    jobs = [(variant, seed) for seed in range(o.seeds) for variant in variants]
    found: dict[str, list[dict[str, float]]] = {variant.name: [] for variant in variants}
    early: list[tuple[int, np.ndarray]] = []
    for variant, seed in track(jobs, lambda job: f"{job[0].name}, seed {job[1]}"):
        kept = early if not early and variant.method == "resa" else None
        found[variant.name].append(train_one(o, variant, seed, kept))
    means = {name: {k: _mean(runs, k) for k in runs[0]} for name, runs in found.items()}
    rows: list[list[Cell]] = [
        [v.part, v.name, *(means[v.name][k] for k in ("knn", "probe", "ari"))] for v in variants
    ]
    return Outcome(
        title=f"ReSA's ablations on the digits, encodings, means of {of_seeds(o.seeds)}, "
        f"{o.epochs} epochs",
        columns=["part", "variant", "5-nn", "linear", "ARI"],
        rows=rows,
        figures={"early_assignment": draw(early)} if early else {},
        claims=claims(o, means, early),
        facts={"runs": found, "diagonal": [[e, float(a.diagonal().mean())] for e, a in early]},
    )


def train_one(
    o: Options, variant: Variant, seed: int, early: list[tuple[int, np.ndarray]] | None
) -> dict[str, float]:
    """Measures of the encodings; `early` collects (epoch, assignment) of the first epochs."""
    job = digits_job(variant.method, seed, o.epochs, variant.arguments, variant.views)
    source = data.open_data("digits", seed=seed)
    watches = [Watch(_collector(source, early), 1)] if early is not None else []
    method = pretrain(job, source, watches)
    return evaluate.measure(features(method, source)[0])


def _collector(source: data.Source, early: list) -> Callable[[Method, int], None]:
    images = source.test[:DRAWN][0]

    def collect(method: Method, epoch: int) -> None:
        if epoch <= EARLY:
            early.append((epoch, self_assignment(method, images)))

    return collect


@torch.no_grad()
def self_assignment(method: Method, images: torch.Tensor) -> np.ndarray:  # (N, N)
    """Sinkhorn of the encodings' cosines, as the method's loss has it."""
    encoder, _ = method.evaluated()
    with evaluate.evaluating([encoder]):
        h = F.normalize(encoder(images))
    return Assignment.sinkhorn((h, h), epsilon=method.criterion.epsilon).dense().numpy()


def claims(o: Options, means: dict, early: list[tuple[int, np.ndarray]]) -> dict[str, bool]:
    """The paper's sentences that this table can answer."""
    held = {}
    if "assignment" in o.parts:
        encodings, embeddings = means["encodings"]["knn"], means["embeddings"]["knn"]
        held["assignment from encodings beats that from embeddings (5-nn)"] = encodings > embeddings
    if "augmentation" in o.parts:
        for method in ("swav", "vicreg", "moco_v3"):
            weak, strong = (means[f"{method}, {v[0]} views"]["knn"] for v in (WEAK, STRONG))
            held[f"weak augmentation does not help {method} (5-nn)"] = weak <= strong
    if early:
        dominant = [bool((a.argmax(1) == np.arange(len(a))).all()) for _, a in early]
        held["the diagonal is each row's largest entry from the start on"] = all(dominant)
        first, last = (early[i][1].diagonal().mean() for i in (0, -1))
        held["the diagonal strengthens over the first epochs"] = bool(last > first)
    return held


def draw(early: list[tuple[int, np.ndarray]]) -> Figure:
    """A picture an epoch, on one scale."""
    figure = Figure(figsize=(3.2 * len(early), 3.6), layout="constrained")
    top = max(np.quantile(a, 0.998) for _, a in early)
    for axes, (epoch, a) in zip(figure.subplots(1, len(early)), early, strict=True):
        shown = axes.imshow(a, cmap="magma", vmin=0, vmax=top)
        axes.set_title(f"epoch {epoch}, diagonal {a.diagonal().mean():.2f}", fontsize=10)
    figure.colorbar(shown, ax=figure.axes, shrink=0.7)
    return figure


def _mean(runs: list[dict[str, float]], key: str) -> float:
    return float(np.mean([each[key] for each in runs]))


def _check(o: Options) -> None:
    unknown = [part for part in o.parts if part not in PARTS]
    if unknown or not o.parts:
        raise UsageError(f"parts are some of {', '.join(PARTS)}, got {o.parts}")
    if o.epochs < 1 or o.seeds < 1:
        raise UsageError("epochs and seeds must be at least 1")
