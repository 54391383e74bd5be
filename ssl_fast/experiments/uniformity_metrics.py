"""The property study of the Wasserstein uniformity metric (Fang et al. 2024, arXiv 2403.00642).

A good uniformity U does not change when instances are permuted or cloned, and falls strictly when
features are cloned (z + z, renormalised) or constants are appended (z + 0). -W2 does all four;
-L_U misses the last three. And -W2 follows the degree of dimensional collapse, -L_U hardly does.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..metrics import gaussian_uniformity, wasserstein_uniformity
from ..train.errors import UsageError
from ..train.random import generator
from .frame import Outcome, track

EXAMPLE = """\
  ssl-fast experiment uniformity-metrics
  ssl-fast experiment uniformity-metrics --rows 500 --width 64 --run-dir runs/uniformity
"""
SAME = 1e-9  # float64 sums in another order


@dataclass
class Options:
    """Where the embeddings come from.

    Args:
        rows: embeddings, drawn evenly from the sphere.
        width: dimension of the sphere's space.
        copies: most copies of instances and of features.
        steps: degrees of collapse between none and all but one dimension.
        seed: of the draw.
    """

    rows: int = 2000
    width: int = 256
    copies: int = 5
    steps: int = 9
    seed: int = 0


class Study(NamedTuple):
    """One property: how the data are changed, and by how much along the axis of a plot."""

    name: str
    axis: str
    amounts: list[float]
    change: Callable[[Tensor, float], Tensor]
    expected: str  # of a good metric: "constant" or "falls"


class Point(NamedTuple):
    study: Study
    amount: float

    def label(self) -> str:
        return f"{self.study.name}, {self.study.axis} {self.amount:g}"


def run(options: Options) -> Outcome:
    _check(options)
    z = sphere(options.rows, options.width, options.seed)
    points = [Point(study, a) for study in studies(options) for a in study.amounts]
    rows: list[tuple] = []
    for study, amount in track(points, Point.label):
        changed = study.change(z, amount)
        w2 = -wasserstein_uniformity(changed)
        rows.append((study.name, amount, w2, -gaussian_uniformity(changed)))
    return Outcome(
        title=f"{options.rows} embeddings on the sphere in {options.width} dimensions; "
        "higher is more uniform",
        columns=["change", "amount", "-W2", "-L_U"],
        rows=rows,
        figures={"uniformity": draw(studies(options), rows)},
        claims=claims(rows),
    )


def sphere(rows: int, width: int, seed: int) -> Tensor:
    """Rows spread evenly over the unit sphere, float64."""
    z = torch.randn(rows, width, dtype=torch.float64, generator=generator(seed))
    return torch.nn.functional.normalize(z)


def studies(options: Options) -> list[Study]:
    copies = [float(c) for c in range(1, options.copies + 1)]
    shares = [0.0, 0.25, 0.5, 1.0, 2.0]
    kept = torch.linspace(options.width, 1, options.steps + 1).round().tolist()
    collapse = sorted({1 - k / options.width for k in kept})
    permute = Study("instances permuted", "permutation", copies, _permuted, "constant")
    return [
        permute,
        Study("instances cloned", "copies", copies, lambda z, c: z.repeat(int(c), 1), "constant"),
        Study("features cloned", "copies", copies, lambda z, c: z.repeat(1, int(c)), "falls"),
        Study("zeros appended", "zeros / width", shares, lambda z, s: _appended(z, s, 0), "falls"),
        Study("constants appended", "constants / width", shares, _constants, "falls"),
        Study("dimensions collapsed", "collapsed share", collapse, _collapsed, "falls"),
    ]


def _permuted(z: Tensor, amount: float) -> Tensor:
    return z[torch.randperm(len(z), generator=generator(7, int(amount)))] if amount > 1 else z


def _appended(z: Tensor, share: float, value: float) -> Tensor:
    return torch.cat([z, z.new_full((len(z), round(share * z.shape[1])), value)], 1)


def _constants(z: Tensor, share: float) -> Tensor:
    """Constants of the size of a typical coordinate."""
    return _appended(z, share, z.shape[1] ** -0.5)


def _collapsed(z: Tensor, share: float) -> Tensor:
    """The last coordinates set to zero, the rest renormalised by the metric."""
    kept = z.shape[1] - round(share * z.shape[1])
    return torch.cat([z[:, :kept], torch.zeros_like(z[:, kept:])], 1)


def claims(rows: list[tuple]) -> dict[str, bool]:
    """The paper's sentences, on the numbers of this run."""
    w2, lu = _series(rows, 2), _series(rows, 3)
    permuted, instances, features, zeros, constants, collapse = w2

    def share_seen(series: list[float]) -> float:
        """How much of the whole fall a collapse of about half the dimensions shows."""
        return (series[0] - series[len(series) // 2]) / (series[0] - series[-1])

    return {
        "-W2 does not change when instances are permuted": _constant(w2[permuted]),
        "-L_U does not change when instances are permuted": _constant(lu[permuted]),
        "-W2 does not change when instances are cloned": _constant(w2[instances]),
        "-L_U falls when instances are cloned": _falls(lu[instances]),
        "-W2 falls when features are cloned": _falls(w2[features]),
        "-L_U does not notice cloned features": _constant(lu[features]),
        "-W2 falls when zeros are appended": _falls(w2[zeros]),
        "-L_U does not notice appended zeros": _constant(lu[zeros]),
        "-W2 falls when constants are appended": _falls(w2[constants]),
        "-W2 falls with every further collapsed dimension": _falls(w2[collapse]),
        "half the dimensions collapsed: -W2 shows at least four times -L_U's share of its fall": (
            share_seen(w2[collapse]) > 4 * share_seen(lu[collapse])
        ),
    }


def _series(rows: list[tuple], column: int) -> dict[str, list[float]]:
    series: dict[str, list[float]] = {}
    for row in rows:
        series.setdefault(row[0], []).append(row[column])
    return series


def _constant(values: list[float]) -> bool:
    return max(values) - min(values) <= SAME


def _falls(values: list[float]) -> bool:
    return all(b < a - SAME for a, b in itertools.pairwise(values))


def draw(all_studies: list[Study], rows: list[tuple]) -> Figure:
    """A column for each study, -W2 above and -L_U below; one scale along each line of plots."""
    figure = Figure(figsize=(3 * len(all_studies), 5.6), layout="constrained")
    axes = figure.subplots(2, len(all_studies), sharex="col", sharey="row")
    for line, (name, color) in enumerate((("-W2", "tab:blue"), ("-L_U", "tab:orange"))):
        series = _series(rows, 2 + line)
        for plot, study in zip(axes[line], all_studies, strict=True):
            plot.plot(study.amounts, series[study.name], marker="o", color=color)
            plot.grid(alpha=0.3)
            if line == 0:
                wanted = "should stay" if study.expected == "constant" else "should fall"
                plot.set_title(f"{study.name}\n({wanted})", fontsize=10)
            else:
                plot.set_xlabel(study.axis)
        axes[line][0].set_ylabel(f"{name} (higher: more uniform)")
    return figure


def _check(options: Options) -> None:
    least = {"rows": 2, "width": 8, "copies": 2, "steps": 3}
    for name, smallest in least.items():
        if getattr(options, name) < smallest:
            raise UsageError(f"{name} must be at least {smallest}, got {getattr(options, name)}")
