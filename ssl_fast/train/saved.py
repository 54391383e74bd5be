"""What a run left in its folder, for the commands that come after the training."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from .errors import UsageError


class Run(NamedTuple):
    """A finished run."""

    folder: Path
    config: dict[str, Any]  # config.yaml
    results: dict[str, Any]  # results.json

    @property
    def data(self) -> str:
        return self.config["data"]


def read_config(folder: Path) -> dict[str, Any]:
    """config.yaml of a run that need not be finished."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder: name run folders, such as those in runs/")
    path = folder / "config.yaml"
    values = yaml.safe_load(path.read_text()) if path.is_file() else None
    if not isinstance(values, dict) or not {"method", "data"} <= set(values):
        raise UsageError(
            f"{folder} holds no run of ssl-fast train: its config.yaml should name method and data"
        )
    return values


def read_run(folder: Path) -> Run:
    config = read_config(folder)
    path = folder / "results.json"
    if not path.is_file():
        raise UsageError(f"{folder} is not finished: ssl-fast train --resume {folder}")
    return Run(folder, config, json.loads(path.read_text()))


def read_runs(folders: Iterable[str], command: str) -> dict[str, Run]:
    """Runs on the same data by a short name each, in the given order."""
    paths = [Path(folder) for folder in folders]
    if not paths:
        raise UsageError(f"name one or more run folders: ssl-fast {command} runs/*/")
    short = len({path.resolve().name for path in paths}) == len(paths)
    runs = {path.resolve().name if short else str(path): read_run(path) for path in paths}
    first = next(iter(runs.values()))
    for run in runs.values():
        if run.data != first.data:
            raise UsageError(
                f"{first.folder} was trained on {first.data}, {run.folder} on {run.data}: "
                f"ssl-fast {command} takes runs on the same data"
            )
    return runs
