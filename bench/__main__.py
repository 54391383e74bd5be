"""The command line of the benchmarks."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import torch

from ssl_fast.backend import CHOICES

from . import compat, machine, quick, report
from .cases import Case
from .harness import MIN_ROUNDS, ROUNDS, Options
from .runs import attempt, progress

STEMS = tuple(sorted(file.stem[6:] for file in Path(__file__).parent.glob("bench_*.py")))
DTYPES = ("float32", "bfloat16", "float16", "float64")
QUICK_OUT = Path("ssl_fast_bench")

DESCRIPTION = """\
Times ssl_fast against plain PyTorch, torch.compile of the same formula, and other libraries that
are installed. Every result is checked against float64 before it is timed. Prints a Markdown table:
medians over interleaved rounds, and how far from the machine's floor."""

EXAMPLES = """\
examples:
  ssl-fast bench --quick                          a minute: every loss once, a table and a plot
  ssl-fast bench --quick --time-limit 300         likewise, more of them against torch.compile
  ssl-fast bench --compat --out results           Lightly's classes beside ours of the same names
  ssl-fast bench                                  every case of this machine's device
  ssl-fast bench sinkhorn --out results           one stem; also JSON, CSV and a PNG
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
    if arguments.compat and not compat.cases():
        return _refuse("--compat needs Lightly: pip install lightly")
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
    add(
        "--quick",
        action="store_true",
        help="every loss at one small size, 5 rounds: a look in "
        f"under a minute; files go to {QUICK_OUT} unless --out says otherwise",
    )
    add(
        "--compat",
        action="store_true",
        help="each class of ssl_fast.compat.lightly against Lightly's, from 8 rows to 4096: some "
        "10 minutes",
    )
    add("--rounds", type=_rounds, default=None, help=f"default {ROUNDS}; {MIN_ROUNDS} to quote")
    add("--out", type=Path, metavar="DIR", help="write bench_DEVICE.md, .json, .csv, .png there")
    add("--filter", default="", metavar="SUBSTR", help="only cases whose name holds SUBSTR")
    add("--no-compile", action="store_true", help="leave torch.compile out")
    add("--backend", choices=CHOICES, default="auto", help="force ours; default auto")
    add(
        "--time-limit",
        type=float,
        metavar="SECONDS",
        help=f"start no case after this; default none, with --quick {quick.SECONDS:g}",
    )
    add("--list", action="store_true", help="print the cases and stop")
    return made


def select(arguments: argparse.Namespace, device: str) -> list[Case]:
    if arguments.quick:
        if arguments.stems or arguments.dtype:
            parser().error("--quick has one float32 case a loss: choose among them with --filter")
        cases = import_module(".losses", __package__ or "bench").cases(device)
        return [case for case in cases if arguments.filter in str(case)]
    if arguments.compat:
        if arguments.stems or arguments.dtype or device != "cpu":
            parser().error("--compat has cases of its own, float32 on a CPU: choose by --filter")
        return [case for case in compat.cases() if arguments.filter in str(case)]
    for stem in arguments.stems:
        if stem not in STEMS:
            parser().error(f"no stem {stem!r}: choose from {', '.join(STEMS)}")
    package = __package__ or "bench"
    modules = [import_module(f"{package}.bench_{s}") for s in arguments.stems or STEMS]
    cases = [case for module in modules for case in module.CASES if case.device == device]
    if arguments.dtype:
        cases = list({str(c): c for c in (c.as_dtype(arguments.dtype) for c in cases)}.values())
    return [case for case in cases if arguments.filter in str(case)]


def run(cases: list[Case], device: str, arguments: argparse.Namespace) -> int:
    rounds = arguments.rounds or (5 if arguments.quick else ROUNDS)
    without_compile = "--no-compile" if arguments.no_compile else ""
    options = Options(rounds, without_compile, arguments.backend, arguments.quick)
    results = report.Results(machine.describe(device))
    results.warnings = machine.warnings(results.machine)
    if rounds < MIN_ROUNDS:
        results.warnings.append(f"{rounds} rounds: a look, not a result; {MIN_ROUNDS} to quote")
    form = quick.FORM if arguments.quick else compat.FORM if arguments.compat else report.FULL
    out = arguments.out or (QUICK_OUT if arguments.quick else None)
    with progress(len(cases)) as (say, advance):
        for warning in results.warnings:
            say(f"warning: {warning}")
        if arguments.quick:
            seconds = arguments.time_limit or quick.SECONDS
            quick.measure(cases, options, results, seconds, say, advance)
        else:
            measure_all(cases, options, results, arguments, form, say, advance)
    print(report.markdown(results, form), flush=True)
    if out:
        for line in report.write(results, form, out):
            print(f"ssl-fast bench: {line}", file=sys.stderr)
    return 1 if results.failures else 0


def measure_all(cases: list[Case], options: Options, results: report.Results,
                arguments: argparse.Namespace, form: report.Form, say: Callable[[str], None],
                advance: Callable[[str], None]) -> None:  # fmt: skip
    start = time.monotonic()
    for case in cases:
        if arguments.time_limit and time.monotonic() - start > arguments.time_limit:
            results.not_run[str(case)] = f"time limit of {arguments.time_limit:g} s"
            continue
        advance(str(case))
        say(attempt(case, options, results))
        if arguments.out:  # so that a run that is killed leaves what it had
            report.write(results, form, arguments.out, figure=False)


def _rounds(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"at least 1, got {value}")
    return value


def _refuse(message: str) -> int:
    print(f"ssl-fast bench: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
