"""`ssl-fast eval RUN`: measures a trained run, on its own images or on others."""

import json
import pickle
import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from . import data, run
from .config import Help, Parser, TrainOptions, options_of, parse
from .errors import UsageError, unknown
from .files import write_text
from .measures import MEASURES, Rows
from .methods import Method
from .saved import read_config
from .subject import EvalOptions, NotHere, Subject
from .tables import Cell, Table

EXAMPLE = """\
Examples:
  ssl-fast eval runs/resa
  ssl-fast eval runs/resa --metrics knn linear finetune --shares "[0.1]"
  ssl-fast eval runs/resa --data digits --metrics knn linear
"""
COLUMNS = "encodings", "embeddings"


def main(argv: list[str]) -> int:
    config = build_parser().parse_args(argv)
    if not config.run:
        raise UsageError("name a run folder: ssl-fast eval runs/NAME")
    options = EvalOptions(**{f.name: config[f.name] for f in fields(EvalOptions)})
    options.check()
    names = check_names(config.metrics)
    folder = Path(config.run)
    subject = open_subject(folder, options)
    start = time.perf_counter()
    measured, skipped = measure(subject, names)
    write(folder, subject, measured, skipped, time.perf_counter() - start)
    return 0


def build_parser() -> Parser:
    width = max(map(len, MEASURES))
    listing = "\n".join(f"  {name:{width}}  {f.__doc__}" for name, f in MEASURES.items())
    parser = Parser(
        prog="ssl-fast eval",
        description="Measure a trained run. Writes eval.json and eval.md into its folder, with "
        "--data eval-DATA.json and eval-DATA.md; what stood there is replaced.",
        epilog=f"Metrics:\n{listing}\n\n{EXAMPLE}",
        formatter_class=Help,
        allow_abbrev=False,
    )
    parser.add_argument("run", nargs="?", metavar="RUN", help="folder of the run")
    parser.add_argument(
        "--metrics", nargs="*", metavar="METRIC", help="by default all that the run can have"
    )
    parser.add_class_arguments(EvalOptions, None)
    return parser


def open_subject(folder: Path, options: EvalOptions) -> Subject:
    run.quiet()
    run.use_threads(options.threads)
    method, trained, source = restore(folder, None if options.data else options.data_dir)
    prior = run.prior_of(trained, source)
    name, place = options.data or trained.data, options.data_dir or trained.data_dir
    if options.data:
        size = source.image_size
        other = replace(trained, data=name, data_dir=place, image_size=size, long_tail="none")
        channels, source = source.channels, run.open_source(other)
        if source.channels != channels:
            raise UsageError(
                f"the encoder of {folder} takes images of {channels} channels, {name} has "
                f"{source.channels}: choose another --data"
            )
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return Subject(method, trained, prior, source, name, place, options, torch.device(device))


def restore(folder: Path, data_dir: str | None = None) -> tuple[Method, TrainOptions, data.Source]:
    """The method with the weights of `last.ckpt`, its options and its images.

    `data_dir` is where the images are now, if they have moved.
    """
    read_config(folder)
    options, own = options_of(parse(["--config", str(folder / "config.yaml")])[1])
    options = replace(options, data_dir=data_dir or options.data_dir)
    path = folder / "last.ckpt"
    if not path.is_file():
        raise UsageError(f"{path} is missing: ssl-fast train --resume {folder} makes it")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    except (RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise UsageError(f"{path} is no checkpoint of ssl-fast train: {error}") from error
    source = run.open_source(options)
    method = run.build_method(options, own, source)
    prefix = "method."
    weights = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
    try:
        method.load_state_dict(weights)
    except RuntimeError as error:
        raise UsageError(
            f"{path} does not hold the networks that {folder / 'config.yaml'} describes "
            f"({options.method} on {options.encoder}): it is the checkpoint of another run"
        ) from error
    return method, options, source


def check_names(names: list[str] | None) -> list[str] | None:
    if names is not None and not names:
        raise UsageError(f"--metrics names none: choose among {', '.join(MEASURES)}")
    for name in names or ():
        if name not in MEASURES:
            raise unknown("metric", name, MEASURES)
    return names


def measure(subject: Subject, names: list[str] | None) -> tuple[dict[str, Rows], dict[str, str]]:
    """Rows of each measure, and why others were left out; those asked for by name must work."""
    measured, skipped = {}, {}
    chosen = list(dict.fromkeys(names or MEASURES))
    for number, name in enumerate(chosen, 1):
        print(f"{number}/{len(chosen)}  {name}", flush=True)
        try:
            measured[name] = MEASURES[name](subject)
        except ValueError as error:
            wrong_option = isinstance(error, UsageError) and not isinstance(error, NotHere)
            if names or wrong_option:
                raise UsageError(f"{name}: {error}") from error
            skipped[name] = str(error)
    return measured, skipped


def write(
    folder: Path,
    subject: Subject,
    measured: dict[str, Rows],
    skipped: dict[str, str],
    seconds: float,
) -> None:
    trained = subject.trained
    stem = f"eval-{subject.options.data}" if subject.options.data else "eval"
    rows = {name: values for found in measured.values() for name, values in found.items()}
    table = table_of(
        rows, f"{trained.method}, trained on {trained.data}, measured on {subject.name}"
    )
    facts: dict[str, Any] = {
        "method": trained.method,
        "trained_on": trained.data,
        "data": subject.name,
        "options": asdict(subject.options),
        "measures": measured,
        "skipped": skipped,
        "seconds": round(seconds, 1),
    }
    write_text(folder / f"{stem}.json", json.dumps(facts, indent=2) + "\n")
    left_out = "".join(f"\nNo {name}: {reason}.\n" for name, reason in skipped.items())
    write_text(folder / f"{stem}.md", table.markdown() + left_out)
    Console().print(table.terminal())
    print(left_out, end="")


def table_of(rows: Rows, title: str) -> Table:
    cells: list[list[Cell]] = [
        [name, *(values.get(column, "-") for column in COLUMNS)] for name, values in rows.items()
    ]
    return Table(title, ["measure", *COLUMNS], cells, digits=".4g")
