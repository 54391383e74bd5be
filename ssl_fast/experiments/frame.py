"""What every experiment shares: options, the run folder, progress, the table and the pictures."""

import importlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track as rich_track

from ..bench import machine
from ..train.config import Help, Parser
from ..train.errors import UsageError, unknown
from ..train.files import is_unused, whole_file, write_text
from ..train.tables import Cell, Table
from . import EXPERIMENTS

Item = TypeVar("Item")


@dataclass
class Outcome:
    """What an experiment found.

    Args:
        title: one sentence, the heading of the table.
        columns: names of the columns.
        rows: cells in their order; floats are rounded for reading, and whole in CSV and JSON.
        figures: name of a PNG, without its ending, to a matplotlib figure.
        claims: a sentence of the paper to whether it held here.
        facts: whatever else belongs into results.json.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    figures: dict[str, Figure] = field(default_factory=dict)
    claims: dict[str, bool] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def main(argv: Sequence[str]) -> int:
    """`ssl-fast experiment NAME [OPTIONS]`."""
    name, *rest = list(argv) or ["--help"]
    if name in ("-h", "--help"):
        print(overview(), end="")
        return 0
    if name not in EXPERIMENTS:
        raise unknown("experiment", name, EXPERIMENTS)
    module = importlib.import_module(f"ssl_fast.experiments.{EXPERIMENTS[name][0]}")
    parser = build_parser(name, module)
    config = parser.parse_args(list(rest))
    options = module.Options(**{f.name: config[f.name] for f in fields(module.Options)})
    folder = new_folder(config.run_dir, name)
    config.run_dir = str(folder)
    write_text(folder / "config.yaml", parser.dump(config))
    print(f"run folder: {folder}", flush=True)
    start = time.perf_counter()
    outcome = module.run(options)
    write_outcome(folder, name, outcome, asdict(options), time.perf_counter() - start)
    return 0


def overview() -> str:
    width = max(map(len, EXPERIMENTS))
    lines = [f"  {name:{width}}  {summary}" for name, (_, summary) in EXPERIMENTS.items()]
    return (
        "usage: ssl-fast experiment NAME [OPTIONS]\n\n" + "\n".join(lines) + "\n\n"
        "Each writes a run folder: results.md, results.csv, results.json, config.yaml, pictures.\n"
        "ssl-fast experiment NAME --help names its options. Example:\n"
        "  ssl-fast experiment uniformity-metrics --rows 500\n"
    )


def build_parser(name: str, module: Any) -> Parser:
    parser = Parser(
        prog=f"ssl-fast experiment {name}",
        description=EXPERIMENTS[name][1],
        epilog=f"Examples:\n{module.EXAMPLE}",
        formatter_class=Help,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--run_dir", metavar="FOLDER", help="new or empty folder; by default runs/NAME-TIME"
    )
    parser.add_class_arguments(module.Options, None)
    return parser


def new_folder(given: str | None, name: str) -> Path:
    """A folder that does not exist yet, or is empty."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = Path(given or f"runs/{name}-{stamp}")
    if not is_unused(folder):
        raise UsageError(f"{folder} is not an empty folder: choose another name for --run-dir")
    return folder


def track(items: Iterable[Item], label: Callable[[Item], str]) -> Iterator[Item]:
    """The items one by one: a bar on a terminal, a line each elsewhere."""
    items = list(items)
    if sys.stdout.isatty():
        yield from rich_track(items, description="")
        return
    for number, item in enumerate(items, 1):
        print(f"{number}/{len(items)}  {label(item)}", flush=True)
        yield item


def of_seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def bars(axes: Axes, names: Sequence[str], values: dict[str, np.ndarray]) -> None:
    """`values` (names, seeds) side by side at each name: bars are means, points the seeds."""
    places, step = np.arange(len(names)), 0.8 / len(values)
    for i, (label, each) in enumerate(values.items()):
        at = places + step * (i - (len(values) - 1) / 2)
        axes.bar(at, each.mean(1), width=0.95 * step, color=f"C{i}", alpha=0.6, label=label)
        axes.plot(np.repeat(at[:, None], each.shape[1], 1), each, ".", color=f"C{i}")
    axes.set_xticks(places, names)


def write_outcome(
    folder: Path, name: str, outcome: Outcome, options: dict[str, Any], seconds: float
) -> None:
    """Each file appears whole or not at all; results.md is the last one."""
    for stem, figure in outcome.figures.items():
        with whole_file(folder / f"{stem}.png") as temporary:
            figure.savefig(temporary, format="png", dpi=110)
    write_text(folder / "results.csv", table_of(outcome).csv())
    stamp = machine.stamp()
    facts = {
        "experiment": name,
        "title": outcome.title,
        "seconds": round(seconds, 2),
        **stamp,
        "options": options,
        "columns": list(outcome.columns),
        "rows": [list(row) for row in outcome.rows],
        "claims": outcome.claims,
        **outcome.facts,
    }
    write_text(folder / "results.json", json.dumps(facts, indent=2) + "\n")
    where = f"{machine.sentence(stamp)}; {seconds:.0f} s."
    write_text(folder / "results.md", f"{markdown(outcome)}\n{where}\n")
    console = Console()
    console.print(table_of(outcome).terminal())
    for claim, held in outcome.claims.items():
        console.print(f"{_mark(held)}: {claim}", highlight=False, markup=False)


def table_of(outcome: Outcome) -> Table:
    return Table(outcome.title, outcome.columns, outcome.rows)


def markdown(outcome: Outcome) -> str:
    text = table_of(outcome).markdown()
    if outcome.claims:
        text += "\n" + "\n".join(f"- {_mark(held)}: {c}" for c, held in outcome.claims.items())
        text += "\n"
    return text + "".join(f"\n![{stem}]({stem}.png)\n" for stem in outcome.figures)


def _mark(held: bool) -> str:
    return "held" if held else "DID NOT HOLD"
