"""What is reported of a case: a row a direction, from samples of all contenders alone."""

import dataclasses
from typing import Any

import numpy
from torch import Tensor

from .cases import FORMULA, Bar, Case
from .timers import Sample


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median, and the 10 % and 90 % quantiles, over the rounds."""

    median: float
    low: float
    high: float


@dataclasses.dataclass
class Row:
    """One case in one direction: forward, backward, or both."""

    stem: str
    problem: str
    size: str
    dtype: str
    device: str
    launch: str  # "python", or "graph" for CUDA graph replay
    direction: str
    milliseconds: dict[str, float]  # contender -> median
    ratios: dict[str, float]  # contender -> its time over ours, median over the rounds
    fastest: str  # of eager and compile
    speedup: Spread  # of ours over `fastest`
    floor: str
    floor_ms: float
    floor_percent: float
    peak_bytes: dict[str, int]
    kept_bytes: dict[str, int]
    errors: dict[str, float]  # largest, relative to the largest entry, against float64
    backend: str
    rounds: int
    steps_a_round: int
    skipped: dict[str, str]  # contender -> why
    bars: list[dict[str, Any]]  # text, reached, met

    @property
    def title(self) -> str:
        launch = ", graph" if self.launch == "graph" else ""
        return f"{self.problem} {self.size} {self.dtype}{launch}"


def summarise(
    case: Case, arguments: list[Tensor], samples: dict[str, list[Sample]], common: dict[str, Any]
) -> list[Row]:
    """A row a direction, from the samples alone."""
    directions = {"forward": [1, 0]}
    if case.problem.differentiable:
        directions |= {"backward": [0, 1], "both": [1, 1]}
    rows = []
    for direction, weights in directions.items():
        seconds = {name: numpy.array(each) @ weights for name, each in samples.items()}
        floor = seconds.pop("floor")
        medians = {name: float(numpy.median(each)) for name, each in seconds.items()}
        fastest = min((n for n in FORMULA if n in medians), key=medians.__getitem__)
        row = Row(
            stem=case.problem.stem,
            problem=case.problem.name,
            size=case.size,
            dtype=case.dtype,
            device=case.device,
            direction=direction,
            milliseconds={name: 1e3 * each for name, each in medians.items()},
            ratios={name: spread(each / seconds["ours"]).median for name, each in seconds.items()},
            fastest=fastest,
            speedup=spread(seconds[fastest] / seconds["ours"]),
            floor=case.problem.floor(*arguments).label,
            floor_ms=1e3 * float(numpy.median(floor)),
            floor_percent=100 * spread(floor / seconds["ours"]).median,
            rounds=len(floor),
            bars=[],
            **common,
        )
        if direction == list(directions)[-1]:
            row.bars = bars(case, arguments, seconds, floor, row)
        rows.append(row)
    return rows


def bars(
    case: Case,
    arguments: list[Tensor],
    seconds: dict[str, numpy.ndarray],
    floor: numpy.ndarray,
    row: Row,
) -> list[dict[str, Any]]:
    """What the case must reach, and whether it did. Plain PyTorch meets no bar."""
    ours, found = seconds["ours"], []
    for bar in speeds(case):
        against = min(bar.rivals(seconds), key=row.milliseconds.__getitem__)
        ratio = spread(seconds[against] / ours).median
        met = ratio >= bar.times
        found.append({"text": str(bar), "reached": f"{ratio:.2f} x {against}", "met": met})
    if case.limit:
        allowed = case.limit.times * floor + case.limit.plus_ms / 1e3
        reached = f"{spread(ours / floor).median:.2f} x floor"
        met = spread(ours / allowed).median <= 1
        found.append({"text": str(case.limit), "reached": reached, "met": met})
    if case.problem.memory:
        limit = case.problem.memory(*arguments)
        size = (row.peak_bytes if limit.kind == "peak" else row.kept_bytes)["ours"]
        reached = f"{size / 1e6:.3g} MB"
        found.append({"text": str(limit), "reached": reached, "met": size < limit.size})
    if "reference" in row.backend.split("+"):
        for each in found:
            each |= {"met": False, "reached": each["reached"] + ", plain PyTorch"}
    return found


def speeds(case: Case) -> list[Bar]:
    if not case.bar:
        return []
    return [case.bar, Bar(1)] if case.bar.against == "Lightly" else [case.bar]


def spread(values: Any) -> Spread:
    low, median, high = numpy.quantile(values, [0.1, 0.5, 0.9])
    return Spread(float(median), float(low), float(high))
