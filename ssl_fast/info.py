"""`python -m ssl_fast.info`: versions, instruction sets, and which backends are on, or why not."""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from . import native
from ._version import __version__


def collect() -> dict[str, Any]:
    """Versions, cpu, cuda, and backends: None for one that is on, else why not and what to do."""
    record = native.build_record()
    return {
        "versions": {
            "ssl_fast": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": _version("triton"),
            "numpy": _version("numpy"),
            "torch's cuda": torch.version.cuda,
            "compiler": record.get("compiler"),
            "nvcc": record.get("nvcc"),
        },
        "cpu": {**_cpu(), "threads": torch.get_num_threads()},
        "cuda": {"architectures": record.get("cuda_archs"), "devices": _devices()},
        "backends": {
            "native cpu": native.why_not("cpu"),
            "native cuda": native.why_not("cuda"),
            "triton": why_no_triton(),
            "reference": None,
        },
    }


def why_no_triton() -> str | None:
    """Why the Triton kernels cannot run here on a GPU; None when they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; pip install triton (Linux only)"
    if not torch.cuda.is_available():
        return "no GPU that PyTorch can use (TRITON_INTERPRET=1 runs the kernels slowly on the CPU)"
    # Triton compiles a launcher for each kernel, at run time.
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or shutil.which(compiler) is None:
        return "Triton needs a C compiler at run time; install gcc or set CC"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        return "Triton needs Python.h at run time; install python3-dev"
    return None


def report(info: dict[str, Any]) -> str:
    lines = [f"{name:<14}{value or '-'}" for name, value in info["versions"].items()]
    sets = ", ".join(info["cpu"]["built"]) or "-"
    lines += ["", f"{'cpu':<14}built {sets}; chosen {info['cpu']['chosen'] or '-'}"]
    lines += [f"{'threads':<14}{info['cpu']['threads']}"]
    lines += [f"{'cuda':<14}built {info['cuda']['architectures'] or '-'}"]
    lines += [f"{'gpu':<14}{', '.join(info['cuda']['devices']) or '-'}", ""]
    for name, reason in info["backends"].items():
        lines += [f"{name:<14}{'off: ' + reason if reason else 'on'}"]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ssl_fast.info",
        description=__doc__,
        epilog="Example: python -m ssl_fast.info --json; ssl-fast info is the same command.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    as_json = parser.parse_args(arguments).json
    info = collect()
    print(json.dumps(info, indent=2) if as_json else report(info))
    return 0


def _cpu() -> dict[str, Any]:
    if native.why_not("cpu"):
        return {"built": [], "chosen": None}
    module = native.cpu()
    return {"built": module.instruction_sets(), "chosen": module.selected()}


def _devices() -> list[str]:
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
