"""Times the ways to compute one thing side by side: one process, rounds A B A B, medians of ratios.

Every result is checked against the formula in float64 before anything is timed: a wrong one is a
failure and no row.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import torch
from torch import Tensor

from ssl_fast import backend

from . import memory, timers
from .cases import Case, Skip
from .timers import Sample, Sampler, fresh, gradients

MIN_ROUNDS = 7
ROUNDS = 15
_ROUNDS_SECONDS = 20.0  # a case stops after this, once it has MIN_ROUNDS
_WARM_CALLS, _WARM_SECONDS = 25, 1.0  # the first large calls after a fresh allocation are slow
_SAMPLE_SECONDS = 0.004
_RIVAL_ERROR = 1e-3  # a rival that people use may be less accurate than eager
_SLACK = 4  # roundings of the output's type, beside twice the eager error


class WrongResult(Exception):
    """A contender's value or gradient is further from float64 than rounding explains."""


@dataclasses.dataclass(frozen=True)
class Options:
    rounds: int = ROUNDS
    without_compile: str = ""  # why torch.compile is left out, if it is
    backend: str = "auto"
    quick: bool = False


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


def measure(case: Case, options: Options) -> Iterator[Row]:
    """Rows of one case. Raises WrongResult, or whatever our call raises."""
    arguments = case.arguments()
    with _chosen(options.backend):
        oracle = Oracle(case, arguments)
        ran = check(oracle)
        functions, skipped = contenders(oracle, options)
        errors = oracle.errors
        del oracle  # its float64 results may be as large as all else
        measured = {} if options.quick and not case.problem.memory else functions
        sizes = {
            name: memory.extra(function, arguments, case.problem.differentiable)
            for name, function in measured.items()
        }
        for launch in launches(case, arguments):
            samples, inner, left_out = sample(case, arguments, functions, launch, options)
            common = {
                "launch": launch,
                "peak_bytes": {name: peak for name, (peak, _) in sizes.items()},
                "kept_bytes": {name: kept for name, (_, kept) in sizes.items()},
                "errors": errors,
                "backend": "+".join(sorted({name for _, name in ran})) or "none",
                "steps_a_round": inner,
                "skipped": skipped | left_out,
            }
            # The floor holds no launches: a small case is held to it where a graph replays it.
            limit = case.limit if launch == launches(case, arguments)[-1] else None
            judged = dataclasses.replace(case, limit=limit)
            yield from summarise(judged, arguments, samples, common)


def launches(case: Case, arguments: list[Tensor]) -> list[str]:
    """Small GPU cases are timed twice: launched from Python, and replayed by a CUDA graph."""
    small = case.device == "cuda" and timers.is_small(arguments)
    return ["python", "graph"] if small else ["python"]


class Oracle:
    """The formula in float64, and how far from it a contender may be: eager sets the scale."""

    def __init__(self, case: Case, arguments: list[Tensor]):
        self.case, self.arguments = case, arguments
        self.exact = self._outputs(case.problem.eager, [_double(x) for x in arguments])
        eager = self._outputs(case.problem.eager, arguments)
        self.eager = [_error(a, b) for a, b in zip(eager, self.exact, strict=True)]
        self.errors = {"eager": max(self.eager)}

    def judge(
        self, name: str, function: Callable[..., Tensor], times: float, granted: float = 0.0
    ) -> None:
        """Record the largest relative error; raise beyond `times` eager's plus rounding."""
        found = self._outputs(function, self.arguments)
        for i, (value, exact) in enumerate(zip(found, self.exact, strict=True)):
            error = _error(value, exact)
            allowed = times * self.eager[i] + _SLACK * torch.finfo(value.dtype).eps
            allowed = max(allowed, granted)
            self.errors[name] = max(error, self.errors.get(name, 0.0))
            if not error <= allowed:
                what = f"gradient {i}" if i else "value"
                raise WrongResult(
                    f"{self.case}: {name}'s {what} is off by {error:.1e} of its largest entry; "
                    f"{allowed:.1e} is allowed"
                )

    def _outputs(self, function: Callable[..., Tensor], arguments: list[Tensor]) -> list[Tensor]:
        return outputs(function, fresh(arguments, self.case.problem.differentiable))


def check(oracle: Oracle) -> list[tuple[str, str]]:
    """Raise WrongResult, or return the (stem, backend) pairs that ran."""
    with backend.trace() as ran:
        oracle.judge("ours", oracle.case.problem.ours, times=2)
    return ran


