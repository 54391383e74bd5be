"""`ssl-fast bench --quick`: one row a loss, what this machine gains, in under a minute."""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path

from . import report
from .cases import Case
from .harness import Options
from .report import Results
from .rows import Row
from .runs import attempt

SECONDS = 45.0
_COMPILE_SECONDS = 10.0  # the first compilation's guess; later ones take the slowest so far
_RIVALS = {"lightly": "Lightly", "eager": "eager", "compile": "torch.compile"}
_COLORS = dict(zip(_RIVALS, ("tab:blue", "tab:gray", "tab:orange"), strict=True))
_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)


def measure(
    cases: list[Case],
    options: Options,
    results: Results,
    seconds: float,
    say: Callable[[str], None],
    advance: Callable[[str], None],
) -> None:
    """Every case without torch.compile; then again with it, in order, while its time fits."""
    end = time.monotonic() + seconds
    late = f"its compilation did not fit into {seconds:g} s; --time-limit gives it more"
    plain = dataclasses.replace(options, without_compile=options.without_compile or late)
    for case in cases:
        if time.monotonic() > end:
            results.not_run[str(case)] = f"time limit of {seconds:g} s"
            continue
        advance(str(case))
        say(attempt(case, plain, results))
    if options.without_compile:
        return
    slowest = _COMPILE_SECONDS
    for case in [case for case in cases if str(case) not in results.failures]:
        start = time.monotonic()
        if end - start < slowest:
            return
        again = Results(results.machine)
        say(f"torch.compile: {attempt(case, options, again)}")
        slowest = max(slowest, time.monotonic() - start)
        results.failures |= again.failures
        compiled = {(row.problem, row.direction): row for row in again.rows}
        results.rows = [compiled.get((row.problem, row.direction), row) for row in results.rows]


def table(rows: list[Row]) -> str:
    """Milliseconds of a whole step, and how many times ours is faster; geometric means below."""
    rows = report.last(rows)
    if not rows:
        return ""
    names = _RIVALS.values()
    head = ["loss", "shape", "ours ms", *(f"{name} ms" for name in names)]
    head += [f"x {name}" for name in names]
    lines = [head, ["---", "---", *["---:"] * (len(head) - 2)], *map(_cells, rows)]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{text}\n\nGeometric means: {', '.join(_means(rows))}"


def draw(results: Results, path: Path) -> None:
    """How many times faster than each rival, a group of bars a loss."""
    from matplotlib import pyplot
    from matplotlib.ticker import NullLocator

    rows = report.last(results.rows)[::-1]
    figure, axes = pyplot.subplots(figsize=(8, 1.5 + 0.35 * len(rows)), layout="constrained")
    height = 0.8 / len(_RIVALS)
    for i, (rival, name) in enumerate(_RIVALS.items()):
        found = {y: row.ratios[rival] for y, row in enumerate(rows) if rival in row.ratios}
        if found:
            places, gains = [y + (1 - i) * height for y in found], [x - 1 for x in found.values()]
            axes.barh(places, gains, height, left=1, color=_COLORS[rival], label=name)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.margins(y=0.01)
    low, high = axes.get_xlim()
    axes.set_xticks([x for x in _TICKS if low <= x <= high])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(len(rows)), [f"{row.problem}\n{row.size}" for row in rows], fontsize=7)
    axes.set_xlabel("x faster, forward and backward")
    axes.set_title(report.place(results.machine), fontsize=9)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


FORM = report.Form("quick", table, draw)


def _cells(row: Row) -> list[str]:
    ms = row.milliseconds
    times = [f"{row.ratios[name]:.2f}" if name in ms else "-" for name in _RIVALS]
    return [
        row.problem,
        row.size.replace("x", " x "),
        *(report.number(ms.get(name)) for name in ("ours", *_RIVALS)),
        *times,
    ]


def _means(rows: list[Row]) -> list[str]:
    found = []
    for rival, name in _RIVALS.items():
        ratios = [row.ratios[rival] for row in rows if rival in row.ratios]
        if ratios:
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            found.append(f"{mean:.2f} x {name} (of {len(ratios)} losses)")
    return found
