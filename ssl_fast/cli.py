"""The `ssl-fast` command. Sub-commands are imported when called."""

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

Command = Callable[[list[str]], int]

HELP = """\
usage: ssl-fast COMMAND [OPTIONS]

  train       train an encoder, measure it, draw it    ssl-fast train --method resa --data digits
  zoo         train every method, one table over all   ssl-fast zoo --data digits
  eval        measure a trained run in many ways       ssl-fast eval runs/NAME
  compare     one table and picture over several runs  ssl-fast compare runs/*/
  plot        the curves of several runs               ssl-fast plot runs/*/
  methods     list the methods and their sources       ssl-fast methods
  bench       time the losses against plain PyTorch    ssl-fast bench --help
  info        versions, instruction sets, backends     ssl-fast info
  experiment  repeat a study of one of the papers      ssl-fast experiment --help

ssl-fast COMMAND --help names every option.
"""


def main(argv: Sequence[str] | None = None) -> int:
    command, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        print(f"ssl-fast: no command {command!r}.{hint}\n\n{HELP}", end="", file=sys.stderr)
        return 2
    return COMMANDS[command](rest) or 0


def driver(command: str, module: str, function: str = "main") -> Command:
    """A command of the driver: needs the train extra, tells mistakes in a sentence."""

    def run(argv: list[str]) -> int:
        try:
            errors = import_module(".train.errors", __package__)
            main = getattr(import_module(module, __package__), function)
        except ImportError as error:
            hint = "pip install 'ssl_fast[train]'"
            print(f"ssl-fast {command}: {error}; {hint}", file=sys.stderr)
            return 2
        try:
            return main(argv)
        except errors.UsageError as error:
            print(f"ssl-fast {command}: {error}", file=sys.stderr)
            return 2

    return run


def methods(argv: list[str]) -> int:
    argparse.ArgumentParser(
        prog="ssl-fast methods",
        description="List the methods of ssl-fast train, their sources, losses and recipes.",
        epilog="Example: ssl-fast methods",
    ).parse_args(argv)
    from rich.console import Console
    from rich.table import Table

    from .train.methods import METHODS

    table = Table("method", "paper", "equation", "ssl_fast.losses", "recipe of the source")
    for name, method in METHODS.items():
        recipe = ", ".join(f"{key} {value}" for key, value in method.recipe.items())
        table.add_row(name, method.paper, method.equation, method.loss_class, recipe)
    Console().print(table)
    return 0


def bench(argv: list[str]) -> int:
    from .bench.__main__ import main as run

    return run(argv)


def info(argv: list[str]) -> int:
    from .info import main as run

    return run(argv)


COMMANDS: dict[str, Command] = {
    "train": driver("train", ".train.run"),
    "compare": driver("compare", ".train.compare", "compare"),
    "plot": driver("plot", ".train.compare", "plot"),
    "zoo": driver("zoo", ".train.zoo"),
    "eval": driver("eval", ".train.assess"),
    "methods": methods,
    "bench": bench,
    "info": info,
    "experiment": driver("experiment", ".experiments.frame"),
}

if __name__ == "__main__":
    sys.exit(main())
