"""What the numbers were measured on, and what may have disturbed them."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import ssl_fast
from ssl_fast import native

_BUSY = 0.3  # load average a core


def describe(device: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "instruction_set": None if native.why_not("cpu") else native.cpu().selected(),
        "load_at_start": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "ssl_fast": ssl_fast.__version__,
        "commit": commit(),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "gpu_memory_gib": round(properties.total_memory / 2**30),
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
        }
    return found


def warnings(machine: dict[str, Any]) -> list[str]:
    found = []
    load, available = machine["load_at_start"], machine["cores"]
    if load is not None and load > _BUSY * available:
        found.append(
            f"the load average is {load} on {available} cores: something else runs, and the "
            "numbers are not to be quoted; wait and run again"
        )
    if machine["threads"] != available:
        found.append(
            f"PyTorch uses {machine['threads']} threads on {available} cores: "
            f"set OMP_NUM_THREADS={available}"
        )
    return found


def stamp() -> dict[str, str]:
    """What a reader of results asks first."""
    return {
        "date": str(datetime.date.today()),
        "machine": f"{cpu_model()}, {cores()} cores",
        "torch": torch.__version__,
    }


def sentence(stamp: Mapping[str, str]) -> str:
    return f"{stamp['date']}, {stamp['machine']}, torch {stamp['torch']}"


def cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def commit() -> str | None:
    """Of the clone that this file lies in, "+" when files differ; None outside a clone."""
    try:
        git = ["git", "-C", str(Path(__file__).parent)]
        text = {"capture_output": True, "text": True, "check": True, "timeout": 10}
        tracked = subprocess.run([*git, "ls-files", "--", "machine.py"], **text).stdout
        if not tracked:  # an installed copy below somebody else's clone
            return None
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], **text).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], **text).stdout
        return head + ("+" if changed.strip() else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