def contenders(
    oracle: Oracle, options: Options
) -> tuple[dict[str, Callable[..., Tensor]], dict[str, str]]:
    """Functions by name, ours last, and why others are missing."""
    problem = oracle.case.problem
    functions, skipped = {"eager": problem.eager}, {}
    loaders = dict(problem.rivals)
    if options.without_compile:
        skipped["compile"] = options.without_compile
    else:
        loaders = {"compile": lambda: _compiled(problem.eager), **loaders}
    for name, load in loaders.items():
        try:
            with torch.device(oracle.case.device):
                function = load()
            oracle.judge(name, function, times=4, granted=_RIVAL_ERROR)
            functions[name] = function
        except Skip as skip:
            skipped[name] = str(skip)
        except Exception as error:  # a rival that fails is no failure of ours
            skipped[name] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return {**functions, "ours": problem.ours}, skipped


def sample(
    case: Case, arguments: list[Tensor], functions: dict[str, Callable], launch: str,
    options: Options,
) -> tuple[dict[str, list[Sample]], int, dict[str, str]]:  # fmt: skip
    """Interleaved rounds: contender -> samples, "floor" among them; steps a sample; left out."""
    samplers, inner, left_out = _samplers(case, arguments, functions, launch)
    work = case.problem.floor(*arguments)
    samplers["floor"] = timers.floor(work, arguments[0], launch == "graph")
    for each in samplers.values():
        _warm(each, options.quick)
    samples: dict[str, list[Sample]] = {name: [] for name in samplers}
    start = time.perf_counter()
    for done in range(options.rounds):
        if done >= MIN_ROUNDS and time.perf_counter() - start > _ROUNDS_SECONDS:
            break
        for name, each in samplers.items():
            samples[name].append(each())
    return samples, inner, left_out


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
        fastest = min((n for n in ("eager", "compile") if n in medians), key=medians.__getitem__)
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
    if case.bar:
        against = "eager" if case.bar.against == "eager" else row.fastest
        ratio = spread(seconds[against] / ours).median
        met = ratio >= case.bar.times
        found.append({"text": str(case.bar), "reached": f"{ratio:.2f} x {against}", "met": met})
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


def spread(values: Any) -> Spread:
    low, median, high = numpy.quantile(values, [0.1, 0.5, 0.9])
    return Spread(float(median), float(low), float(high))


def outputs(function: Callable[..., Tensor], leaves: list[Tensor]) -> list[Tensor]:
    """The value and the gradients of one step."""
    result = function(*leaves)
    return [result.detach(), *gradients(result, leaves)]


def _error(found: Tensor, exact: Tensor) -> float:
    largest = exact.abs().max()
    return float((found.double() - exact).abs().max() / largest.clamp(min=1e-300))


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)


def _samplers(
    case: Case, arguments: list[Tensor], functions: dict[str, Callable], launch: str
) -> tuple[dict[str, Sampler], int, dict[str, str]]:
    differentiable = case.problem.differentiable
    if case.device == "cpu":
        inner = _inner(functions["eager"], arguments, differentiable)
        made = {n: timers.cpu(f, arguments, differentiable, inner) for n, f in functions.items()}
        return made, inner, {}
    sets = timers.copies(arguments)
    if launch == "python":
        return (
            {n: timers.cuda_stream(f, sets, differentiable) for n, f in functions.items()},
            len(sets),
            {},
        )
    made, left_out = {}, {}
    for name, function in functions.items():
        try:
            made[name] = timers.cuda_graph(function, sets, differentiable)
        except Exception as error:
            if name in ("eager", "ours"):
                raise RuntimeError(f"{case}: {name} is not capturable: {error}") from error
            left_out[name] = f"not capturable: {str(error).partition(chr(10))[0]}"
    return made, len(sets), left_out


def _inner(function: Callable, arguments: list[Tensor], differentiable: tuple[int, ...]) -> int:
    once = timers.cpu(function, arguments, differentiable, 1)
    once()
    seconds = min(sum(once()) for _ in range(3))
    return max(1, min(200, int(_SAMPLE_SECONDS / seconds)))


def _warm(sampler: Sampler, quick: bool) -> None:
    start = time.perf_counter()
    for call in range(1 if quick else _WARM_CALLS):
        if call >= 3 and time.perf_counter() - start > _WARM_SECONDS:
            break
        sampler()


@contextlib.contextmanager
def _chosen(name: str):
    if name == "auto":
        yield
        return
    with backend.set_backend(name):
        yield
