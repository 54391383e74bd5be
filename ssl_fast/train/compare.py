"""`ssl-fast compare` and `ssl-fast plot`: finished runs side by side."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console

from .config import Help, Parser
from .files import write_text
from .report import COLUMNS, cells, save
from .saved import Run, read_runs
from .tables import Cell, Table

COMPARE = """\
Example:
  ssl-fast compare runs/simclr runs/resa --out runs/simclr-resa
"""
PLOT = """\
Example:
  ssl-fast plot runs/simclr runs/resa --out runs/simclr-resa-curves.png
"""
HEAD = ["run", "method", "seed", "epochs", *COLUMNS.values(), "seconds"]
BASELINES = {"raw pixels": "--", "untrained encodings": ":"}  # and how their lines are drawn
STYLES = "-", "--", ":", "-."  # of ten curves each


def compare(argv: list[str]) -> int:
    parser = _parser("compare", "One table and one picture over finished runs on the same data.")
    parser.add_argument("--out", default="comparison", help="writes OUT.md and OUT.png")
    options = parser.parse_args(argv)
    runs = read_runs(options.runs, "compare")
    table = table_of(runs)
    write_text(Path(f"{options.out}.md"), table.markdown())
    draw(Path(f"{options.out}.png"), runs)
    Console().print(table.terminal())
    print(f"written: {options.out}.md, {options.out}.png")
    return 0


def plot(argv: list[str]) -> int:
    parser = _parser("plot", "The curves of finished runs on the same data in one picture.")
    parser.add_argument("--out", default="curves.png", help="the picture, a PNG")
    options = parser.parse_args(argv)
    draw_curves(Path(options.out), read_runs(options.runs, "plot"))
    print(f"written: {options.out}")
    return 0


def table_of(runs: Mapping[str, Run]) -> Table:
    """Encodings of the runs; below them raw pixels and untrained encoders, each once."""
    rows: list[list[Cell]] = []
    for name, run in runs.items():
        facts = [run.results["method"], run.results["seed"], run.config["epochs"]]
        measured = cells(run.results["scores"]["encodings"])
        rows.append([name, *facts, *measured, round(run.results["seconds"])])
    for name, (seed, scores) in baselines(runs).items():
        rows.append([name, "-", seed, "-", *cells(scores), "-"])
    data = next(iter(runs.values())).data
    return Table(f"Encodings of {data}: {len(runs)} runs", HEAD, rows, digits=".3f")


def baselines(runs: Mapping[str, Run]) -> dict[str, tuple[int, dict[str, float]]]:
    """Seed and measures of what the runs started from."""
    found: dict[str, tuple[int, dict[str, float]]] = {}
    several = len({run.results["seed"] for run in runs.values()}) > 1
    for run in runs.values():
        seed = run.results["seed"]
        for kind in BASELINES:
            name = kind if kind == "raw pixels" else f"untrained {run.config['encoder']}"
            key = f"{name}, seed {seed}" if several else name
            found.setdefault(key, (seed, run.results["scores"][kind]))
    return found


def draw(path: Path, runs: Mapping[str, Run]) -> None:
    """Bars of the runs; lines at what their encoders started from, the mean of all."""
    results = [run.results for run in runs.values()]
    panels = {t: [r["scores"]["encodings"][key] for r in results] for key, t in COLUMNS.items()}
    panels["seconds of training"] = [r["seconds"] for r in results]
    figure = Figure(figsize=(2.6 * len(panels), 1.6 + 0.28 * len(runs)), layout="constrained")
    several = figure.subplots(1, len(panels), sharey=True)
    for axes, (title, values) in zip(several, panels.items(), strict=True):
        axes.barh(list(runs), values)
        axes.set_title(title)
        axes.grid(axis="x", alpha=0.3)
        axes.locator_params(axis="x", nbins=4)
    several[0].invert_yaxis()
    for axes, key in zip(several, COLUMNS, strict=False):
        for kind, style in BASELINES.items():
            level = np.mean([r["scores"][kind][key] for r in results])
            axes.axvline(level, color="black", linestyle=style, label=kind)
    figure.legend(*several[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    save(figure, path)


def draw_curves(path: Path, runs: Mapping[str, Run]) -> None:
    """Loss by epoch, k-nn by epoch and by second; losses of different methods from 0 to 1."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    loss, accuracy, by_time = figure.subplots(1, 3)
    scaled = len({run.results["method"] for run in runs.values()}) > 1
    for number, (name, run) in enumerate(runs.items()):
        style = {"color": f"C{number % 10}", "linestyle": STYLES[number // 10 % len(STYLES)]}
        history = run.results["history"]
        measured = [row for row in history if "knn" in row]
        values = np.array([row["loss"] for row in history])
        if scaled:
            values = (values - values.min()) / max(np.ptp(values), 1e-12)
        loss.plot([row["epoch"] for row in history], values, **style)
        knn = [row["knn"] for row in measured]
        accuracy.plot([row["epoch"] for row in measured], knn, label=name, **style)
        by_time.plot([row["seconds"] for row in measured], knn, **style)
    _name(loss, "loss, least 0 and most 1" if scaled else "loss", "epoch")
    _name(accuracy, "k-nn accuracy of encodings", "epoch")
    _name(by_time, "k-nn accuracy of encodings", "seconds of training")
    figure.legend(loc="outside right center")
    save(figure, path)


def _name(axes: Axes, title: str, x: str) -> None:
    axes.set(title=title, xlabel=x)
    axes.grid(alpha=0.3)


def _parser(command: str, description: str) -> Parser:
    parser = Parser(
        prog=f"ssl-fast {command}",
        description=description,
        epilog=COMPARE if command == "compare" else PLOT,
        formatter_class=Help,
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="folders of finished runs")
    return parser
