"""The `ssl-fast` command. Sub-commands are imported when called."""

import difflib
import sys
from collections.abc import Sequence

HELP = """\
usage: ssl-fast COMMAND [OPTIONS]

  train       train an encoder, measure it, draw it    ssl-fast train --method resa --data digits
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


def train(argv: list[str]) -> int:
    try:
        from .train.errors import UsageError
        from .train.run import main as run
    except ImportError as error:
        print(f"ssl-fast train: {error}; pip install 'ssl_fast[train]'", file=sys.stderr)
        return 2
    try:
        return run(argv)
    except UsageError as error:
        print(f"ssl-fast train: {error}", file=sys.stderr)
        return 2


def experiment(argv: list[str]) -> int:
    try:
        from .experiments.frame import main as run
        from .train.errors import UsageError
    except ImportError as error:
        print(f"ssl-fast experiment: {error}; pip install 'ssl_fast[train]'", file=sys.stderr)
        return 2
    try:
        return run(argv)
    except UsageError as error:
        print(f"ssl-fast experiment: {error}", file=sys.stderr)
        return 2


def methods(argv: list[str]) -> int:
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


COMMANDS = {
    "train": train,
    "methods": methods,
    "bench": bench,
    "info": info,
    "experiment": experiment,
}

if __name__ == "__main__":
    sys.exit(main())
