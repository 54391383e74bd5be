"""One case measured into the results; how far the run has come."""

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from .cases import Case
from .harness import Options, measure
from .oracle import WrongResult
from .report import Results


def attempt(case: Case, options: Options, results: Results) -> str:
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
