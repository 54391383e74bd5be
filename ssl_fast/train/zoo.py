"""`ssl-fast zoo`: every method with its preset on the same data, then one table over them."""

import argparse
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from .. import losses
from ..bench import machine
from . import compare, run
from .config import parse
from .data import DATA
from .errors import Interrupted, UsageError, unknown
from .files import write_text
from .methods import METHODS, find_method
from .saved import Run, read_config, read_run
from .tables import Cell, Percent, Points, Table

EXAMPLE = """\
A run that is finished is kept, one that was killed goes on: give the same command again.
Other options go to every training; ssl-fast train --help names them. Examples:
  ssl-fast zoo --data digits
  ssl-fast zoo --data digits --methods simclr vicreg --epochs 1 --encoder small-4 --out runs/zoo
"""
HEAD = [
    *("method", "encoder", "epochs", "5-nn", "over untrained", "linear probe", "ARI", "seconds"),
    *("loss, ms a step", "plain PyTorch"),
]
BACKENDS = {"ours": "auto", "plain": "reference"}  # whose losses are timed
GAIN = 0.15  # over the untrained encoder, that a laptop's training should bring
FREE = {"run_dir", "data_dir", "workers", "threads", "progress", "config", "resume"}  # may differ


def main(argv: list[str]) -> int:
    options, more = build_parser().parse_known_args(argv)
    folder = Path(options.out or f"runs/zoo-{options.data}")
    commands = commands_of(options, more)
    for method, command in commands.items():
        check_kept(folder / method, command)
    failed = {}
    for number, (method, command) in enumerate(commands.items(), 1):
        print(f"{number}/{len(commands)}  {method}", flush=True)
        try:
            train(folder / method, command)
            for name in BACKENDS if has_plain(method) else ():
                train(folder / "timed" / name / method, [*command, *timed(method, name)])
        except Interrupted as stop:
            raise Interrupted("interrupted; the same command goes on from there") from stop
        except UsageError as error:
            failed[method] = str(error)
            print(f"{method} failed: {error}", flush=True)
    done = [method for method in commands if method not in failed]
    if not done:
        raise UsageError("no method was trained; see above")
    write(folder, {m: read_run(folder / m) for m in done}, failed)
    return 1 if failed else 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ssl-fast zoo",
        description="Train every method with its preset, one after the other; then write one "
        "table (zoo.md, zoo.csv) and one picture (zoo.png) over all. Two epochs more of each, on "
        "our losses and on plain PyTorch's, show what the loss costs.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--data", default="digits", help="as in ssl-fast train (default: digits)")
    parser.add_argument(
        "--methods", nargs="*", metavar="METHOD", help="which (default: all of ssl-fast methods)"
    )
    parser.add_argument("--epochs", metavar="N", help="of each (default: the preset's)")
    parser.add_argument("--out", metavar="DIR", help="a folder a run (default: runs/zoo-DATA)")
    return parser


def commands_of(options: argparse.Namespace, more: Sequence[str]) -> dict[str, list[str]]:
    """The arguments of each method's ssl-fast train."""
    for name in ("method", "run-dir", "resume", "config"):
        if any(arg.partition("=")[0].replace("_", "-") == f"--{name}" for arg in more):
            raise UsageError(f"--{name} is the zoo's own: say --methods, --out, or neither")
    if options.data not in DATA:
        raise unknown("data", options.data, DATA)
    if options.methods == []:
        raise UsageError(f"--methods names none: choose among {', '.join(METHODS)}")
    common = ["--data", options.data, *(["--epochs", options.epochs] if options.epochs else [])]
    for method in options.methods or ():
        find_method(method)
    return {method: ["--method", method, *common, *more] for method in options.methods or METHODS}


