"""Loads the compiled module `_cpu`; kernels by stem: pointers and sizes down. `cuda` beside it."""

import functools
import json
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch  # before the modules: they share its OpenMP runtime
from torch import Tensor

_INSTRUCTION_SETS = ("baseline", "avx2", "avx512")
_BY_TORCH = {"AVX2": "avx2", "AVX512": "avx512"}


@functools.cache
def cpu() -> ModuleType:
    """`_cpu`, using the instruction set that torch uses; ATEN_CPU_CAPABILITY limits both."""
    module = import_module("ssl_fast._cpu")
    wanted = _BY_TORCH.get(torch.backends.cpu.get_cpu_capability(), "baseline")
    allowed = _INSTRUCTION_SETS[: _INSTRUCTION_SETS.index(wanted) + 1]
    module.select([name for name in module.instruction_sets() if name in allowed][-1])
    return module


DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


def pointer(tensor: Tensor | None, index: int = 0) -> int:
    """The address of its first element, or of a contiguous vector's `index`; 0 for None."""
    if tensor is None:
        return 0
    return tensor.data_ptr() + index * tensor.element_size() if index else tensor.data_ptr()


# The structs of csrc/common/matrix.h, as csrc/arguments.h takes them.


def matrix(tensor: Tensor | None) -> tuple | None:
    """Address, shape, strides and type."""
    if tensor is None:
        return None
    return tensor.data_ptr(), tensor.shape, tensor.stride(), DTYPE_CODES[tensor.dtype]


def target(targets: Any, values: Tensor | None = None) -> tuple | None:
    """The matrix of values (or of those in another type), scale, row and column potentials."""
    if targets is None:
        return None
    values = targets.values if values is None else values
    return matrix(values), targets.scale or 0.0, pointer(targets.row), pointer(targets.col)


def stats(row_stats: Tensor, col_stats: Tensor | None = None) -> tuple[int, int, int]:
    """What forward leaves for backward: rows, the stride between their figures, and columns."""
    return row_stats.data_ptr(), row_stats.stride()[0], pointer(col_stats)


@functools.cache
def why_not(device_type: str) -> str | None:
    """Why the compiled kernels cannot run on "cpu" or "cuda" tensors; None when they can."""
    from . import cuda

    try:
        module = cpu() if device_type == "cpu" else cuda.module()
    except ImportError as error:
        return build_record().get(device_type) or f"ssl_fast._{device_type} does not load: {error}"
    return None if device_type == "cpu" else _why_no_gpu(module)


@functools.cache
def build_record() -> dict[str, str | None]:
    """What setup.py built, and for a backend that it left out, the reason."""
    path = Path(__file__).parents[1] / "_build.json"
    if not path.exists():
        reason = "ssl_fast is not installed; run `pip install -e .` in the clone"
        return {"cpu": reason, "cuda": reason}
    return json.loads(path.read_text())


def _why_no_gpu(module: ModuleType) -> str | None:
    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA; install a CUDA build of torch"
    if error := module.device_error():
        toolkit = build_record().get("nvcc")
        return f"it needs an NVIDIA GPU and a driver for CUDA {toolkit}; CUDA says: {error}"
    archs = (build_record().get("cuda_archs") or "").split(";")
    oldest = min((int(arch.split("-")[0].rstrip("af")) for arch in archs if arch), default=0)
    major, minor = torch.cuda.get_device_capability()
    if 10 * major + minor < oldest:
        return (
            f"built for compute capability {oldest / 10} and newer, this GPU has {major}.{minor}; "
            "set TORCH_CUDA_ARCH_LIST and reinstall ssl_fast"
        )
    return None
