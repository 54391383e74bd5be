"""Priors on long-tailed and on balanced data (Hidden Uniform Cluster Prior, Tables 2 to 4).

The paper's claims for PMSN: on a long-tailed set the class prior is at least as good as a power
law, which beats the uniform prior; on a balanced set the order turns round; and inverse square root
sampling is no substitute. Other methods (ReSA, C.3) are trained on the same two sets. PMSN has the
paper's temperatures, prior weight and number of prototypes, and no Sinkhorn; views, networks and
optimiser are those of the preset for the digits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from ..train import data
from ..train import run as driver
from ..train.errors import UsageError
from .frame import Cell, Outcome, bars, of_seeds, track
from .training import Job, accuracies, digits_job, pretrain

EXAMPLE = """\
  ssl-fast experiment long-tail
  ssl-fast experiment long-tail --methods "[]" --steps 300 --seeds 1
"""
SETS = ("long-tailed", "balanced")
# The paper's (E.1.2), a prototype a class. The preset's Sinkhorn steps draw to the uniform prior,
# whatever --prior says; without them its temperatures ended in one prediction for all images.
PMSN = (
    "--pmsn.prototypes=10",
    "--pmsn.temperature=0.1",
    "--pmsn.sharpening=0.25",
    "--pmsn.prior-weight=5",
    "--pmsn.sinkhorn-iterations=0",
)
POWER_LAW = ("--prior", "power_law", "--prior-exponent")


class Variant(NamedTuple):
    name: str
    method: str
    arguments: tuple[str, ...] = ()


@dataclass
class Options:
    """Options of the study.

    Args:
        methods: trained beside PMSN, with their presets for the digits.
        imbalance_factor: images of the most frequent digit for each of the rarest.
        exponent: of the power-law prior.
        steps: of each run, on either set.
        seeds: how many runs of each; seeds 0, 1, ...
        threads: of PyTorch; 0 leaves the choice to it.
    """

    methods: list[str] = field(default_factory=lambda: ["vicreg", "moco_v3", "resa"])
    imbalance_factor: float = 20.0
    exponent: float = 0.25
    steps: int = 1000
    seeds: int = 3
    threads: int = 1

    def variants(self) -> list[Variant]:
        given = {
            "uniform prior": ("--prior", "uniform"),
            "power law prior": (*POWER_LAW, str(self.exponent)),
            "class prior": ("--prior", "class"),
            "inverse square root": ("--prior", "uniform", "--sampler", "inverse_sqrt"),
        }
        return [
            *(Variant(f"pmsn, {k}", "pmsn", (*PMSN, *v)) for k, v in given.items()),
            *(Variant(name, name) for name in self.methods),
        ]


Measured = dict[tuple[str, str], list[tuple[float, float]]]  # variant, set -> 5-nn, linear


def run(o: Options) -> Outcome:
    _check(o)
    driver.use_threads(o.threads)
    jobs = [(v, s, seed) for seed in range(o.seeds) for v in o.variants() for s in SETS]
    found: Measured = {(v.name, s): [] for v in o.variants() for s in SETS}
    for variant, kind, seed in track(jobs, lambda job: f"{job[0].name}, {job[1]}, seed {job[2]}"):
        found[variant.name, kind].append(train_one(o, variant, kind, seed))
    rows = [row(v.name, kind, found) for kind in SETS for v in o.variants()]
    return Outcome(
        title=f"Pretraining on {SETS[0]} (1/{o.imbalance_factor:g}) and {SETS[1]} digits, measured "
        f"on all of them: encodings, means of {of_seeds(o.seeds)}, {o.steps} steps",
        columns=["pretraining set", "variant", "5-nn", "deviation", "linear", "deviation"],
        rows=rows,
        figures={"accuracy": draw([v.name for v in o.variants()], found)},
        claims=claims(found),
        facts={"runs": [[*key, values] for key, values in found.items()]},
    )


def train_one(o: Options, variant: Variant, kind: str, seed: int) -> tuple[float, float]:
    """Accuracies, fitted and tested on the balanced sets."""
    job, source = job_of(o, variant, kind, seed)
    return accuracies(pretrain(job, source), data.open_data("digits", seed=seed))


def job_of(o: Options, variant: Variant, kind: str, seed: int) -> tuple[Job, data.Source]:
    """As many epochs as the steps take on this set."""
    arguments = list(variant.arguments)
    if kind == SETS[0]:
        arguments += ["--long-tail", "imbalance", "--imbalance-factor", str(o.imbalance_factor)]
    options = digits_job(variant.method, seed, arguments=arguments).options
    source = driver.open_source(options)
    epochs = -(-o.steps // (len(source.pretrain) // options.batch_size))
    return digits_job(variant.method, seed, epochs, arguments), source


def row(name: str, kind: str, found: Measured) -> list[Cell]:
    values = np.array(found[name, kind])
    cells: list[Cell] = [kind, name]
    for mean, deviation in zip(values.mean(0), values.std(0), strict=True):
        cells += [float(mean), float(deviation)]
    return cells


def claims(found: Measured) -> dict[str, bool]:
    """The paper's order, by linear accuracy, means over seeds."""

    def linear(variant: str, kind: str) -> float:
        return float(np.mean([values[1] for values in found[f"pmsn, {variant}", kind]]))

    tailed, balanced = SETS
    uniform, power, own = (
        linear(f"{name} prior", tailed) for name in ("uniform", "power law", "class")
    )
    return {
        "long-tailed: the class prior is at least as good as the power law": own >= power,
        "long-tailed: the power law beats the uniform prior": power > uniform,
        "long-tailed: inverse square root sampling is no better than uniform": (
            linear("inverse square root", tailed) <= uniform
        ),
        "balanced: the uniform prior beats the power law": (
            linear("uniform prior", balanced) > linear("power law prior", balanced)
        ),
    }


def draw(names: Sequence[str], found: Measured) -> Figure:
    figure = Figure(figsize=(4 + 0.9 * len(names), 3.8), layout="constrained")
    axes = figure.subplots()
    linear = {kind: np.array([found[n, kind] for n in names])[..., 1] for kind in SETS}
    bars(axes, [name.replace(", ", ",\n") for name in names], linear)
    axes.set(ylabel="linear accuracy")
    axes.legend(title="pretrained on")
    return figure


def _check(o: Options) -> None:
    if o.seeds < 1 or o.steps < 1 or not o.imbalance_factor >= 1:
        raise UsageError("seeds and steps must be at least 1, imbalance_factor too")
