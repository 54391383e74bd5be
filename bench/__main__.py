"""The command line of the benchmarks."""

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import torch

from ssl_fast.backend import CHOICES

from . import machine, report
from .cases import Case
from .harness import MIN_ROUNDS, ROUNDS, Options, WrongResult, measure

STEMS = tuple(sorted(file.stem[6:] for file in Path(__file__).parent.glob("bench_*.py")))
DTYPES = ("float32", "bfloat16", "float16", "float64")
_QUICK_NUMBERS = 1 << 20

DESCRIPTION = """\
Times ssl_fast against plain PyTorch, torch.compile of the same formula, and other libraries that
are installed. Every result is checked against float64 before it is timed. Prints a Markdown table:
medians over interleaved rounds, and how far from the machine's floor."""

EXAMPLES = """\
examples:
  ssl-fast bench                                  every case of this machine's device
  ssl-fast bench sinkhorn --out results           one stem; also JSON, CSV and a PNG
  ssl-fast bench --quick --no-compile             a minute, for a look; not for quoting
  ssl-fast bench cross_entropy --filter 4096      cases whose name holds 4096
  ssl-fast bench --device cpu --dtype bfloat16    the listed sizes in another type
  ssl-fast bench resa --backend reference         what plain PyTorch costs
Close other programs first: a busy neighbour slows threads that wait for each other most."""


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 1 when a case failed, or 2 for arguments that name nothing to run."""
    arguments = parser().parse_args(argv)
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        return _refuse("--device cuda: PyTorch finds no GPU; python -m ssl_fast.info says more")
    cases = select(arguments, device)
    if not cases:
        return _refuse(f"no case on {device} matches; ssl-fast bench --list shows all")
    if arguments.list:
        print(*cases, sep="\n")
        return 0
    return run(cases, device, arguments)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="ssl-fast bench",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("stems", nargs="*", metavar="STEM", help=f"{', '.join(STEMS)}; default: all")
    add("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    add("--dtype", choices=DTYPES, help="run every size in this type; bars hold as listed only")
    add("--quick", action="store_true", help="3 rounds of the small cases: a look, no result")
    add("--rounds", type=_rounds, default=None, help=f"default {ROUNDS}; {MIN_ROUNDS} to quote")
    add("--out", type=Path, metavar="DIR", help="write bench_DEVICE.md, .json, .csv, .png there")
    add("--filter", default="", metavar="SUBSTR", help="only cases whose name holds SUBSTR")
    add("--no-compile", action="store_true", help="leave torch.compile out")
    add("--backend", choices=CHOICES, default="auto", help="force ours; default auto")
    add("--time-limit", type=float, metavar="SECONDS", help="start no case after this")
    add("--list", action="store_true", help="print the cases and stop")
    return made


def select(arguments: argparse.Namespace, device: str) -> list[Case]:
    for stem in arguments.stems:
        if stem not in STEMS:
            parser().error(f"no stem {stem!r}: choose from {', '.join(STEMS)}")
    package = __package__ or "bench"
    modules = [import_module(f"{package}.bench_{s}") for s in arguments.stems or STEMS]
    cases = [case for module in modules for case in module.CASES if case.device == device]
    if arguments.dtype:
        cases = list({str(c): c for c in (c.as_dtype(arguments.dtype) for c in cases)}.values())
    if arguments.quick:
        cases = [case for case in cases if _numbers(case) <= _QUICK_NUMBERS]
    return [case for case in cases if arguments.filter in str(case)]


def run(cases: list[Case], device: str, arguments: argparse.Namespace) -> int:
    rounds = arguments.rounds or (3 if arguments.quick else ROUNDS)
    options = Options(rounds, not arguments.no_compile, arguments.backend, arguments.quick)
    results = report.Results(machine.describe(device))
    results.warnings = machine.warnings(results.machine)
    if rounds < MIN_ROUNDS:
        results.warnings.append(f"{rounds} rounds: a look, not a result; {MIN_ROUNDS} to quote")
    start = time.monotonic()
    with progress(len(cases)) as (say, advance):
        for warning in results.warnings:
            say(f"warning: {warning}")
        for case in cases:
            if arguments.time_limit and time.monotonic() - start > arguments.time_limit:
                results.not_run[str(case)] = f"time limit of {arguments.time_limit:g} s"
                continue
            advance(str(case))
            say(attempt(case, options, results))
            if arguments.out:  # so that a run that is killed leaves what it had
                report.write(results, arguments.out, figure=False)
    print(report.markdown(results), flush=True)
    if arguments.out:
        for line in report.write(results, arguments.out):
            print(f"ssl-fast bench: {line}", file=sys.stderr)
    return 1 if results.failures else 0


def attempt(case: Case, options: Options, results: report.Results) -> str:
    """Measure one case into `results`; a line about it."""
    try:
        for row in measure(case, options):
            results.rows.append(row)
    except WrongResult as error:
        results.failures[str(case)] = f"wrong result: {error}"
    except Exception as error:
        traceback.print_exc()
        first = str(error).strip().partition("\n")[0]
        results.failures[str(case)] = f"{type(error).__name__}: {first}"
    finally:
        if case.device == "cuda":
            torch.cuda.empty_cache()
    if str(case) in results.failures:
        return f"{case}: FAILED, {results.failures[str(case)]}"
    s = row.speedup
    return f"{case}: {s.median:.2f} x {row.fastest} ({s.low:.2f}-{s.high:.2f})"


@contextmanager
def progress(total: int) -> Iterator[tuple[Callable[[str], None], Callable[[str], None]]]:
    """(say a line, begin the next case), on stderr: rich's bar on a terminal, else plain lines."""
    try:
        from rich import progress as bars
        from rich.console import Console

        console = Console(stderr=True)
        if not console.is_terminal:
            raise ImportError
    except ImportError:
        count = iter(range(1, total + 1))
        yield (
            lambda line: print(line, file=sys.stderr, flush=True),
            lambda name: print(f"[{next(count)}/{total}] {name}", file=sys.stderr, flush=True),
        )
        return
    columns = (bars.SpinnerColumn(), bars.BarColumn(), bars.MofNCompleteColumn(),
               bars.TimeElapsedColumn(), bars.TextColumn("{task.description}"))  # fmt: skip
    with bars.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total, completed=-1)
        yield (
            lambda line: console.print(line, highlight=False, markup=False),
            lambda name: bar.update(task, advance=1, description=name),
        )


def _rounds(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"at least 1, got {value}")
    return value


def _numbers(case: Case) -> int:
    """Entries of the N x K matrix that the case is about."""
    rows = case.shape[0]
    return rows * (rows if case.problem.stem == "resa" else case.shape[1])


def _refuse(message: str) -> int:
    print(f"ssl-fast bench: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
