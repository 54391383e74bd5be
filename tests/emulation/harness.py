"""Builds `_cuda` from the same sources with g++ and the emulated runtime, and swaps it in.

The module takes CPU tensors: `ssl_fast.native.cuda`, bindings, launchers and kernels all run.
"""

import contextlib
import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
SOURCES = [
    *sorted(ROOT.glob("csrc/cuda/*.cu")),
    ROOT / "csrc/bindings_cuda.cpp",
    HERE / "controls.cpp",
]
FLAGS = "-std=c++17 -O1 -g1 -fPIC -fvisibility=hidden -fno-strict-aliasing -Wall -Werror"
FLAGS += " -Wno-unknown-pragmas"
SANITIZERS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined"


def build(sanitize: bool = False) -> Path:
    """The module's file; built once for each state of the sources."""
    flags = [*FLAGS.split(), *(SANITIZERS.split() if sanitize else [])]
    digest = hashlib.sha256(" ".join(flags).encode())
    inputs = [
        *ROOT.glob("csrc/cuda/*"),
        *ROOT.glob("csrc/common/*"),
        *ROOT.glob("csrc/*.h"),
        *HERE.glob("*.h"),
        *SOURCES,
    ]
    for path in sorted(set(inputs)):
        digest.update(path.read_bytes())
    folder = ROOT / "build" / "emulation" / digest.hexdigest()[:16]
    module = folder / "_cuda.so"
    if not module.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _compile(flags, folder, module)
    return module


def _compile(flags: list[str], folder: Path, module: Path) -> None:
    import pybind11

    includes = [HERE, ROOT / "csrc", pybind11.get_include(), *_python_includes()]
    command = [os.environ.get("CXX", "g++"), *flags, *(f"-I{path}" for path in includes)]
    # A temporary name: several test processes may build at once.
    unique = f"{os.getpid()}"
    objects = [folder / f"{source.stem}.{unique}.o" for source in SOURCES]
    jobs = [
        subprocess.Popen([*command, "-x", "c++", "-c", source, "-o", target])
        for source, target in zip(SOURCES, objects, strict=True)
    ]
    codes = [job.wait() for job in jobs]
    if any(codes):
        raise RuntimeError("the emulated build failed; its errors are above")
    finished = folder / f"_cuda.{unique}.so"
    subprocess.run([*command, "-shared", *objects, "-o", finished], check=True)
    finished.replace(module)


def _python_includes() -> list[str]:
    """Where Python.h may be: this Python's own folder, else one on CPATH."""
    folders = [sysconfig.get_paths()["include"], *os.environ.get("CPATH", "").split(os.pathsep)]
    return [path for path in folders if path and Path(path, "Python.h").exists()]


def why_not() -> str | None:
    """Why the emulated build cannot be made here."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        return "no g++"
    if importlib.util.find_spec("pybind11") is None:
        return "pybind11 is not installed"
    if not _python_includes():
        return "Python.h is missing; install python3-dev"
    return None


class Machine:
    """The emulated GPU: three multiprocessors; both forms are met at test sizes."""

    def __init__(self, path: Path):
        spec = importlib.util.spec_from_file_location("_cuda", path)
        assert spec is not None and spec.loader is not None
        self.module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.module)
        self._set = ctypes.CDLL(str(path)).emulation_set
        self.reset()

    def reset(
        self,
        processors: int = 3,
        shared: int = 64 * 1024,
        driver: bool = True,
        backwards: bool = False,
    ) -> None:
        self._set(processors, shared, driver, backwards)


@contextlib.contextmanager
def installed(machine: Machine):
    """`ssl_fast.native.cuda` runs on the machine, with fresh tensors full of NaN."""
    from ssl_fast.native import cuda

    before = cuda.module, cuda.place
    cuda.module, cuda.place = (lambda: machine.module), (lambda tensor: (0, 0))
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # makes torch.empty fill memory with NaN
    try:
        yield
    finally:
        cuda.module, cuda.place = before
        cuda._count.cache_clear()
        torch.use_deterministic_algorithms(deterministic)
        machine.reset()
