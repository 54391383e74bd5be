"""Times the ways to compute one thing side by side: one process, rounds A B A B, medians of ratios.

Every result is checked against the formula in float64 before anything is timed: a wrong one is a
failure and no row.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ssl_fast import backend

from . import memory, timers
from .cases import Case, Skip
from .oracle import Oracle, check
from .rows import Row, summarise
from .timers import Sample, Sampler

MIN_ROUNDS = 7
ROUNDS = 15
_ROUNDS_SECONDS = 20.0  # a case stops after this, once it has MIN_ROUNDS
_WARM_CALLS, _WARM_SECONDS = 25, 1.0  # the first large calls after a fresh allocation are slow
_SAMPLE_SECONDS = 0.004
_RIVAL_ERROR = 1e-3  # a rival that people use may be less accurate than eager


@dataclasses.dataclass(frozen=True)
class Options:
    rounds: int = ROUNDS
    without_compile: str = ""  # why torch.compile is left out, if it is
    backend: str = "auto"
    quick: bool = False


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
        torch._dynamo.reset()
        loaders = {"compile": lambda: _compiled(problem.eager), **loaders}
        judged = oracle.case.bar and oracle.case.bar.against == "Lightly"
        if judged and "lightly" in loaders and not options.quick:
            loaders["lightly compiled"] = lambda: _compiled(loaders["lightly"]())
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


def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
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