def check_kept(folder: Path, command: list[str]) -> None:
    """Refuses a run that was trained with other options than `command` asks for."""
    wanted = _resolved(command)
    if not folder.exists():
        return
    read_config(folder)
    found = _resolved(["--config", str(folder / "config.yaml")])
    for name in ["method", "data", *sorted({*wanted, *found} - FREE)]:
        if wanted.get(name) != found.get(name):
            raise UsageError(
                f"{folder} was started with {name} {found.get(name)}, and this asks for "
                f"{wanted.get(name)}: choose another --out"
            )


def has_plain(method: str) -> bool:
    """Whether the loss is one of ours; the controls' are PyTorch's."""
    return hasattr(losses, METHODS[method].loss_class)


def timed(method: str, backend: str) -> list[str]:
    """Two epochs, with every term of the loss from the first one."""
    short = ["--epochs", "2", "--loss-backend", BACKENDS[backend]]
    late = "first_epoch" in inspect.signature(METHODS[method]).parameters
    return [*short, f"--{method}.first-epoch=0"] if late else short


def train(folder: Path, command: list[str]) -> None:
    if (folder / "results.json").exists():
        print(f"kept: {folder}", flush=True)
    elif folder.exists():
        run.main(["--resume", str(folder)])
    else:
        run.main([*command, "--run-dir", str(folder)])


def table_of(folder: Path, runs: dict[str, Run]) -> Table:
    rows: list[list[Cell]] = []
    for method, found in runs.items():
        scores = found.results["scores"]
        start, end = scores["untrained encodings"], scores["encodings"]
        facts = [found.config["encoder"], found.config["epochs"]]
        gain = Points(end["knn"] - start["knn"])
        took = [round(found.results["seconds"]), *loss_ms(folder, method)]
        rows.append([method, *facts, *_cells(end, gain), *took])
    for name, (_, scores) in compare.baselines(runs).items():
        rows.append([name, "-", "-", *_cells(scores, "-"), "-", "-", "-"])
    data = next(iter(runs.values())).data
    stamp = {
        fact: "; ".join(sorted({found.results[fact] for found in runs.values()}))
        for fact in ("date", "machine", "torch")
    }
    title = f"Encodings of {data} by {len(runs)} methods, {machine.sentence(stamp)}"
    return Table(title, HEAD, rows, digits=".3f")


def loss_ms(folder: Path, method: str) -> list[Cell]:
    """Forward and backward of the loss, a step, by ours and by plain PyTorch."""
    if not has_plain(method):
        return ["-", "-"]
    found = [read_run(folder / "timed" / name / method).results for name in BACKENDS]
    return [1000 * each["loss_seconds"] / each["steps"] for each in found]


def summary(runs: dict[str, Run]) -> str:
    gains, beaten = 0, 0
    for found in runs.values():
        knn = {name: row["knn"] for name, row in found.results["scores"].items()}
        gains += knn["encodings"] - knn["untrained encodings"] >= GAIN
        beaten += knn["encodings"] > knn["raw pixels"]
    return (
        f"By 5-nn, {gains} of {len(runs)} methods are {GAIN:.0%} or more above their untrained "
        f"encoder, and {beaten} above raw pixels.\n"
    )


def write(folder: Path, runs: dict[str, Run], failed: dict[str, str]) -> None:
    table = table_of(folder, runs)
    notes = summary(runs) + "".join(f"\n{m} failed: {why}\n" for m, why in failed.items())
    compare.draw(folder / "zoo.png", runs)
    write_text(folder / "zoo.csv", table.csv())
    write_text(folder / "zoo.md", f"{table.markdown()}\n{notes}\n![zoo](zoo.png)\n")
    Console().print(table.terminal())
    print(notes, end="")


def _resolved(argv: list[str]) -> dict[str, Any]:
    """Every option of a training, those of its method as METHOD.OPTION."""
    parser, config = parse(argv)
    values = yaml.safe_load(parser.dump(config))
    own = values.pop(config.method, None) or {}
    return values | {f"{config.method}.{name}": value for name, value in own.items()}


def _cells(scores: dict[str, float], gain: Cell) -> list[Cell]:
    return [Percent(scores["knn"]), gain, Percent(scores["probe"]), scores["ari"]]
