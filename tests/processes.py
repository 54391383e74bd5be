"""The ranks of a distributed test: one process each, started together."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def outcomes(module: ModuleType, world: int, folder: Path, *arguments: object) -> list[Any]:
    """What each rank saved as FOLDER/RANK.pt: `python module.py RANK [arguments] FOLDER`."""
    helpers = str(Path(__file__).parent)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([helpers, *filter(None, [os.getenv("PYTHONPATH")])])
    processes = [
        subprocess.Popen(
            list(map(str, [sys.executable, module.__file__, rank, *arguments, folder])),
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(world)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for rank, (process, output) in enumerate(zip(processes, said, strict=True)):
        assert process.returncode == 0, f"rank {rank}:\n{output}"
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]
