"""PAUC's tiny experiment (Mo et al. 2022, Figures 1 and 2): do prototypes collapse on the circle?

Isotropic Gaussian blobs in 3-D, 10 to 50 classes of 1000 samples, embedded on the unit circle by a
small network that PCL or PAUC trains without labels. NEMD, the mean transport cost between the
clouds of different prototypes, is the paper's measure of collapse: PAUC's is to be the lower.

The protocol was fixed before the first run in full (after three short trials, which set the budget
and the optimiser): both methods get the same data, initial weights, order of batches, views and
steps for a seed; each may choose among four settings, once, on 20 classes and a seed of its own, by
5-nn accuracy (not by NEMD, which is what is tested). The prototypes are the clusters of a final
k-means with as many clusters as classes.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..losses import PAUCLoss, ProtoNCELoss
from ..train.clustering import cluster
from ..train.errors import UsageError
from ..train.random import generator
from .circle import Found, draw, measured
from .frame import Outcome, of_seeds, track

EXAMPLE = """\
  ssl-fast experiment prototype-collapse
  ssl-fast experiment prototype-collapse --classes "[10,20]" --seeds 1 --steps 200
"""
BOX = 10.0  # centres are uniform in [-BOX, BOX]^3; blobs have standard deviation 1
JITTER = 0.5  # of a view, in standard deviations of a blob
MOMENTUM = 0.99
TUNED_ON = 20  # classes
TUNING_SEED = 1000
# Settings that each method may choose from: temperature and, for PAUC, the three weights.
TEMPERATURES = (0.1, 0.2)
PCL_RATES = (1e-3, 3e-3)
PAUC_WEIGHTS = (0.3, 1.0)
PAUC_RATE = 3e-3
ROUNDS = 5  # k-means before each but the first, which is InfoNCE alone


@dataclass
class Options:
    """Size of the study.

    Args:
        classes: numbers of blobs, one study each.
        samples: of a class.
        seeds: repetitions of everything.
        steps: of training, in five rounds: InfoNCE alone, then k-means before each of the others.
        batch: samples a step.
        ablation: number of classes on which the three terms are tried one by one; 0 leaves it out.
        points: of a cloud, that NEMD looks at.
    """

    classes: tuple[int, ...] = (10, 20, 30, 40, 50)
    samples: int = 1000
    seeds: int = 2
    steps: int = 1000
    batch: int = 256
    ablation: int = 30
    points: int = 100


class Setting(NamedTuple):
    """What a method may choose."""

    method: str
    rate: float
    temperature: float
    alpha: float = 0.0
    beta: float = 0.0
    gamma: float = 0.0


class Trial(NamedTuple):
    """One training."""

    name: str
    setting: Setting
    classes: int
    seed: int

    def label(self) -> str:
        return f"{self.name}, {self.classes} classes, seed {self.seed}"


def run(options: Options) -> Outcome:
    _check(options)
    chosen = _tuned(options)
    trials = list(_trials(options, chosen))
    results = {(t.name, t.classes, t.seed): train(options, t) for t in track(trials, Trial.label)}
    rows = _table(results)
    return Outcome(
        title=f"NEMD between prototypes on the unit circle, mean of {of_seeds(options.seeds)} "
        "(the paper: lower is less collapsed)",
        columns=["classes", "method", "NEMD", "NEMD std", "NEMD by class", "5-nn", "-L_U"],
        rows=rows,
        figures={"circle": draw(options.classes, results, rows)},
        claims=_claims(options, results),
        facts={
            "chosen": {name: s._asdict() for name, s in chosen.items()},
            "tuned": f"on {TUNED_ON} classes, seed {TUNING_SEED}, by 5-nn accuracy",
        },
    )


def blobs(classes: int, samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """(classes * samples, 3) and labels."""
    draw = generator(seed, classes)
    centres = (torch.rand(classes, 3, generator=draw) * 2 - 1) * BOX
    labels = torch.arange(classes).repeat_interleave(samples)
    return centres[labels] + torch.randn(len(labels), 3, generator=draw), labels


def train(options: Options, trial: Trial) -> Found:
    """PCL or PAUC with a momentum network and k-means; then the measures."""
    setting = trial.setting
    x, labels = blobs(trial.classes, options.samples, trial.seed)
    draw = generator(trial.seed, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(trial.seed)
        online, momentum, criterion = _network(), _network(), _criterion(setting, options)
        momentum.load_state_dict(online.state_dict())
        optimizer = torch.optim.Adam(online.parameters(), lr=setting.rate)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
        found = None
        for step in range(options.steps):
            if step and step % (options.steps // ROUNDS) == 0:
                found = _clusterings(momentum, x, trial, setting.temperature)
            ids = torch.randint(len(x), (options.batch,), generator=draw)
            views = [x[ids] + JITTER * torch.randn(*x[ids].shape, generator=draw) for _ in "ab"]
            with torch.no_grad():
                _follow(momentum, online)
                key = F.normalize(momentum(views[1]))
            stored = None if found is None else [(c, p, i[ids]) for c, p, i in found]
            loss = criterion(F.normalize(online(views[0])), key, stored)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
    z = F.normalize(_embedded(momentum, x))
    return measured(z, labels, trial.classes, trial.seed, options.points)


def _network() -> nn.Module:
    """3-D points, brought to the size of 1, to the plane."""
    return nn.Sequential(
        _Scale(), nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)
    )


class _Scale(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / BOX


def _criterion(setting: Setting, options: Options) -> nn.Module:
    shape: dict = {"queue_size": 4 * options.batch, "dim": 2, "temperature": setting.temperature}
    if setting.method == "PCL":
        return ProtoNCELoss(**shape)
    return PAUCLoss(**shape, alpha=setting.alpha, beta=setting.beta, gamma=setting.gamma)


def _clusterings(momentum: nn.Module, x: Tensor, trial: Trial, temperature: float) -> list:
    """With as many clusters as classes, and with twice as many."""
    z = F.normalize(_embedded(momentum, x))
    counts = [trial.classes, 2 * trial.classes]
    options: dict = {"steps": 10, "repeats": 1, "progress": False}
    return cluster(z, counts, temperature=temperature, seed=trial.seed, **options)


@torch.no_grad()
def _embedded(network: nn.Module, x: Tensor) -> Tensor:
    return network(x)


def _follow(momentum: nn.Module, online: nn.Module) -> None:
    for held, new in zip(momentum.parameters(), online.parameters(), strict=True):
        held.lerp_(new, 1 - MOMENTUM)


def _tuned(options: Options) -> dict[str, Setting]:
    """The best of four settings for each method."""
    candidates = {
        "PCL": [Setting("PCL", r, t) for r, t in itertools.product(PCL_RATES, TEMPERATURES)],
        "PAUC": [
            Setting("PAUC", PAUC_RATE, t, w, w, w)
            for w, t in itertools.product(PAUC_WEIGHTS, TEMPERATURES)
        ],
    }
    trials = [
        Trial(f"{name} tuning", s, TUNED_ON, TUNING_SEED) for name, c in candidates.items()
        for s in c
    ]  # fmt: skip
    found = [(train(options, t).knn, t.setting) for t in track(trials, Trial.label)]
    return {
        name: max((f for f in found if f[1].method == name), key=lambda f: f[0])[1]
        for name in candidates
    }


def _trials(options: Options, chosen: dict[str, Setting]) -> Iterator[Trial]:
    for classes, seed in itertools.product(options.classes, range(options.seeds)):
        yield from (Trial(name, setting, classes, seed) for name, setting in chosen.items())
    if options.ablation:
        full = chosen["PAUC"]
        for name, seed in itertools.product(("alpha", "beta", "gamma"), range(options.seeds)):
            weights: dict = dict.fromkeys(("alpha", "beta", "gamma"), 0.0)
            weights[name] = getattr(full, name)
            only = full._replace(**weights)
            yield Trial(f"PAUC, {name} alone", only, options.ablation, seed)
        none = full._replace(alpha=0.0, beta=0.0, gamma=0.0)
        for seed in range(options.seeds):
            yield Trial("PAUC, no term", none, options.ablation, seed)
            if options.ablation not in options.classes:
                yield Trial("PAUC", full, options.ablation, seed)


def _table(results: dict[tuple, Found]) -> list[tuple]:
    groups: dict[tuple[int, str], list[Found]] = {}
    for (name, classes, _), found in results.items():
        groups.setdefault((classes, name), []).append(found)
    rows = []
    for (classes, name), group in sorted(groups.items(), key=lambda item: item[0][0]):
        scores = torch.tensor([f.nemd for f in group])
        columns = zip(*[(f.by_class, f.knn, f.uniformity) for f in group], strict=True)
        means = [sum(column) / len(group) for column in columns]
        spread = float(scores.std()) if len(group) > 1 else 0.0
        rows.append((classes, name, float(scores.mean()), spread, *means))
    return rows


def _claims(options: Options, results: dict[tuple, Found]) -> dict[str, bool]:
    """The paper's sentence for every number of classes, on the mean over seeds."""
    claims = {}
    for classes in options.classes:
        pcl, pauc = (
            sum(results[name, classes, seed].nemd for seed in range(options.seeds))
            for name in ("PCL", "PAUC")
        )
        claims[f"PAUC's NEMD is lower than PCL's with {classes} classes"] = pauc < pcl
    return claims


def _check(options: Options) -> None:
    least = {"samples": 10, "seeds": 1, "steps": ROUNDS, "batch": 8, "points": 1, "ablation": 0}
    for name, smallest in least.items():
        if getattr(options, name) < smallest:
            raise UsageError(f"{name} must be at least {smallest}, got {getattr(options, name)}")
    if not options.classes or min(options.classes) < 2:
        raise UsageError(f"classes must name numbers of at least 2, got {options.classes}")
    if options.ablation == 1 or options.batch > 2 * options.samples:
        raise UsageError(
            f"ablation must be 0 or at least 2, got {options.ablation}; batch at most twice "
            f"samples, got {options.batch} and {options.samples}"
        )
